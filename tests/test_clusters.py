"""What is under deploy/ for clusters: each file is what its format says, and agrees with the server and the trainer."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import train_cli
from config import ROOT, ServeConfig, TrainConfig, variable

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
MANIFESTS = ["serve.yaml", "storage.yaml", "train.yaml"]
posix = pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")


def documents(name: str) -> dict[str, dict]:
    """The objects of a file, by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((KUBERNETES / name).read_text())}


SERVE, TRAIN = documents("serve.yaml"), documents("train.yaml")


def pod(workload: dict) -> dict:
    return workload["spec"]["template"]["spec"]


def environ(container: dict) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


# ---- Kubernetes


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("version", ["1.29", "latest"])
def test_manifests_are_what_kubernetes_says(name, version):
    known = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    version = known.latest_version() if version == "latest" else version
    for each in documents(name).values():
        known.validate(each, version, strict=True)


def test_a_wrong_manifest_would_be_found():
    known = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    wrong = {**TRAIN["Job"], "spec": {**TRAIN["Job"]["spec"], "paralelism": 2}}
    with pytest.raises(known.ValidationError):
        known.validate(wrong, known.latest_version(), strict=True)


def test_a_server_has_time_to_finish_its_texts():
    """preStop, then what LLM_DRAIN_SECONDS allows, and the fifteen seconds that docs/DEPLOYMENT.md asks for."""
    [container] = pod(SERVE["Deployment"])["containers"]
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    drains = int(environ(container)["LLM_DRAIN_SECONDS"])
    assert waits > 0
    assert pod(SERVE["Deployment"])["terminationGracePeriodSeconds"] >= waits + drains + 15


def test_a_training_has_time_to_save():
    [container] = pod(TRAIN["Job"])["containers"]
    told = int(environ(container)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert pod(TRAIN["Job"])["terminationGracePeriodSeconds"] > told


def test_variables_are_the_servers_and_keys_come_from_a_secret():
    [container] = pod(SERVE["Deployment"])["containers"]
    ours = {variable(name) for name in ServeConfig.__dataclass_fields__}
    assert set(environ(container)) - {"OMP_NUM_THREADS"} <= ours
    ServeConfig.from_env(environ(container))
    assert container["envFrom"] == [{"secretRef": {"name": "llm-keys"}}]
    for path in KUBERNETES.glob("*.yaml"):
        assert all(each and each.get("kind") != "Secret" for each in yaml.safe_load_all(path.read_text())), path


@pytest.mark.parametrize("workload", [SERVE["Deployment"], TRAIN["Job"]], ids=["serve", "train"])
def test_pods_may_do_as_little_as_possible(workload):
    spec = pod(workload)
    assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
    for container in spec["containers"]:
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted == {each["name"] for each in spec["volumes"]}


def test_everything_about_the_server_means_its_pods():
    labels = SERVE["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [SERVE["Service"]["spec"]["selector"], SERVE["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]]
    selectors += [SERVE[kind]["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")]
    for selector in selectors:
        assert selector.items() <= labels.items()
    target = SERVE["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", SERVE["Deployment"]["metadata"]["name"])
    [container] = pod(SERVE["Deployment"])["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert str(ports["metrics"]) == environ(container)["LLM_METRICS_PORT"]
    assert SERVE["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    used = [SERVE["Service"]["spec"]["ports"][0]["targetPort"], container["readinessProbe"]["httpGet"]["port"]]
    assert set(used) == {"http"} and ports["http"] == ServeConfig.port


def test_probes_ask_what_the_server_answers():
    from server.operations import router

    paths = {route.path for route in router.routes}
    [container] = pod(SERVE["Deployment"])["containers"]
    asked = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    assert set(asked.values()) <= paths


def test_the_autoscaler_the_adapter_and_the_server_mean_one_metric():
    from prometheus_client import generate_latest

    from inference.host import Host
    from server.metrics import Metrics

    [metric] = SERVE["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    [rule] = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert re.match(r"\w+", rule["seriesQuery"])[0] == name
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    assert f"# TYPE {name} gauge".encode() in generate_latest(Metrics(Host("none.pt")).registry)


def test_the_pods_of_a_training_find_each_other():
    job, service = TRAIN["Job"], TRAIN["Service"]["metadata"]["name"]
    first = f"{job['metadata']['name']}-0.{pod(job)['subdomain']}"
    [script] = pod(job)["containers"][0]["args"]
    assert pod(job)["subdomain"] == service
    assert script.count(first) == 2
    words = shlex.split(script.replace("\\\n", " "))
    told = dict(pairwise(words))
    assert told["--rdzv_endpoint"] == f"{first}:{TRAIN['Service']['spec']['ports'][0]['port']}"
    nodes = job["spec"]["completions"]
    assert told["--nnodes"] == str(nodes) == str(job["spec"]["parallelism"])
    [container] = pod(job)["containers"]
    assert told["--nproc_per_node"] == str(container["resources"]["limits"]["nvidia.com/gpu"])


def test_what_the_templates_train_parses(capsys):
    """The flags behind deploy/train.sh, in the manifest and in the comments."""
    [script] = pod(TRAIN["Job"])["containers"][0]["args"]
    texts = [script, (DEPLOY / "train.sh").read_text(), (DEPLOY / "slurm" / "train.sbatch").read_text()]
    for text in texts:
        for line in re.findall(r"(?:train\.sh|train\.sbatch) (--preset .*)", text):
            given = train_cli.parse_training("", shlex.split(line))
            assert set(given) - {"list_presets"} <= set(TrainConfig.__dataclass_fields__)
    with pytest.raises(SystemExit):
        train_cli.parse_training("", ["--no_such_flag"])


def test_images_are_those_that_the_guide_builds():
    guide = (ROOT / "docs" / "CLUSTERS.md").read_text()
    for workload in (SERVE["Deployment"], TRAIN["Job"]):
        [container] = pod(workload)["containers"]
        assert container["image"] in guide


# ---- shell


def scripts() -> dict[str, str]:
    [inline] = pod(TRAIN["Job"])["containers"][0]["args"]
    files = (DEPLOY / "train.sh", DEPLOY / "slurm" / "train.sbatch")
    return {path.name: path.read_text() for path in files} | {"train.yaml": "#!/bin/sh\n" + inline}


@pytest.mark.parametrize("name", ["train.sh", "train.sbatch", "train.yaml"])
def test_shellcheck_has_no_findings(tmp_path, name):
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    script = tmp_path / name
    script.write_text(scripts()[name])
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@posix
@pytest.mark.parametrize(
    ("state", "goes_on"),
    [
        ("", False),
        ("a/last.pt", True),
        ("a/last.pt.new", True),
        ("a/previous.pt", True),
        ("a/step_00000500.pt", True),
        ("a/step_00000500.dcp/content.pt", True),
        ("a/last_00000500.dcp/content.pt", True),
        ("a/best_model.pt", False),
        ("b/last.pt", False),
        ("a/last_00000500.dcp.tmp/content.pt", False),
        ("a/last.pt.new.4711.tmp", False),
        ("a/step_00000500.pt.4711.tmp", False),
    ],
)
def test_a_training_begins_or_goes_on(tmp_path, state, goes_on):
    """deploy/train.sh adds --resume where there is something to resume; an echo stands in for Python."""
    if state:
        (tmp_path / state).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / state).touch()
    env = {**os.environ, "RUN": "a", "OUT_DIR": str(tmp_path), "PYTHON": "echo"}
    done = subprocess.run([DEPLOY / "train.sh", "--data", "a text"], capture_output=True, text=True, env=env)
    wanted = f"train_cli.py --run a --out_dir {tmp_path}{' --resume' if goes_on else ''} --data a text --no-progress\n"
    assert done.stdout == wanted, done.stderr


@posix
def test_a_training_without_a_name_is_refused():
    env = {name: value for name, value in os.environ.items() if name != "RUN"}
    done = subprocess.run([DEPLOY / "train.sh"], capture_output=True, text=True, env=env)
    assert done.returncode and "set RUN to the name of the run" in done.stderr


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=0 "$@"; done
exit "$CODE"
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo first-node && echo second-node
[ "$1" = requeue ] && echo "requeued $2"
"""
PYTHON = """#!/bin/bash
echo "rank $RANK of $WORLD_SIZE, $LOCAL_RANK here, at $MASTER_ADDR:$MASTER_PORT: $*"
"""


@posix
@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not on this machine")
@pytest.mark.parametrize("code", [0, 2, 3, 143])
def test_a_batch_job_starts_the_ranks_and_comes_back_only_after_a_save(tmp_path, code):
    """With stand-ins for srun, scontrol and Python; only a run that was stopped and saved goes back to the queue."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "RUN": "a", "OUT_DIR": str(tmp_path / "out"), "CODE": str(code),
        "PYTHON": "python", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "nodes[1-2]", "SLURM_JOB_ID": "12345",
        "SLURM_NTASKS": "2",
    }  # fmt: skip
    command = ["bash", DEPLOY / "slurm" / "train.sbatch", "--data", "a text", "--fsdp"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == code, done.stderr
    flags = f"train_cli.py --run a --out_dir {tmp_path / 'out'} --data a text --fsdp --no-progress"
    for rank in (0, 1):
        assert f"rank {rank} of 2, 0 here, at first-node:22345: {flags}" in done.stdout
    assert ("requeued 12345" in done.stdout) == (code == 143)


# ---- two hosts


@pytest.mark.slow
def test_two_hosts_train_like_one():
    """Network namespaces: the losses of one host, with the whole model on each and in shards; a host that leaves, one that dies."""
    done = subprocess.run([sys.executable, DEPLOY / "two_hosts.py"], capture_output=True, text=True, timeout=900)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 6
