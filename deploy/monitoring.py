"""A real Prometheus, for `deploy/verify.py`: the repository's configuration, servers under load, every query of the dashboard."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml

from config import ROOT
from deploy.containers import Server, expect, free_port, run, wait

CONFIG = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "llm.json"
VARIABLES = {"$__rate_interval": "30s", "$instance": ".*"}


def configured(folder: Path, targets: list[str], token: Path) -> Path:
    """The repository's configuration, with other targets and the token elsewhere, and nothing else changed."""
    shutil.copytree(CONFIG, folder)
    file = folder / "prometheus.yml"
    text = file.read_text()
    for old, new in (('"server:8000"', json.dumps(targets)[1:-1]), ("/run/secrets/metrics_token", str(token))):
        expect(old in text, f"prometheus.yml has no {old}")
        text = text.replace(old, new)
    file.write_text(text)
    return file


@contextlib.contextmanager
def prometheus(binary: Path, config: Path) -> Iterator[Prometheus]:
    """Prometheus with a configuration, for as long as the context lasts."""
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--config.file={config}", f"--storage.tsdb.path={config.parent / 'data'}", f"--web.listen-address={address}"]
    with open(config.parent / "prometheus.log", "w") as log:
        process = subprocess.Popen([binary, *flags], stdout=log, stderr=log)
    try:
        asked = Prometheus(f"http://{address}")
        wait(lambda: httpx.get(f"{asked.url}/-/ready").status_code == 200, 30, "Prometheus")
        yield asked
    finally:
        process.terminate()
        process.wait(20)


class Prometheus:
    """What a Prometheus knows."""

    def __init__(self, url: str):
        self.url = url

    def get(self, path: str, **asked: str) -> dict:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=asked, timeout=20).json()
        expect(answer["status"] == "success", f"{asked}: {answer.get('error')}")
        return answer["data"]

    def query(self, text: str) -> list[dict]:
        """The series that a query gives now.

        Raises:
            Failed: when it is no query.
        """
        return self.get("query", query=text)["result"]

    def number(self, text: str) -> float:
        """The one value of a query; not a number where there is none."""
        found = self.query(text)
        return float(found[0]["value"][1]) if found else float("nan")


def panels() -> dict[str, list[str]]:
    """The queries of the dashboard by the panel's title, as Grafana would send them."""
    found: dict[str, list[str]] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            found.setdefault(panel["title"], []).append(text)
    return found


def alerts() -> list[dict]:
    return [rule for group in yaml.safe_load((CONFIG / "rules.yml").read_text())["groups"] for rule in group["rules"]]


def selectors(expression: str) -> set[str]:
    """The series that an expression reads: names with their labels."""
    return set(re.findall(r"\b(?:up|llm_\w+|process_\w+)(?:\{[^}]*\})?", re.sub(r"\b(by|on) \([^)]*\)", "", expression)))


@contextlib.contextmanager
def load(*servers: Server, callers: int = 4) -> Iterator[None]:
    """Callers who stream, chat, score and come back with a session, for as long as the context lasts."""
    ended = threading.Event()

    def call(server: Server, number: int) -> None:
        with server.client() as client:
            while not ended.is_set():
                session = {"prompt": "Once there was a fox. ", "max_new_tokens": 60, "session_id": f"s{number}"}
                client.post("/v1/generate", json={**session, "stream": True, "ignore_eos": True})
                client.post("/v1/generate", json={"prompt": "Once " * 40, "max_new_tokens": 20})
                client.post("/v1/score", json={"text": "Once upon a time"})
                chat = [{"role": "user", "content": "Hello"}]
                client.post("/v1/chat/completions", json={"model": "default", "messages": chat, "max_tokens": 20})
                ended.wait(0.2)

    threads = [threading.Thread(target=call, args=(each, n)) for each in servers for n in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def token_is_asked_for(server: Server, token: str) -> None:
    """From another machine the figures want the token."""
    url = f"http://{server.target}/metrics"
    expect(httpx.get(url).status_code == 401, "/metrics was given to somebody without the token")
    expect(httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 200, "the token opens nothing")


def dashboard_has_data(source: Prometheus) -> str:
    """Every query of the dashboard gives a number; a server without a model has no share of anything, which is no number."""
    empty, count = [], 0
    for title, queries in panels().items():
        for text in queries:
            count += 1
            values = [float(each["value"][1]) for each in source.query(text)]
            if all(map(math.isnan, values)):
                empty.append(f"{title}: {text} gave {values}")
    expect(not empty, "; ".join(empty))
    return f"{count} queries in {len(panels())} panels, all with data"


def rules_have_data(source: Prometheus) -> str:
    """Prometheus evaluates every rule, and every series that a rule reads is there."""
    wait(lambda: all(rule["health"] == "ok" for rule in evaluated(source)), 40, "the rules")
    read = {text for rule in alerts() for text in selectors(rule["expr"])}
    missing = sorted(text for text in read if not source.query(text))
    expect(not missing, f"no data for {', '.join(missing)}")
    wait(lambda: states(source).get("LlmNotReady") == "pending", 40, "LlmNotReady of the server without a model")
    calm = {name for name, state in states(source).items() if state == "inactive"}
    expect(set(states(source)) - calm <= {"LlmNotReady", "LlmErrors"}, f"raised without need: {states(source)}")
    [told] = [each["annotations"] for rule in evaluated(source) for each in rule["alerts"] if rule["name"] == "LlmNotReady"]
    expect("{{" not in told["summary"], told)
    return f"{len(alerts())} rules read {len(read)} series, all there; the server without a model raises LlmNotReady"


def evaluated(source: Prometheus) -> list[dict]:
    return [rule for group in source.get("rules")["groups"] for rule in group["rules"]]


def states(source: Prometheus) -> dict[str, str]:
    return {rule["name"]: rule["state"] for rule in evaluated(source)}


def promtool(binary: Path, *words: str) -> str:
    return run(binary, *words, folder=CONFIG)


def under_load(source: Prometheus, seconds: float) -> None:
    """Waits until rates can be told, while callers are at it."""
    time.sleep(seconds)
    wait(lambda: len(source.query("llm_ready")) == len(source.query("up")) == 2, 30, "both servers' figures")
