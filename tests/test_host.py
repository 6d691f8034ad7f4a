"""Which models are kept when others take their places."""

from __future__ import annotations

import pytest

from inference import host as hosts
from tests.live import load, save, wait_until


@pytest.mark.parametrize("limit", ["EARLIER", "EARLIER_BYTES"])
def test_the_oldest_model_makes_room(tiny_model, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(hosts, "GRACE", 0.1)
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
