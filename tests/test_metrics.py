"""The metrics as Prometheus reads them: from a real server, right after known requests."""

from __future__ import annotations

import asyncio
import gc
import threading
import urllib.request
import weakref
from itertools import pairwise

import httpx
import openai
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from config import ServeConfig, UserError
from serve import create_app
from server import metrics
from server.metrics_routes import own_port
from tests.live import KEY, load, save, serving, wait_until

VLLMS = {
    "num_requests_running": "gauge", "num_requests_waiting": "gauge", "kv_cache_usage_ratio": "gauge",
    "prompt_tokens": "counter", "generation_tokens": "counter", "request_success": "counter",
    "time_to_first_token_seconds": "histogram", "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram", "request_queue_time_seconds": "histogram",
    "request_prefill_time_seconds": "histogram", "request_decode_time_seconds": "histogram",
}  # fmt: skip
TOKEN = "metrics-token"
FAR = ("203.0.113.9", 4711)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def host(folder, tiny_model):
    host = load(save(folder / "best_model.pt", tiny_model(block_size=64)), slots=2)
    yield host
    host.drain(1)


@pytest.fixture(scope="module")
def address(host, folder):
    with serving(host, folder, max_new_tokens=100_000) as address:
        yield address


@pytest.fixture
def complete(address):
    """Asks for a completion of eight tokens, unless told otherwise."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=20) as client:
        sent = {"model": "default", "prompt": "Once", "max_tokens": 8, "extra_body": {"ignore_eos": True}}
        yield lambda **more: client.completions.create(**{**sent, **more})


@pytest.fixture
def scrape(address):
    """The samples by name and labels: `llm_http_requests_total/GET//metrics/200`, labels in their order by name."""

    def get() -> dict[str, float]:
        return samples(httpx.get(f"{address}/metrics").text)

    return get


def samples(text: str) -> dict[str, float]:
    every = [sample for family in parse(text) for sample in family.samples]
    return {"/".join([each.name, *(value for _, value in sorted(each.labels.items()))]): each.value for each in every}


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What differs, without the prefix."""
    changes = {name.removeprefix("llm_"): value - before.get(name, 0) for name, value in after.items()}
    return {name: value for name, value in changes.items() if value}


# ---- what is there


def test_the_exposition_parses_and_has_vllms_names(address):
    answer = httpx.get(f"{address}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in parse(answer.text)}
    for name, kind in VLLMS.items():
        assert families[f"llm_{name}"].type == kind
        assert families[f"llm_{name}"].documentation
    assert {"process_resident_memory_bytes", "process_open_fds", "llm_build_info", "llm_model_info"} <= families.keys()


def test_openmetrics_is_spoken_to_who_asks_for_it(address):
    answer = httpx.get(f"{address}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "llm_prompt_tokens" in {family.name for family in parse_openmetrics(answer.text)}


def test_the_model_and_the_build_are_told(address):
    families = {family.name: family for family in parse(httpx.get(f"{address}/metrics").text)}
    [model], [build] = families["llm_model_info"].samples, families["llm_build_info"].samples
    told = {"model": "tiny@7", "run": "tiny", "step": "7", "val_loss": "2.5", "dtype": "float32", "quantized": "False"}
    assert told.items() <= model.labels.items()
    assert int(model.labels["parameters"]) > 1000
    assert set(build.labels) == {"python", "torch", "fastapi", "uvicorn"}


def test_tokens_faster_than_vllms_buckets_can_be_told_apart(address):
    [family] = [
        each for each in parse(httpx.get(f"{address}/metrics").text) if each.name == "llm_inter_token_latency_seconds"
    ]
    bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
    assert {0.0005, 0.001, 0.002, 0.005, 0.01} <= bounds


# ---- what a request changes


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_counted_once_and_rightly(complete, scrape, stream):
    before = scrape()
    list(complete(stream=stream))
    wait_until(lambda: scrape()["llm_request_success_total/length"] > before["llm_request_success_total/length"])
    change = grown(before, scrape())
    assert change["prompt_tokens_total"] == 5
    assert change["generation_tokens_total"] == 8
    assert change["request_success_total/length"] == 1
    assert change["http_requests_total/POST//v1/completions/200"] == 1
    assert change["inter_token_latency_seconds_count"] == 7
    for name in (
        "time_to_first_token",
        "e2e_request_latency",
        "request_queue_time",
        "request_prefill_time",
        "request_decode_time",
    ):
        assert change[f"{name}_seconds_count"] == 1
    parts = [change[f"request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode")]
    assert sum(parts) == pytest.approx(change["e2e_request_latency_seconds_sum"], abs=1e-6)
    assert sum(parts[:2]) == pytest.approx(change["time_to_first_token_seconds_sum"], abs=1e-6)
    assert change["inter_token_latency_seconds_sum"] == pytest.approx(parts[2], abs=2e-3)
    assert change["engine_steps_total"] >= 8
    assert change["memory_read_bytes_total"] > 8 * 1000
    assert 0 < change["engine_busy_seconds_total"] < 10
    assert "request_success_total/cancelled" not in change


def test_ends_are_told_apart(complete, scrape):
    before = scrape()
    complete(logit_bias={"256": 100}, extra_body={})
    complete(logit_bias={"65": 100}, stop="A")
    change = grown(before, scrape())
    assert change["request_success_total/stop"] == 2
    assert "request_success_total/length" not in change


def test_running_and_waiting_are_told_while_it_happens(complete, scrape):
    before = scrape()
    streams = [complete(stream=True, max_tokens=100_000) for _ in range(2)]
    for stream in streams:
        next(iter(stream))
    waiting = threading.Thread(target=lambda: list(complete(stream=True, max_tokens=1)))
    waiting.start()
    wait_until(lambda: scrape()["llm_num_requests_waiting"] == 1)
    now = scrape()
    assert now["llm_num_requests_running"] == 2
    assert 0 < now["llm_kv_cache_usage_ratio"] <= 1
    assert now["llm_generation_tokens_total"] > before["llm_generation_tokens_total"], "before they are done"
    for stream in streams:
        stream.close()
    waiting.join(10)
    wait_until(lambda: scrape()["llm_num_requests_running"] == 0)
    change = grown(before, scrape())
    assert change["request_success_total/cancelled"] == 2
    assert change["request_success_total/length"] == 1
    assert scrape()["llm_num_requests_waiting"] == scrape()["llm_kv_cache_usage_ratio"] == 0


def test_the_machines_limit_is_there_to_compare_with(scrape):
    assert scrape()["llm_memory_read_limit_bytes_per_second"] > 1e8


def test_without_a_model_the_rest_is_told(host, scrape, monkeypatch):
    assert scrape()["llm_ready"] == 1
    monkeypatch.setattr(host, "reason", "the server is shutting down.")
    now = scrape()
    assert now["llm_ready"] == 0
    assert not [name for name in now if name.startswith("llm_model_info")]
    assert "llm_generation_tokens_total" in now


def test_what_the_machine_reads_at_best_is_never_less_than_what_the_engine_read(host, monkeypatch, complete, scrape):
    """The trial at the start is slow where others use the machine, and the share of it in use would exceed 1 for ever."""
    name = "llm_memory_read_limit_bytes_per_second"
    monkeypatch.setattr(host, "memory_rate", 1.0)
    monkeypatch.setattr(metrics, "REACH", 0.02)
    before = scrape()
    for _ in range(3):
        complete(max_tokens=100)
    after = scrape()
    read, busy = (after[each] - before[each] for each in ("llm_memory_read_bytes_total", "llm_engine_busy_seconds_total"))
    assert after[name] >= read / busy / 2 > 1.0, "the last moments may not have been measured yet"
    monkeypatch.setattr(host, "memory_rate", 1e15)
    assert scrape()[name] == 1e15


# ---- another model


def test_counters_go_on_over_a_change_of_model(host, folder, tiny_model, complete, scrape):
    """A text that the old engine still writes is counted like any other, and then the old engine is gone."""
    old = weakref.ref(host.engine)
    stream = complete(stream=True, max_tokens=100_000)
    next(iter(stream))
    figures = [scrape()]
    save(folder / "best_model.pt", tiny_model(block_size=64, seed=1), step=8)
    change = threading.Thread(target=host.load)
    change.start()
    wait_until(lambda: host.engine is not old())
    complete()
    figures.append(scrape())
    assert figures[-1]["llm_num_requests_running"] == 1, "on the old engine"
    stream.close()
    change.join(20)
    figures.append(scrape())
    wait_until(lambda: gc.collect() >= 0 and old() is None)
    complete()
    figures.append(scrape())
    for before, after in pairwise(figures):
        assert not {name for name, change in grown(before, after).items() if change < 0 and is_counter(name)}
    whole = grown(figures[0], figures[-1])
    assert (whole["request_success_total/cancelled"], whole["request_success_total/length"]) == (1, 2)
    assert whole["prompt_tokens_total"] == 15
    assert whole["generation_tokens_total"] > 2 * 8, "those of the old engine as well"
    assert any("tiny@8" in name for name in figures[-1])


def is_counter(name: str) -> bool:
    """Whether a sample may only rise."""
    return "_total" in name or name.split("/")[0].endswith(("_count", "_sum", "_bucket"))


def test_two_apps_in_one_process_count_apart(host, address, complete, scrape, folder):
    with serving(host, folder) as other:
        complete()
        assert samples(httpx.get(f"{other}/metrics").text)["llm_request_success_total/length"] == 0


# ---- what must not be in it


def test_no_secret_prompt_or_path_is_told(address, complete):
    complete(prompt="xyzzy prompt", user="alice")
    headers = {"X-API-Key": KEY}
    for path in ("/v1/sessions/private-name", "/nowhere/private-name?key=private-name", "/v1/models/private-name"):
        httpx.get(f"{address}{path}", headers=headers)
    httpx.request("BREW", f"{address}/v1/models", headers=headers)
    text = httpx.get(f"{address}/metrics").text
    for secret in ("xyzzy", "alice", KEY, "private-name", "BREW", "key:"):
        assert secret not in text
    told = samples(text)
    assert told["llm_http_requests_total/GET//v1/sessions/{session_id}/404"] == 1
    assert told["llm_http_requests_total/GET//v1/models/{model}/404"] == 1
    assert told["llm_http_requests_total/GET/unknown/404"] == 1
    assert any(name.startswith("llm_http_requests_total/other/") for name in told)


# ---- who may read it


def ask(host, folder, client: tuple[str, int], headers: dict[str, str] | None = None, **settings) -> httpx.Response:
    """Asks an app for its metrics from some address."""
    app = create_app(ServeConfig(session_db=str(folder / "asked.db"), **settings), host)

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as asker:
            return await asker.get("/metrics", headers=headers)

    return asyncio.run(get())


@pytest.mark.parametrize("client", [("127.0.0.1", 1), ("::1", 1), ("127.8.8.8", 1)], ids=str)
def test_this_machine_may_read_them(host, folder, client):
    assert ask(host, folder, client).status_code == 200
    assert ask(host, folder, client, metrics_token=TOKEN).status_code == 200


def test_elsewhere_nobody_may_without_a_token(host, folder):
    answer = ask(host, folder, FAR)
    assert answer.status_code == 403
    assert "LLM_METRICS_TOKEN" in answer.json()["error"]["message"]


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer "])
def test_elsewhere_a_wrong_token_is_refused(host, folder, given):
    answer = ask(host, folder, FAR, {"Authorization": given} if given else None, metrics_token=TOKEN)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_elsewhere_the_token_opens(host, folder):
    assert ask(host, folder, FAR, {"Authorization": f"Bearer {TOKEN}"}, metrics_token=TOKEN).status_code == 200


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via"])
def test_a_proxy_on_this_machine_is_no_excuse(host, folder, header):
    assert ask(host, folder, ("127.0.0.1", 1), {header: "203.0.113.9"}).status_code == 403


@pytest.mark.parametrize(("keys", "status"), [((), 403), ((KEY,), 200)], ids=["open", "keys"])
def test_a_name_of_the_internet_reads_them_only_where_there_are_keys(host, folder, keys, status):
    """As SECURITY.md says: a page that points its own name at this machine (DNS rebinding)."""
    assert ask(host, folder, ("127.0.0.1", 1), {"Host": "evil.example.org"}, api_keys=keys).status_code == status


def test_with_a_port_of_their_own_they_are_not_on_the_servers(host, folder):
    assert ask(host, folder, ("127.0.0.1", 1), metrics_port=9100).status_code == 404


def test_a_port_of_their_own(host, folder):
    app = create_app(ServeConfig(session_db=str(folder / "asked.db"), metrics_port=9100), host)

    def status(port: int, **headers: str) -> int:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=headers)
            ) as answer:
                assert "llm_ready" in samples(answer.read().decode())
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    with own_port(app.state.metrics.registry, "127.0.0.1", 0) as port:
        assert status(port, Forwarded="for=203.0.113.9") == 200
        with (
            pytest.raises(UserError, match="LLM_METRICS_PORT"),
            own_port(app.state.metrics.registry, "127.0.0.1", port),
        ):
            pass
    with own_port(app.state.metrics.registry, "127.0.0.1", 0, TOKEN) as port:
        assert status(port) == 200
        assert status(port, Forwarded="for=203.0.113.9") == 401
        assert status(port, Forwarded="for=203.0.113.9", Authorization=f"Bearer {TOKEN}") == 200
