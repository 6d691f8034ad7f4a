"""Which models are kept when others take their places, and that none goes while somebody uses it."""

from __future__ import annotations

import contextlib
import threading
import time

import httpx
import pytest
import torch

from inference import host as hosts
from inference.host import Host
from inference.request import NotReady, Request, Settings
from tests.live import KEY, load, save, serving, wait_until


@pytest.mark.parametrize("limit", ["EARLIER", "EARLIER_BYTES"])
def test_the_oldest_model_makes_room(tiny_model, tmp_path, monkeypatch, limit):
    host = load(save(tmp_path / "best_model.pt", tiny_model(), step=0), keep_earlier=True)
    one = host.engine
    for step in range(1, 6):
        save(tmp_path / "best_model.pt", tiny_model(), step=step)
        if step == 3:
            kept = next(iter(host.earlier.values()))
            monkeypatch.setattr(hosts, limit, {"EARLIER": 3, "EARLIER_BYTES": 3 * kept.memory()}[limit])
        host.load()
    assert [engine.model_id for engine in host.engines()] == ["tiny@5", "tiny@4", "tiny@3", "tiny@2"]
    wait_until(lambda: one.draining, 10)
    host.load()
    assert [engine.model_id for engine in host.engines()] == ["tiny@5", "tiny@4", "tiny@3", "tiny@2"], "the same step again"
    host.drain(1)
    assert all(engine.draining for engine in [host.current, *host.earlier.values()])


def test_without_following_none_is_kept(tiny_model, tmp_path):
    host = load(save(tmp_path / "best_model.pt", tiny_model(), step=0))
    save(tmp_path / "best_model.pt", tiny_model(), step=1)
    host.load()
    assert [engine.model_id for engine in host.engines()] == ["tiny@1"]
    host.drain(1)


def test_the_stamp_changes_with_the_checkpoint(tiny_model, tmp_path):
    path = tmp_path / "best_model.pt"
    host = hosts.Host(str(path))
    assert host.stamp() is None
    save(path, tiny_model())
    first = host.stamp()
    assert first == host.stamp() is not None
    save(path, tiny_model())
    assert host.stamp() not in (None, first)


# ---- engines that somebody holds


def ask(engine) -> Request:
    request = Request([65], Settings(max_new_tokens=1), lambda piece: None)
    engine.submit(request)
    return request


@pytest.fixture
def replaced(tiny_model, tmp_path):
    """A host whose engine was replaced while somebody held it; gives the host, the engine, and what lets go of it."""
    host = load(save(tmp_path / "best_model.pt", tiny_model(), step=0))
    with contextlib.ExitStack() as lease:
        old = lease.enter_context(host.lease())
        save(tmp_path / "best_model.pt", tiny_model(), step=1)
        host.load()
        yield host, old, lease.close
    host.drain(1)


def test_an_engine_that_was_replaced_takes_requests_until_nobody_holds_it(replaced):
    host, old, let_go = replaced
    wait_until(lambda: old.draining)
    request = ask(old)
    wait_until(lambda: request.finished)
    assert host.retiring == {old}
    let_go()
    wait_until(lambda: not host.retiring)
    with pytest.raises(NotReady):
        ask(old)


def test_a_model_is_leased_by_its_name(replaced):
    host, _, _ = replaced
    with host.lease("tiny@1") as named, host.lease() as current:
        assert named is current is host.engine
    with pytest.raises(KeyError), host.lease("tiny@0"):
        pass
    host.drain(0)
    with pytest.raises(NotReady), host.lease():
        pass


def test_a_drain_waits_for_engines_that_were_replaced_too_but_not_for_ever(replaced):
    host, old, let_go = replaced
    drain = threading.Thread(target=host.drain, args=[60])
    drain.start()
    wait_until(lambda: host.draining)
    request = ask(old)
    wait_until(lambda: request.finished)
    assert (request.finish_reason, drain.is_alive()) == ("length", True)
    let_go()
    drain.join(5)
    assert not drain.is_alive()


def test_the_time_of_a_drain_ends_who_still_holds_an_engine(replaced):
    host, old, _ = replaced
    endless = Request([65], Settings(max_new_tokens=10**9, ignore_eos=True), lambda piece: None)
    old.submit(endless)
    t0 = time.monotonic()
    host.drain(0.2)
    assert time.monotonic() - t0 < 5
    assert endless.finish_reason == "cancelled"
    with pytest.raises(NotReady):
        ask(old)


@pytest.mark.parametrize("change", ["reload", "drain"])
def test_a_long_score_is_finished_whatever_happens_to_its_model(tiny_model, tmp_path, monkeypatch, change):
    """It asks the engine for one window after another, with the same engine for all of them."""
    host = load(save(tmp_path / "best_model.pt", tiny_model(), step=0))
    old, read, windows = host.engine, host.engine.read, []

    def slowly(slots) -> None:
        windows.append(None)
        time.sleep(0.02)
        read(slots)

    monkeypatch.setattr(old, "read", slowly)
    answers = []
    with serving(host, tmp_path) as address:

        def score() -> None:
            answers.append(httpx.post(f"{address}/v1/score", json={"text": "x" * 800}, headers={"X-API-Key": KEY}, timeout=20))

        asking = threading.Thread(target=score)
        asking.start()
        wait_until(lambda: len(windows) > 2)
        save(tmp_path / "best_model.pt", tiny_model(seed=1), step=1)
        host.load() if change == "reload" else host.drain(20)
        asking.join(20)
    [answer] = answers
    assert answer.status_code == 200, answer.text
    assert (answer.json()["tokens"], answer.json()["model"]["step"]) == (800, 0)
    assert len(windows) > 40
    host.drain(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_fits_its_room_in_the_dtype_that_it_has(tiny_model, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(hosts, "cache_dtype", lambda *_: dtype)
    monkeypatch.setattr("inference.engine.cache_dtype", lambda *_: dtype)
    model = tiny_model()
    each = 2 * model.config.n_layer * model.config.n_kv_head * model.config.block_size * model.config.head_dim
    monkeypatch.setattr(hosts, "CACHE_BYTES", 6 * 4 * each)
    host = Host(str(save(tmp_path / "best_model.pt", model)), "cpu", "bfloat16")
    host.load()
    assert len(host.engine.scheduler.slots) == (6 if dtype == torch.float32 else 12)
    assert host.engine.cache.bytes <= hosts.CACHE_BYTES
    host.drain(1)
