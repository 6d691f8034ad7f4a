"""What can be told of the deployment without Docker: its files agree with each other, with the server and with the documents.

The rest is `make verify-deploy`, which builds and runs the image.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

import serve
from config import ROOT, ServeConfig, UserError, variable
from deploy import containers, monitoring, verify
from server.auth import Gate
from server.errors import ApiError
from server.greeting import first_lines
from server.metrics import Metrics
from tests.live import load, save, wait_until

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "cicd.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BOTH = pytest.mark.parametrize(("door", "file"), [("serve", "Dockerfile"), ("train_cli", "deploy/train.Dockerfile")], ids=["server", "training"])
RULES = {rule["alert"]: rule for rule in monitoring.alerts()}
GUIDE = (ROOT / "docs" / "DEPLOYMENT.md").read_text()
QUERIES = [query for queries in monitoring.panels().values() for query in queries]
QUERIES += [rule["expr"] for rule in RULES.values()]
# What the compose file settles itself, or what has no place in a container.
SETTLED = {"LLM_LOG_DIR", "LLM_METRICS_TOKEN_FILE", "LLM_METRICS_TOKEN", "LLM_METRICS_PORT", "LLM_SESSION_DB", "LLM_RANDOM_KEY", "LLM_USERS_FILE"}


# ---- a key for who has none


def test_a_random_key_stands_in_where_there_is_no_other():
    gates = [Gate(ServeConfig(random_key=True, host="0.0.0.0")) for _ in range(2)]
    assert not gates[0].open
    assert gates[0].identify(gates[0].random_key, None).kind == "key"
    for wrong in (gates[1].random_key, "", None):
        with pytest.raises(ApiError):
            gates[0].identify(wrong, None)
    assert len(gates[0].random_key) >= 32


@pytest.mark.parametrize("settings", [{"api_keys": ("mine",)}, {"users": "a:b"}, {"allow_open": True}], ids=str)
def test_no_random_key_beside_what_was_asked_for(settings):
    config = ServeConfig(random_key=True, **settings)
    gate = Gate(config)
    assert gate.random_key == ""
    assert gate.open == ("allow_open" in settings)
    assert "key of this run" not in first_lines(config, gate, 8000)


def test_the_printed_key_is_the_first_thing_said_and_opens_the_server(tmp_path, tiny_model):
    """The process: its first two lines suffice to call it, and its log does not hold the key."""
    save(tmp_path / "best_model.pt", tiny_model(block_size=64))
    kept = {name: text for name, text in os.environ.items() if not name.startswith("LLM_")}
    environ = {**kept, "LLM_RANDOM_KEY": "yes", "LLM_CHECKPOINT": "best_model.pt", "LLM_LOG_LEVEL": "DEBUG", "OMP_NUM_THREADS": "1"}
    out, err = tmp_path / "out", tmp_path / "err"
    with open(out, "w") as told, open(err, "w") as log:
        command = [sys.executable, str(ROOT / "serve.py"), "--host", "127.0.0.1", "--port", "0"]
        process = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=told, stderr=log)
    try:
        wait_until(lambda: "tiny, step 7" in out.read_text(), 60)
        key, call, *_ = out.read_text().splitlines()
        secret = re.search(r"key of this run is (\S+)", key)[1]
        if shutil.which("curl"):
            done = subprocess.run(["sh", "-c", call], capture_output=True, text=True, timeout=30)
            assert json.loads(done.stdout)["model"]["id"] == "tiny@7"
        assert out.read_text().count(secret) == 2
    finally:
        process.terminate()
        assert process.wait(30) == 0
    assert secret not in err.read_text()


# ---- the token that the server shares with Prometheus


def test_the_metrics_token_may_stand_in_a_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("a-token\n")
    assert ServeConfig.from_env({"LLM_METRICS_TOKEN_FILE": str(file)}).metrics_token == "a-token"
    with pytest.raises(UserError, match="both set"):
        ServeConfig(metrics_token_file=str(file), metrics_token="another")
    for text, wrong in (("", "is empty"), (" \n", "is empty"), ("top secret", "LLM_METRICS_TOKEN holds a space")):
        file.write_text(text)
        with pytest.raises(UserError, match=wrong):
            ServeConfig(metrics_token_file=str(file))
    with pytest.raises(UserError, match="cannot be read"):
        ServeConfig(metrics_token_file=str(tmp_path / "none"))


# ---- the image


def reached(start: str = "serve") -> set[Path]:
    """The files of the house that a front door imports, whenever it does."""
    found, waiting = set(), [ROOT / f"{start}.py"]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                path = ROOT.joinpath(*name.split("."))
                waiting += [each for each in (path.with_suffix(".py"), path / "__init__.py") if each.exists()]
    return found


def copied(file: str = "Dockerfile") -> list[str]:
    """What the last stage takes from this folder."""
    text = (ROOT / file).read_text()
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", text[text.rindex("\nFROM ") :], re.M)
    return [word for line in lines for word in line.split()]


@BOTH
def test_the_image_has_all_that_its_door_imports(door, file):
    taken = copied(file)
    for each in reached(door):
        name = str(each.relative_to(ROOT))
        there = name in taken or f"{name.split('/')[0]}/" in taken or ("/" not in name and "*.py" in taken)
        assert there, f"{door}.py reaches {name}: COPY it in {file}"


def test_the_image_has_the_packages_that_the_server_imports():
    [row] = re.findall(r"grep -E '\^\((.+?)\)=='", DOCKERFILE)
    installed = set(row.split("|"))
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.M))
    assert installed <= pinned
    modules = {"python-jose": "jose", "prometheus-client": "prometheus_client", "pillow": "PIL"}
    known = {modules.get(name, name) for name in installed} | {"starlette", "pydantic_core"}  # FastAPI's and pydantic's own
    lazy = {"tokenizers"}  # only where a vocabulary is trained
    rooms = {path.stem for path in ROOT.iterdir()}
    for file in reached():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            outside = {name.split(".")[0] for name in names} - rooms - set(sys.stdlib_module_names) - {"__future__"}
            assert outside <= known | lazy, f"{file.name} imports {outside - known}: add it to the Dockerfile's list"


@pytest.mark.parametrize(("file", "ignored"), [("Dockerfile", ".dockerignore"), ("deploy/train.Dockerfile", "deploy/train.Dockerfile.dockerignore")])
def test_what_is_copied_is_not_ignored(file, ignored):
    lines = (ROOT / ignored).read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    for name in [*copied(file), "requirements.txt"]:
        assert name.rstrip("/") in allowed or (name.endswith(".py") and "*.py" in allowed), name
    assert lines[0] == "*"


def test_the_image_is_started_as_its_checks_expect():
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11-slim$", DOCKERFILE, re.M)
    assert re.search(r"^USER [1-9]\d*:\d+$", DOCKERFILE, re.M)
    health = json.loads(re.search(r"HEALTHCHECK .*?CMD (\[.+?\])$", DOCKERFILE, re.S | re.M)[1])
    compile(health[2], "HEALTHCHECK", "exec")
    assert "'/healthz'" in health[2] and "8000" in health[2]
    start = json.loads(re.search(r"^CMD (\[.+\])$", DOCKERFILE, re.M)[1])
    config, dev = serve.settings(start)
    assert (config.host, config.port, dev) == ("0.0.0.0", 8000, False)
    variables = dict(re.findall(r"\b(LLM_\w+)=(\S+)", DOCKERFILE))
    assert ServeConfig.from_env(variables).random_key
    assert str(Path(variables["LLM_SESSION_DB"]).parent) in re.search(r"^VOLUME (.+)$", DOCKERFILE, re.M)[1]


# ---- compose


def test_every_variable_reaches_the_server():
    given = {name for name in SERVICES["server"]["environment"] if name.startswith("LLM_")}
    assert given | SETTLED == {variable(item.name) for item in dataclasses.fields(ServeConfig)} - {"LLM_HOST", "LLM_PORT"}


def test_what_is_mounted_is_there():
    made = {"./checkpoints", "./logs"}  # by make obs-up
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert source in made or (ROOT / source).is_dir(), f"{name}: {volume}"
                assert volume.endswith(":ro"), f"{name} may write into {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {volume}"


def test_every_service_is_locked_up_and_reached_from_here_only():
    for name, service in SERVICES.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service["ports"]), name
    ports = [re.search(r":-(\d+)\}:(\d+)$", port).groups() for service in SERVICES.values() for port in service["ports"]]
    assert ports == [("8000", "8000"), ("9090", "9090"), ("3000", "3000")]


def test_stopping_leaves_time_to_finish():
    seconds = int(SERVICES["server"]["stop_grace_period"].removesuffix("s"))
    assert seconds >= ServeConfig().drain_seconds + 2 * serve.FLUSH


def test_server_and_prometheus_read_the_same_token():
    inside = SERVICES["server"]["environment"]["LLM_METRICS_TOKEN_FILE"]
    [job] = yaml.safe_load((monitoring.CONFIG / "prometheus.yml").read_text())["scrape_configs"]
    assert inside == job["authorization"]["credentials_file"] == "/run/secrets/metrics_token"
    for name in ("server", "prometheus"):
        assert SERVICES[name]["secrets"] == ["metrics_token"]
    made = COMPOSE["secrets"]["metrics_token"]["file"].removeprefix("./")
    assert f"\n{made}:\n" in (ROOT / "Makefile").read_text()
    assert subprocess.run(["git", "check-ignore", "-q", made], cwd=ROOT).returncode in (0, 128)  # 128: no repository


def test_services_are_called_by_their_names():
    [job] = yaml.safe_load((monitoring.CONFIG / "prometheus.yml").read_text())["scrape_configs"]
    [target] = job["static_configs"][0]["targets"]
    [source] = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    for address in (target, source["url"].removeprefix("http://")):
        name, port = address.split(":")
        assert SERVICES[name]["ports"][0].endswith(f":{port}")
    [provider] = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/llm.yml").read_text())["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not on this machine")
def test_the_token_is_made_once(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    token, make = tmp_path / "deploy/secrets/metrics_token", ["make", "-s", "deploy/secrets/metrics_token"]
    assert subprocess.run([*make, "PYTHON=false"], cwd=tmp_path, capture_output=True).returncode
    assert not token.exists(), "what failed would be taken for done"
    texts = []
    for _ in range(2):
        subprocess.run(make, cwd=tmp_path, check=True, capture_output=True, **({"umask": 0o077} if os.name == "posix" else {}))
        texts.append(token.read_text().strip())
    assert texts[0] == texts[1] and re.fullmatch(r"[0-9a-f]{64}", texts[0])
    if os.name == "posix":
        assert token.parent.stat().st_mode & 0o077 == 0
        assert token.stat().st_mode & 0o444 == 0o444, "containers read it as users of their own"


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_a_container_that_could_not_start_is_taken_away(tmp_path, monkeypatch):
    """Docker keeps one whose port is taken, for example."""
    docker, told = tmp_path / "docker", tmp_path / "told"
    docker.write_text(f'#!/bin/sh\necho "$*" >>{told}\n[ "$1" != run ] || {{ echo "port is taken" >&2; exit 125; }}\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(containers.Failed, match="port is taken"), containers.serving("image"):
        pass
    asked = told.read_text().splitlines()
    name = re.search(r"--name (\S+)", asked[0])[1]
    assert asked[0].startswith("run ") and asked[-1] == f"rm --force --volumes {name}"


# ---- dashboard and alerts


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_model) -> dict[str, set[str]]:
    """The labels of every series that the server tells, by its name."""
    host = load(save(tmp_path_factory.mktemp("model") / "best_model.pt", tiny_model()))
    metrics = Metrics(host)
    metrics.count("/v1/generate", "POST", 200)
    found: dict[str, set[str]] = {"up": set()}
    for family in parse(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    host.drain(0)
    return found


@pytest.mark.parametrize("query", QUERIES)
def test_what_is_queried_is_exported(query, exported):
    read = monitoring.selectors(query)
    assert read
    for name, labels in (re.fullmatch(r"(\w+)(?:\{(.*)\})?", text).groups() for text in read):
        assert name in exported, f"the server exports no {name}"
        for label in re.findall(r"(\w+)(?:=~|!~|!=|=)", labels or ""):
            assert label in exported[name] | {"job", "instance"}, f"{name} has no label {label}"


def test_legends_name_labels(exported):
    for panel in json.loads(monitoring.DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            read = monitoring.selectors(target["expr"].replace("$", ""))
            labels = set().union(*(exported[re.match(r"\w+", text)[0]] for text in read))
            assert named <= labels | {"instance"}, panel["title"]


def test_the_length_of_the_line_is_told(tmp_path, tiny_model):
    host = load(save(tmp_path / "best_model.pt", tiny_model()), max_waiting=17)
    assert b"\nllm_max_waiting 17.0\n" in generate_latest(Metrics(host).registry)
    host.drain(0)


def test_the_dashboard_is_current_and_its_panels_do_not_overlap():
    spec = importlib.util.spec_from_file_location("make_dashboard", ROOT / "deploy/grafana/make_dashboard.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look it up
    spec.loader.exec_module(made)
    assert made.FILE.read_text() == made.text(), "run python deploy/grafana/make_dashboard.py"
    panels, taken = made.dashboard()["panels"], set()
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= made.WIDTH, panel["title"]
        taken |= cells


def test_every_alert_says_what_to_do_and_is_tested_and_documented():
    tests = (monitoring.CONFIG / "rules_test.yml").read_text()
    documented = set(re.findall(r"^\| `(Llm\w+)` \|", GUIDE, re.M))
    assert documented == set(RULES)
    for name, rule in RULES.items():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f'alertname="{name}"' in tests, f"{name} has no unit test"
        named = set(re.findall(r"\bLLM_\w+", rule["annotations"]["description"]))
        assert named <= {variable(item.name) for item in dataclasses.fields(ServeConfig)}


# ---- delivery


def test_the_workflow_runs_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    steps = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    made = {word for step in steps for word in re.findall(r"\bmake (?:-s )?([a-z-]+)", step.get("run", ""))}
    assert {"test", "verify-deploy", "image", "image-push", "image-sbom", "image-digest"} <= made
    assert made <= targets


def test_every_push_and_every_pull_request_is_tested():
    events = WORKFLOW[True]  # YAML 1.1 reads `on` so
    assert events == {"pull_request": None, "push": None}, "no branch, tag or path is left out"
    assert [name for name, job in WORKFLOW["jobs"].items() if "if" in job] == ["publish"]


def test_actions_are_pinned_and_jobs_may_do_no_more_than_they_need():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    text = (ROOT / ".github" / "workflows" / "cicd.yml").read_text()
    assert all(re.fullmatch(r"\S+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use) for use in re.findall(r"uses: (.+)", text))
    for name, job in WORKFLOW["jobs"].items():
        assert ("permissions" in job) == (name == "publish")
    publish = WORKFLOW["jobs"]["publish"]
    assert publish["if"] == "github.event_name == 'push' && (github.ref == 'refs/heads/main' || startsWith(github.ref, 'refs/tags/v'))"
    assert {"test", "deploy"} <= set(publish["needs"])
    assert publish["permissions"] == {"contents": "read", "packages": "write", "id-token": "write", "attestations": "write"}


@pytest.mark.skipif(not shutil.which("make"), reason="make is not on this machine")
def test_an_image_is_pushed_by_its_version():
    def told(*words: str, **environ: str) -> subprocess.CompletedProcess:
        return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environ})

    build = told("image", "VERSION=v1", "TORCH_INDEX=https://example.org").stdout
    assert "--build-arg TORCH_INDEX=https://example.org" in build and "BASE_IMAGE" not in build
    assert "-t my-llm:latest -t my-llm:v1 ." in build
    push = told("image-push", "VERSION=v1", REGISTRY="ghcr.io/Me").stdout
    assert "for tag in v1 latest" in push and "docker push ghcr.io/me/my-llm:$tag" in push
    refused = subprocess.run(["make", "image-push", "VERSION=v1", "REGISTRY="], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode and "REGISTRY=ghcr.io/you" in refused.stderr


def test_the_guides_name_every_target_of_deployment():
    text = (ROOT / "Makefile").read_text()
    part = text[text.index("##@ Deployment") : text.index("##@ Tidying up")]
    for target in re.findall(r"^([a-z-]+):.*## ", part, re.M):
        assert f"make {target}" in GUIDE + (ROOT / "docs" / "CLUSTERS.md").read_text(), target


# ---- the table of make verify-deploy


def test_a_failed_check_is_told_and_stops_those_that_need_it(tmp_path):
    def breaks(bench: verify.Bench) -> str:
        raise verify.Failed("it broke")

    bench = verify.Bench(tmp_path, tmp_path)
    first = verify.CHECKS[0]
    assert verify.result_of(verify.Check("a", lambda _: "seen", ()), bench, set()) == ("OK", "seen")
    assert verify.result_of(verify.Check("a", breaks, ()), bench, set()) == ("FAILED", "it broke")
    assert verify.result_of(verify.Check("a", lambda _: str(1 / 0), ()), bench, set())[0] == "FAILED"
    needing = verify.Check("b", lambda _: "seen", (first.make.__name__,))
    assert verify.result_of(needing, bench, set()) == ("SKIPPED", f"needs: {first.title}")
    assert verify.result_of(needing, bench, {first.make.__name__}) == ("OK", "seen")


def test_checks_need_what_is_checked_before_them():
    known: set[str] = set()
    for each in verify.CHECKS:
        assert set(each.needs) <= known, each.title
        known.add(each.make.__name__)


def test_without_docker_the_way_to_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    [engine] = [each for each in verify.CHECKS if each.make.__name__ == "engine"]
    result, told = verify.result_of(engine, verify.Bench(tmp_path, tmp_path), set())
    assert result == "FAILED" and "apt install" in told
