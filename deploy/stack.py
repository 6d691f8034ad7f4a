"""All services at once, for `deploy/verify.py`: the compose file as this machine can run it, and whether it works."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import yaml

from config import ROOT
from deploy import monitoring
from deploy.containers import ENV_KEY, IMAGE, Failed, Skipped, expect, free_port, is_free, outside_address, run, wait

USUAL = {"server": 8000, "prometheus": 9090}  # where they listen on a network that is this machine's


def command() -> str:
    """Compose version 2, or Debian's version 1, which is installed where that may be done.

    Raises:
        Skipped: when there is none.
    """
    if not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return "docker compose"
    if not shutil.which("docker-compose") and shutil.which("apt-get") and os.geteuid() == 0:
        with contextlib.suppress(Failed):
            run("apt-get", "install", "--yes", "--no-install-recommends", "docker-compose")
    if not shutil.which("docker-compose"):
        raise Skipped("no compose here: apt install docker-compose-v2, docker-compose-plugin or docker-compose")
    return "docker-compose"


def ports(network: str) -> dict[str, int]:
    """Ports of this machine for the services.

    Raises:
        Skipped: when the network is this machine's, and one of the usual ports is taken.
    """
    if not network:
        return {name: free_port() for name in (*USUAL, "grafana")}
    if taken := [port for port in USUAL.values() if not is_free(port)]:
        raise Skipped(f"port {taken[0]} of this machine is taken, and with NETWORK={network} there is no other")
    return USUAL


def content(image: str, network: str, prometheus: str) -> dict:
    """The compose file with the image of the server that is checked.

    Args:
        network: host puts all services on it, where they find each other by this machine's address; Grafana is left out.
        prometheus: the image that stands in for Prometheus' own there.
    """
    found = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = found["services"]
    services["server"]["image"] = image
    if network:
        del found["name"], services["grafana"], found["volumes"]["grafana"]  # Debian's compose knows no name
        services["server"]["build"]["network"] = network
        services["prometheus"]["image"] = prometheus
        for service in services.values():
            del service["ports"]
            service |= {"network_mode": network, "extra_hosts": [f"server:{outside_address()}"]}
    return found


def prometheus_image(folder: Path, binary: Path, network: str) -> str:
    """An image that is started and stores its figures as Prometheus' own."""
    folder.mkdir()
    shutil.copy(binary, folder / "prometheus")
    lines = [
        f"FROM {os.environ.get('BASE_IMAGE') or 'python:3.11-slim'}",
        "COPY prometheus /bin/prometheus",
        "RUN install -d -o 65534 -g 65534 /prometheus",
        "USER 65534:65534",
        'ENTRYPOINT ["/bin/prometheus"]',
    ]
    (folder / "Dockerfile").write_text("\n".join(lines))
    name = f"{IMAGE}:prometheus"
    run("docker", "build", "--network", network, "--tag", name, folder, DOCKER_BUILDKIT="1")
    return name


def works(compose: list[str], folder: Path, ports: dict[str, int]) -> str:
    """The server answers to the key of .env, Prometheus reads it with the shared token, and both are locked up."""
    url = f"http://127.0.0.1:{ports['server']}"
    wait(lambda: httpx.get(f"{url}/readyz").status_code == 200, 90, "the server of compose")
    asked = {"prompt": "Once", "max_new_tokens": 8}
    answer = httpx.post(f"{url}/v1/generate", json=asked, headers={"X-API-Key": ENV_KEY}, timeout=60)
    expect(answer.status_code == 200, answer.text)
    source = monitoring.Prometheus(f"http://127.0.0.1:{ports['prometheus']}")
    wait(lambda: source.number('up{job="llm"}') == source.number("llm_ready") == 1, 60, "Prometheus to reach the server")
    expect(len(monitoring.evaluated(source)) == len(monitoring.alerts()), "not all rules are loaded")
    for service in ("server", "prometheus"):
        name = run(*compose, "ps", "--quiet", service, folder=folder).strip()
        host = json.loads(run("docker", "inspect", "--format", "{{json .HostConfig}}", name))
        locks = host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"]
        expect(locks == (True, ["ALL"], ["no-new-privileges:true"]), f"{service}: {locks}")
    return "the server answers to the key in .env, Prometheus reads it with the shared token, both are locked up"


def grafana_works(port: int) -> str:
    """Grafana has the dashboard, and reaches Prometheus."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("admin", "admin"), timeout=20) as client:
        wait(lambda: client.get("/api/health").status_code == 200, 90, "Grafana")
        found = client.get("/api/dashboards/uid/llm")
        expect(found.status_code == 200, found.text)
        data = client.get("/api/datasources/proxy/uid/prometheus/api/v1/query", params={"query": "llm_ready"})
        expect(data.status_code == 200 and data.json()["data"]["result"], data.text)
    return "Grafana shows the dashboard"
