"""What Prometheus reads: counters, gauges and histograms under vLLM's names with our prefix.

Rates are left to Prometheus. The share of the machine's memory bandwidth in use, for one, is
`rate(llm_memory_read_bytes_total[1m]) / llm_memory_read_limit_bytes_per_second`.
No label names a user or a session, and none holds text of a prompt.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from inference.engine import Engine, Stats
from inference.host import Host
from inference.request import NotReady, Piece, Request
from server.bridge import Generation, joined

REASONS = ("stop", "length", "cancelled", "deadline", "error")
VERSIONS = ("torch", "fastapi", "uvicorn")
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# Seconds. vLLM's buckets, and finer ones below them: a small model writes a token in a millisecond.
FIRST_TOKEN = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10)  # fmt: skip
BETWEEN_TOKENS = (.0005, .001, .002, .003, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5)  # fmt: skip
WHOLE = (.005, .01, .025, .05, .1, .2, .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)  # fmt: skip

REACH = 1.0  # seconds of work over which the engines' use of the memory is measured: shorter ones end within a step

# What an engine counts since its start: the attribute of its Stats, the name here, and what it says.
TOTALS = {
    "generation_tokens": ("llm_generation_tokens", "Tokens written."),
    "steps": ("llm_engine_steps", "Steps of the engine: a decode of all running requests, a chunk of a prompt, or both."),
    "busy_seconds": ("llm_engine_busy_seconds", "Time in steps; the rest the engine waited for requests."),
    "bytes_read": ("llm_memory_read_bytes", "Weights, keys and values that the steps read."),
}  # fmt: skip


class Metrics:
    """Everything one app counts, in a registry of its own, so that several apps can live in one process."""

    def __init__(self, host: Host):
        disable_created_metrics()  # when each series began: a fifth of the page, and nobody asks
        self.registry = CollectorRegistry()
        self.engines = EngineCollector(host)
        self.registry.register(self.engines)
        ProcessCollector(registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"llm_{name}_seconds", text, buckets=buckets, registry=self.registry)

        self.first_token = histogram("time_to_first_token", "From a request's arrival to its first token.", FIRST_TOKEN)
        self.between = histogram("inter_token_latency", "Between two tokens of a request.", BETWEEN_TOKENS)
        self.whole = histogram("e2e_request_latency", "From a request's arrival to its last token.", WHOLE)
        self.queue = histogram("request_queue_time", "Until a request got a slot.", WHOLE)
        self.prefill = histogram("request_prefill_time", "From the slot to the first token.", WHOLE)
        self.decode = histogram("request_decode_time", "From the first token to the last.", WHOLE)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"llm_{name}", text, labels, registry=self.registry)

        self.prompt_tokens = counter("prompt_tokens", "Tokens of the prompts that were read.")
        self.cached_tokens = counter("prompt_tokens_cached", "Those whose keys and values were there already.")
        self.requests = counter("request_success", "Requests by how they ended.", "finished_reason")
        self.http = counter("http_requests", "HTTP requests answered.", "route", "method", "status")
        for reason in REASONS:
            self.requests.labels(reason)  # a series that is there from the start has a rate from the start

    def observe(self, engine: Engine, request: Request) -> None:
        """Counts a request that ended; one that was left before the engine said so counts as cancelled."""
        self.requests.labels(request.finish_reason or "cancelled").inc()
        submitted, admitted, first = request.submitted, request.admitted, request.first_token
        finished = request.finished or time.monotonic()
        self.whole.observe(finished - submitted)
        if admitted:
            self.prompt_tokens.inc(request.prompt_length)
            self.cached_tokens.inc(request.cached)
            self.queue.observe(admitted - submitted)
        if first:
            self.first_token.observe(first - submitted)
            self.prefill.observe(first - admitted)
            self.decode.observe(finished - first)
        self.engines.look(engine)

    def count(self, route: str, method: str, status: int) -> None:
        """Counts an HTTP request by its route's template; methods that somebody made up are one."""
        self.http.labels(route, method if method in METHODS else "other", status).inc()

    async def timed(self, generation: Generation) -> AsyncIterator[Piece]:
        """The pieces of a generation, those that came together as one. The time from each token to the next is counted."""
        last = 0.0
        async for came in generation:
            for piece in came:
                if piece.tokens and last:
                    self.between.observe(piece.at - last)
                last = piece.at if piece.tokens else last
            yield joined(came)


class EngineCollector(Collector):
    """Figures of the engines, taken when they are read.

    After a change of model the old engine writes on until its last request is done, so there may be two for a while: the
    gauges are their sums. The totals are sums of increments, which go on rising where a new engine begins at 0.
    """

    def __init__(self, host: Host):
        self.host, self.lock = host, threading.Lock()
        self.seen: weakref.WeakKeyDictionary[Engine, Stats | None] = weakref.WeakKeyDictionary()
        self.totals = dict.fromkeys(TOTALS, 0.0)
        self.mark, self.reached = (0.0, 0.0), 0.0  # bytes and seconds when it was last measured; the best rate so far

    def look(self, *engines: Engine) -> list[Stats]:
        """Adds what the engines counted since the last look; their figures now."""
        with self.lock:
            for engine in engines:
                self.seen.setdefault(engine, None)
            for engine, before in list(self.seen.items()):
                self.seen[engine] = now = engine.stats()
                for name in TOTALS:
                    self.totals[name] += getattr(now, name) - getattr(before, name, 0)
            self.measure()
            return list(self.seen.values())

    def measure(self) -> None:
        """How fast the engines were seen to read. On a busy machine the trial at the start may have been slower than that."""
        read, busy = (self.totals[name] - before for name, before in zip(("bytes_read", "busy_seconds"), self.mark, strict=True))
        if busy >= REACH:
            self.reached = max(self.reached, read / busy)
            self.mark = self.totals["bytes_read"], self.totals["busy_seconds"]

    def collect(self) -> Iterator[Metric]:
        engines = []
        with contextlib.suppress(NotReady):
            engines.append(self.host.engine)
        stats = self.look(*engines)

        def gauge(name: str, text: str, value: float) -> Metric:
            return GaugeMetricFamily(f"llm_{name}", text, value)

        yield gauge("ready", "1 when a model answers.", len(engines))
        yield gauge("num_requests_running", "Requests that have a slot.", sum(each.running for each in stats))
        yield gauge("num_requests_waiting", "Requests in line.", sum(each.waiting for each in stats))
        yield gauge("max_waiting", "Requests that may be in line; more get 429.", self.host.limits["max_waiting"])
        yield gauge("waiting_tokens", "Tokens of their prompts.", sum(each.waiting_tokens for each in stats))
        yield gauge("slots", "Requests that can run at once.", max((each.slots for each in stats), default=0))
        usage = max((each.kv_usage for each in stats), default=0)
        yield gauge("kv_cache_usage_ratio", "Share of the cache that running requests fill.", usage)
        rate = max(self.host.memory_rate, self.reached)
        yield gauge("memory_read_limit_bytes_per_second", "What this machine reads at best, as far as was seen.", rate)
        for name, (metric, text) in TOTALS.items():
            yield CounterMetricFamily(metric, text, self.totals[name])
        yield InfoMetricFamily("llm_build", "What the server runs on.", build())
        for engine in engines:
            yield InfoMetricFamily("llm_model", "The model that answers.", model(engine))


@functools.cache
def build() -> dict[str, str]:
    """The versions of Python and of the libraries that matter, without importing them."""
    versions = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def model(engine: Engine) -> dict[str, str]:
    """What an engine's checkpoint says of itself, as labels."""
    told = {name: engine.provenance.get(name) for name in ("run", "step", "val_loss")}
    told |= {"model": engine.model_id, "dtype": engine.dtype, "quantized": engine.quantized}
    told |= {"parameters": engine.parameters, "block_size": engine.block_size}
    return {name: "" if value is None else str(value) for name, value in told.items()}
