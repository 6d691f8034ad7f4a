"""Is the deployment sound? `make verify-deploy` builds the image, runs it, breaks it, watches it, pushes it, and prints a table.

A check is OK, FAILED, or SKIPPED with the reason; the exit code is 1 when one failed. Nothing of yours is touched: images,
containers and volumes have names of their own, and what is built comes from a copy of this folder.

From the environment: BASE_IMAGE and TORCH_INDEX, as for `make image`; NETWORK=host where Docker has no bridge, which also keeps
images from being pulled, so that a Prometheus of this machine stands in for its image and Grafana is left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
import yaml

from config import ROOT, ModelConfig
from deploy import monitoring, stack
from deploy.containers import (
    IMAGE,
    KEY,
    LOCKED,
    Failed,
    Skipped,
    copy_checkout,
    expect,
    free_port,
    is_free,
    run,
    serving,
    wait,
)
from model import GPT
from tests.live import save

TOOLS = ROOT / "build" / "tools" / "bin"
BARE, FULL = f"{IMAGE}:bare", f"{IMAGE}:verify"  # the image without a model, and with one
TRAINING = f"{IMAGE}:train"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NO_ENGINE = (
    "no Docker engine answers (`docker info` fails). On Debian and Ubuntu: apt install docker.io, then docker-buildx where there is "
    "one; elsewhere https://docs.docker.com/engine/install/. Your account must be in the group docker."
)


@dataclass
class Bench:
    """What the checks share.

    Attributes:
        folder: for files that go when all is done.
        checkout: a copy of this one, with one small model in it.
        network: how containers are reached: empty or host.
    """

    folder: Path
    checkout: Path
    network: str = field(default_factory=lambda: os.environ.get("NETWORK", ""))
    programs: dict[str, Path] = field(default_factory=dict)

    def serving(self, *flags: str, image: str = FULL, network: str | None = None, **environ: str):
        """A server whose only key is known, unless told otherwise."""
        settings = {"LLM_API_KEYS": KEY, "LLM_RATE_LIMIT_RPM": "0", **environ}
        kept = {name: value for name, value in settings.items() if value}
        return serving(image, *flags, network=self.network if network is None else network, **kept)

    def program(self, name: str, package: str) -> Path:
        """A program of this machine, or of a Debian package, which is unpacked here and not installed.

        Raises:
            Skipped: when it can be had in neither way.
        """
        if name not in self.programs:
            found = shutil.which(name)
            self.programs[name] = Path(found) if found else unpacked(package, self.folder / package) / "usr" / "bin" / name
        return self.programs[name]


def unpacked(package: str, folder: Path) -> Path:
    """The files of a Debian package. Installing it would start a service, and need root."""
    if not shutil.which("apt-get"):
        raise Skipped(f"{package} is neither here nor to be had: put its programs on the PATH")
    folder.mkdir(exist_ok=True)
    if not list(folder.glob("*.deb")):
        fetch = ("apt-get", "download", package)
        try:
            run(*fetch, folder=folder)
        except Failed:  # the lists of packages are old, or there are none
            as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
            try:
                run(*as_root, "apt-get", "update")
                run(*fetch, folder=folder)
            except (Failed, OSError) as error:
                raise Skipped(f"apt-get has no {package} here: {error}") from error
        run("dpkg-deb", "--extract", next(folder.glob("*.deb")), folder)
    return folder


@dataclass(frozen=True)
class Check:
    title: str
    make: Callable[[Bench], str]
    needs: tuple[str, ...]


CHECKS: list[Check] = []


def check(title: str, *needs: str):
    """Enters a check in the table. It says what it saw, and needs others to be OK, by the names of their functions."""

    def enter(make: Callable[[Bench], str]) -> Callable[[Bench], str]:
        CHECKS.append(Check(title, make, needs))
        return make

    return enter


# ---- files


@check("both Dockerfiles (hadolint)")
def dockerfile(bench: Bench) -> str:
    run(TOOLS / "hadolint", "Dockerfile", "deploy/train.Dockerfile")
    return "no findings"


@check("compose file, workflow, dependabot (schemas)")
def schemas(bench: Bench) -> str:
    files = {
        "compose-spec": "docker-compose.yml",
        "github-workflows": ".github/workflows/cicd.yml",
        "dependabot": ".github/dependabot.yml",
    }
    for schema, file in files.items():
        run(TOOLS / "check-jsonschema", "--builtin-schema", f"vendor.{schema}", file)
    return f"{len(files)} files are what their schemas say"


@check("workflow and dependabot (zizmor)")
def workflow(bench: Bench) -> str:
    run(TOOLS / "zizmor", "--offline", "--quiet", ".github")
    return "no findings"


@check("Prometheus configuration (promtool)")
def configuration(bench: Bench) -> str:
    token = bench.folder / "a-token"
    token.write_text("a-token")
    file = monitoring.configured(bench.folder / "checked", ["127.0.0.1:1"], token)
    run(bench.program("promtool", "prometheus"), "check", "config", file)
    return "valid"


@check("alert rules (promtool)")
def rules(bench: Bench) -> str:
    promtool = bench.program("promtool", "prometheus")
    monitoring.promtool(promtool, "check", "rules", "rules.yml")
    monitoring.promtool(promtool, "test", "rules", "rules_test.yml")
    tested = yaml.safe_load((monitoring.CONFIG / "rules_test.yml").read_text())["tests"]
    return f"{len(monitoring.alerts())} rules, {len(tested)} unit tests"


# ---- the image


@check("Docker engine")
def engine(bench: Bench) -> str:
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode:
        raise Failed(NO_ENGINE)
    return run("docker", "version", "--format", "{{.Server.Version}}").strip()


@check("make image, without a checkpoint", "engine")
def bare_image(bench: Bench) -> str:
    build(bench, "bare")
    expect("best_model.pt" not in files_of(BARE), "there is a model in it")
    return "builds"


@check("make image, with a linked checkpoint", "bare_image")
def full_image(bench: Bench) -> str:
    put_model(bench.checkout / "checkpoints")
    build(bench, "verify")
    size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", FULL))
    base = os.environ.get("BASE_IMAGE") or "python:3.11-slim"
    below = int(run("docker", "image", "inspect", "--format", "{{.Size}}", base)) if has_image(base) else 0
    return f"{size / 1e6:.0f} MB" + (f", {(size - below) / 1e6:.0f} MB of them above {base}" if below else "")


def build(bench: Bench, version: str) -> None:
    run("make", "image", f"IMAGE={IMAGE}", f"VERSION={version}", folder=bench.checkout, DOCKER_BUILDKIT="1")


def has_image(name: str) -> bool:
    return not subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode


def put_model(folder: Path) -> None:
    """Two runs as training leaves them, the newer one linked; big enough that a text takes seconds."""
    shape = ModelConfig(architecture="modern", vocab_size=257, n_layer=6, n_head=4, n_embd=256, block_size=512)
    torch.manual_seed(0)
    for run_name in ("older", "newer"):
        (folder / run_name).mkdir(parents=True)
        save(folder / run_name / "best_model.pt", GPT(shape).eval(), run=run_name)
        (folder / run_name / "last.pt").write_bytes(b"not for the image")
        (folder / run_name / "best_model.pt").chmod(0o600)
    (folder / "best_model.pt").symlink_to(Path("newer") / "best_model.pt")
    (folder / "last.pt").symlink_to(Path("newer") / "last.pt")


def files_of(image: str, folder: str = "/app") -> str:
    inside = "--rm", "--network", "none", "--user", "0", "--entrypoint", "find"
    return run("docker", "run", *inside, image, folder, "-xdev", "-type", "f")


@check("only what serving needs is in it", "full_image")
def contents(bench: Bench) -> str:
    files = [Path(line) for line in files_of(FULL, "/").splitlines()]
    ours = {str(path.relative_to("/app")) for path in files if path.is_relative_to("/app") and path.suffix != ".pyc"}
    models = [str(path) for path in files if path.name in ("best_model.pt", "last.pt")]
    expect(models == ["/app/checkpoints/best_model.pt"], models)
    wanted = r"(config|model|tokenizer|checkpoint|serve)\.py|(training|inference|multimodal|server|checkpoints)/"
    others = {name for name in ours if not re.match(wanted, name)}
    expect(not others, others)
    packages = {path.name for path in files if path.is_relative_to("/opt/venv")}
    expect(not {"pytest", "gcc", "pip"} & packages, "tools are in it")
    config = json.loads(run("docker", "image", "inspect", "--format", "{{json .Config}}", FULL))
    expect(re.fullmatch(r"[1-9]\d*:\d+", config["User"]), f"it runs as {config['User']!r}")
    return f"{len(ours)} files of ours, one model, user {config['User']}"


@check("the image for training: builds, trains, and goes on where it was saved", "engine")
def training_image(bench: Bench) -> str:
    given = {"BASE_IMAGE": os.environ.get("BASE_IMAGE", ""), "TORCH_INDEX": os.environ.get("TORCH_INDEX") or CPU_INDEX}
    flags = [word for name, value in given.items() if value for word in ("--build-arg", f"{name}={value}")]
    flags += ["--network", bench.network] if bench.network else []
    run("docker", "build", *flags, "-f", "deploy/train.Dockerfile", "-t", TRAINING, ".", folder=bench.checkout, DOCKER_BUILDKIT="1")
    small = "--n_layer 1 --n_head 2 --n_embd 32 --block_size 32 --batch_size 4 --tokenizer byte --data stories --n_stories 40 --log_dir /tmp/logs"
    starts = [f"deploy/train.sh {small} --max_iters {steps}" for steps in (6, 9)]
    script = " && ".join([*starts, "cat /tmp/logs/verify/events.jsonl", "echo 'int main(){}' | gcc -x c -o /tmp/compiled -"])
    inside = ("--rm", "--network", "none", *LOCKED, "--tmpfs", "/tmp", "--env", "RUN=verify", "--env", "OUT_DIR=/tmp/checkpoints")
    told = run("docker", "run", *inside, TRAINING, "sh", "-c", script)
    expect('"event": "resume", ' in told and '"step": 8, ' in told, f"the second start did not go on: {told[-600:]}")
    size = int(run("docker", "image", "inspect", "--format", "{{.Size}}", TRAINING))
    return f"{size / 1e6:.0f} MB; read-only, as an unknown user: 6 steps, and after a second start 3 more; its compiler compiles"


# ---- one container


@check("read-only, no capabilities, any user: the printed key opens it", "full_image")
def printed_key(bench: Bench) -> str:
    with bench.serving(LLM_API_KEYS="") as server:
        server.ready()
        lines = server.printed().splitlines()
        key = re.search(r"key of this run is (\S+)", lines[0])
        expect(key and lines[1].startswith("curl "), f"it began with {lines[:2]}")
        command = lines[1].replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl -sS ", 1)
        answer = json.loads(run("sh", "-c", command))
        expect(answer.get("usage", {}).get("completion_tokens"), answer)
        expect(httpx.post(f"{server.url}/v1/generate", json={"prompt": "x"}).status_code == 401, "without a key it answers as well")
        expect(server.printed().count(key[1]) == 2 and key[1] not in server.logged(), "the key is in the log")
        return f"the curl line that it prints gives {answer['usage']['completion_tokens']} tokens of {answer['model']['id']}"


@check("HEALTHCHECK turns healthy", "full_image")
def healthy(bench: Bench) -> str:
    with bench.serving(network="none") as server:
        wait(lambda: server.state()["Health"]["Status"] == "healthy", 60, "HEALTHCHECK")
        wait(lambda: server.ask_inside("/readyz")[0][0] == 200, 60, "the model")
        return "healthy, and ready"


@check("docker stop in mid-stream: the stream ends whole, exit code 0", "full_image")
def drains(bench: Bench) -> str:
    with bench.serving(LLM_DRAIN_SECONDS="150") as server, server.ready().client() as client:
        sent = {"prompt": "Once", "max_new_tokens": 1000, "ignore_eos": True, "stream": True}
        seen: list[str] = []
        with client.stream("POST", "/v1/generate", json=sent) as stream:
            for line in filter(None, stream.iter_lines()):
                seen.append(line)
                if len(seen) == 20:
                    stopping = threading.Thread(target=run, args=("docker", "stop", "-t", "180", server.name))
                    stopping.start()
                    before = len(seen)
                    wait(lambda: client.get("/readyz").status_code == 503, 5, "/readyz to say that it stops")
        stopping.join()
        expect(seen[-1] == "data: [DONE]", f"the stream ended with {seen[-1]}")
        last = json.loads(seen[-2].removeprefix("data: "))
        expect(last["usage"]["completion_tokens"] == 1000, last)
        expect(server.state()["ExitCode"] == 0, server.state())
        return f"{len(seen) - before} more events after the signal, 1000 tokens in all"


@check("without a model: alive, not ready, and says why", "bare_image")
def without_a_model(bench: Bench) -> str:
    with bench.serving(image=BARE, network="none") as server:
        wait(lambda: server.state()["Health"]["Status"] == "healthy", 60, "HEALTHCHECK")
        wait(lambda: "being loaded" not in server.ask_inside("/readyz")[0][1], 30, "a reason")
        (alive, _), (ready, reason) = server.ask_inside("/healthz", "/readyz")
        expect((alive, ready) == (200, 503), (alive, ready))
        expect("there is no checkpoint" in reason, reason)
        time.sleep(5)  # as long as two more looks of HEALTHCHECK
        state = server.state()
        expect(state["Running"] and state["Health"]["Status"] == "healthy", state)
        return "/healthz 200, /readyz 503 with the reason, HEALTHCHECK healthy"


@check("sessions outlive the container, in a volume", "full_image")
def sessions(bench: Bench) -> str:
    volume = f"{IMAGE}-{os.urandom(3).hex()}"
    try:
        with bench.serving("--volume", f"{volume}:/var/lib/llm") as server, server.ready().client() as client:
            client.post("/v1/generate", json={"prompt": "Once", "max_new_tokens": 4, "session_id": "kept"}).raise_for_status()
        with bench.serving("--volume", f"{volume}:/var/lib/llm") as server, server.ready().client() as client:
            turns = client.get("/v1/sessions/kept").raise_for_status().json()["turns"]
    finally:
        subprocess.run(["docker", "volume", "rm", "--force", volume], capture_output=True)
    expect([turn["prompt"] for turn in turns] == ["Once"], turns)
    return "another container finds them"


# ---- watching


@check("Prometheus: token, dashboard and rules under load", "configuration", "full_image")
def watched(bench: Bench) -> str:
    token, inside = bench.folder / "metrics-token", "/run/secrets/metrics_token"
    token.write_text("a-metrics-token\n")
    flags = ("--volume", f"{token}:{inside}:ro")
    settings = {"LLM_METRICS_TOKEN_FILE": inside}
    with (
        bench.serving(*flags, **settings) as server,
        bench.serving(*flags, image=BARE, **settings) as without_model,
    ):
        server.ready()
        monitoring.token_is_asked_for(server, "a-metrics-token")
        config = monitoring.configured(bench.folder / "prometheus-live", [server.target, without_model.target], token)
        with (
            monitoring.prometheus(bench.program("prometheus", "prometheus"), config) as source,
            monitoring.load(server, without_model),
        ):
            monitoring.under_load(source, 40)
            told = monitoring.dashboard_has_data(source), monitoring.rules_have_data(source)
    return "; ".join(told)


# ---- all of it together


@check("make obs-up, make obs-down", "full_image")
def compose(bench: Bench) -> str:
    command, ports = stack.command(), stack.ports(bench.network)
    for model in (bench.checkout / "checkpoints").glob("*/*.pt"):
        model.chmod(0o644)  # a folder that is mounted is read as it is
    stand_in = prometheus_image(bench) if bench.network else ""
    content, project = stack.content(FULL, bench.network, stand_in), f"{IMAGE}-compose"
    file = bench.checkout / "docker-compose.verify.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    words = [*command.split(), "--file", file.name, "--project-name", project]
    make = {"COMPOSE": " ".join(words), "DOCKER_BUILDKIT": "1"}
    make |= {f"{name.upper()}_PORT": str(port) for name, port in ports.items()}
    try:
        run("make", "obs-up", folder=bench.checkout, **make)
        told = [stack.works(words, bench.checkout, ports)]
        if "grafana" in content["services"]:
            told.append(stack.grafana_works(ports["grafana"]))
        run("make", "obs-down", folder=bench.checkout, **make)
        expect(is_free(ports["server"]), "the server still answers")
        return "; ".join(told)
    finally:
        ended = [*words, "down", "--volumes"]
        subprocess.run(ended, cwd=bench.checkout, env={**os.environ, **make}, capture_output=True)


def prometheus_image(bench: Bench) -> str:
    """What stands in for Prometheus' own image: this machine's program."""
    binary = bench.program("prometheus", "prometheus")
    return stack.prometheus_image(bench.folder / "prometheus-image", binary, bench.network)


# ---- delivery


@check("make image-push, to a registry of this machine", "full_image")
def pushed(bench: Bench) -> str:
    port = free_port()
    config = {"version": "0.1", "storage": {"filesystem": {"rootdirectory": str(bench.folder / "registry")}}, "http": {"addr": f"127.0.0.1:{port}"}}
    file = bench.folder / "registry.yml"
    file.write_text(yaml.safe_dump(config))
    with open(bench.folder / "registry.log", "w") as log:
        registry = subprocess.Popen([bench.program("docker-registry", "docker-registry"), "serve", file], stdout=log, stderr=log)
    told = [f"IMAGE={IMAGE}", "VERSION=verify", f"REGISTRY=localhost:{port}/Somebody"]
    try:
        wait(lambda: httpx.get(f"http://127.0.0.1:{port}/v2/").status_code == 200, 20, "the registry")
        run("make", "image-push", *told)
        name = run("make", "--silent", "image-digest", *told).strip()
        expect(re.fullmatch(rf"localhost:{port}/somebody/{IMAGE}@sha256:[0-9a-f]{{64}}", name), f"its digest is {name!r}")
        tags = httpx.get(f"http://127.0.0.1:{port}/v2/somebody/{IMAGE}/tags/list").json()["tags"]
        expect(sorted(tags) == ["latest", "verify"], tags)
        run("docker", "pull", name)
        return f"pushed as {' and '.join(sorted(tags))}, pulled by its digest"
    finally:
        registry.terminate()
        registry.wait(20)
        for tag in ("verify", "latest"):
            subprocess.run(["docker", "rmi", f"localhost:{port}/somebody/{IMAGE}:{tag}"], capture_output=True)


@check("make image-sbom", "full_image")
def bill_of_materials(bench: Bench) -> str:
    run("make", "image-sbom", f"IMAGE={IMAGE}", "VERSION=verify")
    file = ROOT / "build" / "sbom.spdx.json"
    packages = {each["name"]: each.get("versionInfo", "") for each in json.loads(file.read_text())["packages"]}
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.M))
    for name in ("torch", "fastapi", "uvicorn"):
        expect(packages.get(name, "").split("+")[0] == pinned[name], f"{name}: {packages.get(name)}")
    absent = {"datasets", "matplotlib", "tensorboard", "pytest"} & set(packages)
    expect(not absent, f"the image holds {absent}")
    return f"{len(packages)} packages, torch {packages['torch']}; no package that only training needs"


# ---- the table


def result_of(each: Check, bench: Bench, good: set[str]) -> tuple[str, str]:
    """How a check went, and what it saw."""
    if missing := [name for name in each.needs if name not in good]:
        titles = {entered.make.__name__: entered.title for entered in CHECKS}
        return "SKIPPED", f"needs: {titles[missing[0]]}"
    try:
        return "OK", each.make(bench)
    except Skipped as reason:
        return "SKIPPED", str(reason)
    except Failed as error:
        return "FAILED", str(error)
    except Exception as error:  # a check that breaks must not hide the others
        return "FAILED", f"{type(error).__name__}: {error}"


def main() -> int:
    """Makes all checks; the exit code."""
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        Path(folder).chmod(0o755)  # what is mounted from here is read by other users
        bench = Bench(Path(folder), copy_checkout(Path(folder) / "checkout"))
        for each in CHECKS:
            t0 = time.monotonic()
            good = {name for name, result in results.items() if result == "OK"}
            result, told = result_of(each, bench, good)
            results[each.make.__name__] = result
            print(f"{result:8}{each.title} ({time.monotonic() - t0:.0f} s)\n        {told}", flush=True)
    for image in (BARE, FULL, TRAINING, f"{IMAGE}:latest", f"{IMAGE}:prometheus"):
        subprocess.run(["docker", "rmi", "--force", image], capture_output=True)
    counts = {kind: list(results.values()).count(kind) for kind in ("OK", "SKIPPED", "FAILED")}
    print(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return 1 if counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
