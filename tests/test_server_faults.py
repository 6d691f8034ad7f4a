"""The server as a process: the commands of its guide, signals, other checkpoints, clients that vanish, and mistakes at the start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from config import ROOT, ServeConfig
from server import greeting
from server.passwords import HASHES
from tests.live import save, wait_until

MISSION = {
    "LLM_API_KEYS": "prod-key-1,prod-key-2",
    "LLM_USERS": "admin:admin123",
    "LLM_JWT_SECRET": "replace-with-strong-secret",
    "LLM_RATE_LIMIT_RPM": "60",
}
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not on this machine")
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system has no /proc")


class Server:
    """`serve.py` in a process of its own, on a free port, with its output in files."""

    def __init__(self, folder: Path, *flags: str, code: Path = ROOT, **environ: str):
        self.folder, self.out, self.err = folder, folder / "out.log", folder / "err.log"
        self.environ = environment(folder, **environ)
        with open(self.out, "w") as out, open(self.err, "w") as err:
            command = [sys.executable, str(code / "serve.py"), "--port", "0", *flags]
            self.process = subprocess.Popen(command, env=self.environ, cwd=folder, stdout=out, stderr=err)
        self.wait(lambda: "answers" in self.out.read_text())
        self.url = self.out.read_text().split()[0]
        self.client = httpx.Client(base_url=self.url, timeout=20)

    def wait(self, condition, seconds: float = 60) -> None:
        def met() -> bool:
            assert self.process.poll() is None, self.err.read_text()
            return condition()

        wait_until(met, seconds)

    def ready(self) -> Server:
        self.wait(lambda: self.client.get("/readyz").status_code == 200)
        return self

    def generate(self, **sent) -> httpx.Response:
        return self.client.post("/v1/generate", json={"prompt": "Once", "max_new_tokens": 4, **sent})

    def stop(self, sent: int = signal.SIGTERM) -> int:
        self.process.send_signal(sent)
        return self.process.wait(30)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


def environment(folder: Path, **environ: str) -> dict[str, str]:
    """Only our own settings, and one thread."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("LLM_")}
    ours = {"LLM_CHECKPOINT": str(folder / "best_model.pt"), "LLM_DTYPE": "float32", "LLM_RATE_LIMIT_RPM": "0"}
    return {**kept, "OMP_NUM_THREADS": "1", **ours, **environ}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(block_size=64)


@pytest.fixture(scope="module")
def start(tmp_path_factory, model) -> Iterator:
    """Starts servers of a model that was never trained; they end with the tests."""
    with contextlib.ExitStack() as stack:

        def go(*flags: str, checkpoint: bool = True, code: Path = ROOT, **environ: str) -> Server:
            folder = tmp_path_factory.mktemp("served")
            if checkpoint:
                save(folder / "best_model.pt", model)
            return stack.enter_context(contextlib.closing(Server(folder, *flags, code=code, **environ)))

        yield go


@pytest.fixture(scope="module")
def mission(start) -> Server:
    return start(**MISSION).ready()


@pytest.fixture(scope="module")
def plain(start) -> Server:
    """A server with nothing set, which serves long texts too."""
    return start(LLM_MAX_NEW_TOKENS="1000000").ready()


def shell(command: str, server: Server) -> dict:
    """What a command of a page prints, run by the shell with the server's environment."""
    command = command.replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl -s ")
    done = subprocess.run(["sh", "-c", command], env=server.environ, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- the commands of the guide, to the letter

POST = 'curl -X POST http://127.0.0.1:8000/v1/generate -H "Content-Type: application/json" '
LOGIN = (
    'curl -X POST http://127.0.0.1:8000/oauth/token -H "Content-Type: application/x-www-form-urlencoded" '
    '-d "username=admin&password=admin123"'
)
WITH_TOKEN = (
    POST + '-H "Authorization: Bearer <access_token>" '
    """-d '{"prompt":"Hello","max_new_tokens":64,"session_id":"demo-session"}'"""
)
WITH_KEY = POST + """-H "X-API-Key: prod-key-1" -d '{"prompt":"Hello","max_new_tokens":64}'"""
OPEN = POST + """-d '{"prompt":"Hello","max_new_tokens":64}'"""


@needs_curl
def test_the_commands_of_the_guide_with_credentials(mission):
    token = shell(LOGIN, mission)["access_token"]
    answer = shell(WITH_TOKEN.replace("<access_token>", token), mission)
    assert (answer["session_id"], answer["model"]["id"]) == ("demo-session", "tiny@7")
    assert answer["usage"]["completion_tokens"] <= 64
    assert shell(WITH_KEY, mission)["text"]
    assert shell(OPEN, mission)["error"]["code"] == "invalid_api_key"


@needs_curl
def test_the_command_of_the_guide_without_credentials(plain):
    assert shell(OPEN, plain)["finish_reason"] in ("stop", "length")


@needs_curl
def test_the_first_lines_say_how_to_call(mission, plain, start):
    users = start(LLM_USERS="eva o'n:pa:s$s w,b:c")
    for server in (mission, plain, users.ready()):
        told = server.out.read_text()
        assert told.startswith(f"{server.url} answers, in a browser too; the model is being loaded.\n")
        assert "tiny, step 7, validation loss 2.5000" in told
        commands = told[told.index("curl" if "TOKEN=" not in told else "TOKEN=") : told.index("tiny, step")]
        assert shell(commands, server)["model"]["id"] == "tiny@7"
        assert not [secret for secret in ("prod-key", "admin123", "pa:s") if secret in told]
    assert "LLM_JWT_SECRET is an example's" in mission.out.read_text()


def test_the_command_for_a_user_with_a_hash_asks_for_the_password():
    users = {"LLM_USERS": f"a+b:{HASHES.hash('pw')},c:d"}
    told = greeting.how_to_call(ServeConfig(users=users["LLM_USERS"]), SimpleNamespace(
        random_key="", keys=(), passwords=SimpleNamespace(hashes={"a+b": "", "c": ""})
    ), "http://here")  # fmt: skip
    assert '"password=PASSWORD"' in told and "--data-urlencode username=a+b" in told


def test_the_log_is_json_and_holds_no_secret(mission):
    mission.client.post("/oauth/token", data={"username": "admin", "password": "wrong-password"})
    headers = {"X-API-Key": "prod-key-2", "x-request-id": "mine"}
    mission.client.post("/v1/generate?key=in-a-query", json={"prompt": "my private thing"}, headers=headers)
    mission.client.get("/v1/sessions/private-name", headers=headers)
    mission.wait(lambda: "sessions" in mission.err.read_text())
    lines = [json.loads(line) for line in mission.err.read_text().splitlines()]
    [told] = [line for line in lines if line.get("request_id") == "mine" and line["method"] == "POST"]
    assert told.keys() == {
        "time", "level", "event", "request_id", "method", "path", "status", "ms", "caller", "prompt_tokens",
        "completion_tokens", "finish_reason",
    }  # fmt: skip
    assert (told["path"], told["status"], told["caller"][:4]) == ("/v1/generate", 200, "key:")
    for secret in ("prod-key", "admin123", "wrong-password", "private", "in-a-query", "replace-with"):
        assert secret not in mission.err.read_text()
    assert not [line for line in lines if line.get("path") in ("/healthz", "/readyz")]


# ---- clients that vanish


def vanish(url: str, stream: bool) -> None:
    """Asks for an endless text, sees it begin, and is gone."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "Once", "max_new_tokens": 1_000_000, "ignore_eos": True, "stream": stream})
    with socket.create_connection((host, int(port)), timeout=5) as wire:
        head = f"POST /v1/generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        wire.sendall(f"{head}\r\n\r\n{body}".encode())
        if stream:
            assert wire.recv(15) == b"HTTP/1.1 200 OK"


def size(process: subprocess.Popen) -> tuple[int, float]:
    """Open descriptors, and megabytes of memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return len(os.listdir(f"/proc/{process.pid}/fd")), int(resident.split()[1]) / 1024


@needs_proc
@pytest.mark.parametrize("times", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_vanish_leave_nothing_behind(plain, times):
    for _ in range(40):
        vanish(plain.url, True)
    before = size(plain.process)
    for number in range(times):
        vanish(plain.url, number % 3 > 0)
    idle = "llm_num_requests_running 0.0\n"
    plain.wait(lambda: idle in plain.client.get("/metrics").text, 5)
    plain.wait(lambda: size(plain.process)[0] <= before[0], 5)
    assert size(plain.process)[1] < before[1] + 10
    assert plain.generate().status_code == 200


# ---- signals


def test_a_stopped_server_finishes_what_runs(start):
    server = start(LLM_MAX_NEW_TOKENS="100000").ready()
    with (
        httpx.Client(base_url=server.url) as other,
        other.stream(
            "POST",
            "/v1/generate",
            json={"prompt": "Once", "max_new_tokens": 1500, "ignore_eos": True, "stream": True},
            timeout=60,
        ) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        server.wait(lambda: server.client.get("/readyz").status_code == 503, 1)
        assert "shutting down" in server.client.get("/readyz").text
        assert server.client.get("/healthz").status_code == 200
        refused = server.generate()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert "retry-after" in refused.headers
        told = [line for line in lines if line]
    assert told[-1] == "data: [DONE]"
    assert json.loads(told[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 1500
    assert server.process.wait(10) == 0
    assert "Traceback" not in server.err.read_text()


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["deadline", "twice"])
def test_what_does_not_finish_is_cut_off(start, signals):
    seconds = "0.5" if len(signals) == 1 else "60"
    server = start(LLM_MAX_NEW_TOKENS="10000000", LLM_DRAIN_SECONDS=seconds).ready()
    answers = []
    sent = {"max_new_tokens": 10_000_000, "ignore_eos": True}
    thread = threading.Thread(target=lambda: answers.append(server.generate(**sent)))
    thread.start()
    server.wait(lambda: "llm_num_requests_running 1.0" in httpx.get(f"{server.url}/metrics").text)
    t0 = time.monotonic()
    for each in signals:
        server.process.send_signal(each)
        time.sleep(0.3)
    assert server.process.wait(10) == 0
    assert time.monotonic() - t0 < 5
    thread.join(5)
    if seconds == "0.5":
        assert answers[0].status_code == 503
    assert "Traceback" not in server.err.read_text()


@pytest.mark.parametrize("enough", [True, False], ids=["finished", "cut off"])
def test_a_stream_of_a_model_that_was_replaced_has_the_same_time_to_finish(start, model, enough):
    server = start(LLM_MAX_NEW_TOKENS="10000000", LLM_DRAIN_SECONDS="60" if enough else "0.5").ready()
    tokens = 1500 if enough else 10_000_000
    sent = {"prompt": "Once", "max_new_tokens": tokens, "ignore_eos": True, "stream": True}
    with httpx.Client(timeout=60) as other, other.stream("POST", f"{server.url}/v1/generate", json=sent) as answer:
        lines = answer.iter_lines()
        next(lines)
        save(server.folder / "best_model.pt", model, step=8)
        assert server.client.post("/v1/admin/reload").json()["model"]["step"] == 8
        server.process.send_signal(signal.SIGTERM)
        told = [line for line in lines if line]
    if enough:
        assert told[-1] == "data: [DONE]"
        assert json.loads(told[-2].removeprefix("data: "))["model"]["step"] == 7
    else:
        assert json.loads(told[-1].removeprefix("data: "))["error"]["code"] == "not_ready"
    assert server.process.wait(10) == 0
    assert "Traceback" not in server.err.read_text()


def copy_of_the_code(folder: Path) -> Path:
    """What the server runs, to be changed without touching the checkout, or whoever serves from it."""
    for name in ("server", "inference", "training", "multimodal"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    return folder


def test_a_developers_server_tells_as_much_and_its_tokens_outlive_a_change_of_the_code(start, tmp_path):
    code = copy_of_the_code(tmp_path)
    server = start("--dev", code=code, **MISSION, LLM_DRAIN_SECONDS="0.5", LLM_MAX_NEW_TOKENS="10000000").ready()
    told = server.out.read_text()
    assert "LLM_JWT_SECRET is an example's" in told and f"curl {server.url}/v1/generate" in told
    assert f"{server.url}/docs" in told and server.client.get("/docs").status_code == 200
    token = server.client.post("/oauth/token", data={"username": "admin", "password": "admin123"}).json()["access_token"]
    os.utime(code / "server" / "addresses.py")
    server.wait(lambda: server.out.read_text().count("tiny, step 7") == 2)
    headers = {"Authorization": f"Bearer {token}"}
    assert server.client.get("/v1/sessions", headers=headers).status_code == 200
    sent = {"prompt": "Once", "max_new_tokens": 10_000_000, "ignore_eos": True, "stream": True}
    with httpx.Client(timeout=20) as other, other.stream("POST", f"{server.url}/v1/generate", json=sent, headers=headers) as answer:
        lines = answer.iter_lines()
        next(lines)
        server.process.send_signal(signal.SIGTERM)
        last = [line for line in lines if line][-1]
    assert "shutting down" in last, "it drains, like any other"
    assert server.process.wait(10) == 0
    assert "Traceback" not in server.err.read_text()


def test_a_server_that_is_still_loading_stops_at_once(start):
    server = start()
    assert server.stop() == 0
    assert "Traceback" not in server.err.read_text()


# ---- other checkpoints


def test_a_reload_swaps_the_model_without_dropping_a_request(start, model):
    server = start().ready()
    answers, done = [], threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            while not done.is_set():
                answers.append(client.post("/v1/generate", json={"prompt": "Once", "max_new_tokens": 40}))

    def answered_by(step: int) -> bool:
        return any(answer.status_code == 200 and answer.json()["model"]["step"] == step for answer in list(answers))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    server.wait(lambda: answered_by(7))
    save(server.folder / "best_model.pt", model, step=8)
    server.process.send_signal(signal.SIGHUP)
    server.wait(lambda: answered_by(8), 20)
    assert server.client.get("/readyz").json()["model"]["id"] == "tiny@8"
    save(server.folder / "best_model.pt", model, step=9)
    assert server.client.post("/v1/admin/reload").json()["model"]["step"] == 9
    server.wait(lambda: answered_by(9))
    done.set()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["model"]["step"] for answer in answers} == {7, 8, 9}
    assert "tiny, step 8" in server.out.read_text()
    (server.folder / "best_model.pt").write_bytes(b"damaged")
    answer = server.client.post("/v1/admin/reload")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "reload_failed")
    assert server.generate().json()["model"]["step"] == 9


def test_each_new_checkpoint_is_followed_and_those_before_can_still_be_asked(start, tiny_model):
    """A run writes better and better models; who asks meanwhile is always answered, and each model answers to its name."""
    server = start(checkpoint=False, LLM_FOLLOW="yes")
    answers, done = [], threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            while not done.is_set():
                answers.append(client.post("/v1/generate", json={"prompt": "Once", "max_new_tokens": 40}).status_code)

    def said(model: str = "default") -> str:
        answer = server.generate(model=model, temperature=0, max_new_tokens=20).json()
        assert model in ("default", answer["model"]["id"])
        return answer["text"]

    texts = {}
    thread = threading.Thread(target=ask)
    for step in range(1, 5):
        save(server.folder / "best_model.pt", tiny_model(block_size=64, seed=step), step=step)
        name = f"tiny@{step}"
        server.wait(lambda name=name: server.client.get("/readyz").json().get("model", {}).get("id") == name)
        if step == 1:
            thread.start()
        texts[name] = said()
        assert [each["id"] for each in server.client.get("/v1/models").json()["data"]] == list(texts)[::-1]
    done.set()
    thread.join()
    assert set(answers) == {200}
    assert {name: said(name) for name in texts} == texts and len(set(texts.values())) == 4
    answer = server.generate(model="tiny@9")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "tiny@2" in answer.json()["error"]["message"]
    (server.folder / "best_model.pt").write_bytes(b"damaged")
    server.wait(lambda: "is damaged" in server.err.read_text())
    assert said() == texts["tiny@4"]
    assert server.stop() == 0


def test_without_a_checkpoint_it_lives_and_says_what_it_waits_for(start, model):
    server = start(checkpoint=False)
    server.wait(lambda: "there is no checkpoint at" in server.client.get("/readyz").text)
    assert server.client.get("/readyz").status_code == 503
    assert server.client.get("/healthz").status_code == 200
    for answer in (server.generate(), server.generate(stream=True), server.client.get("/v1/models")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert "retry-after" in answer.headers
    answer = server.client.post("/v1/admin/reload")
    assert answer.status_code == 409 and answer.json()["error"]["message"].startswith("there is still no model: there is no checkpoint at")
    (server.folder / "best_model.pt").write_bytes(b"damaged")
    server.process.send_signal(signal.SIGHUP)
    server.wait(lambda: "is damaged" in server.client.get("/readyz").text)
    save(server.folder / "best_model.pt", model)
    server.process.send_signal(signal.SIGHUP)
    assert server.ready().generate().status_code == 200


# ---- mistakes at the start


def refusal(tmp_path: Path, *flags: str, **environ: str) -> str:
    """The sentence of a server that does not start."""
    command = [sys.executable, str(ROOT / "serve.py"), *flags]
    environ = environment(tmp_path, **environ)
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


def test_a_taken_port_is_one_clear_sentence(tmp_path, plain):
    port = plain.url.rpartition(":")[2]
    assert f"at port {port} (Address already in use): pass another --host or --port" in refusal(
        tmp_path, "--port", port
    )


def test_other_mistakes_are_too(tmp_path):
    assert "did you mean --host?" in refusal(tmp_path, "--hots", "x")
    assert "cannot listen on no.such.host" in refusal(tmp_path, "--host", "no.such.host.invalid")
    assert "LLM_SLOTS is 'many'" in refusal(tmp_path, LLM_SLOTS="many")
    assert "LLM_ALLOW_OPEN=yes" in refusal(tmp_path, "--host", "0.0.0.0", "--port", "0")
    (tmp_path / "sessions.db").write_text("Once upon a time" * 100)
    assert "sessions.db cannot be used (file is not a database)" in refusal(tmp_path, "--port", "0")
    assert (tmp_path / "sessions.db").read_text().startswith("Once")


def test_a_client_that_stops_reading_gives_its_model_back(monkeypatch):
    """Its generator is closed, though nothing that was sent is ever taken."""
    from server import stream

    monkeypatch.setattr(stream, "STALLED", 0.05)
    closed = []

    async def events():
        try:
            while True:
                yield {"text": "more"}
        finally:
            closed.append(True)

    async def main():
        taken = []

        async def send(message):
            taken.append(message)
            if len(taken) > 2:
                await asyncio.Event().wait()

        async def receive():
            await asyncio.Event().wait()

        await asyncio.wait_for(stream.EventStream(events())({"type": "http"}, receive, send), 5)

    asyncio.run(main())
    assert closed == [True]
