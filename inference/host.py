"""The engine that answers now, and how another checkpoint takes its place without dropping a request."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import torch

import checkpoint as checkpoints
from config import UserError
from inference import weights
from inference.engine import Engine
from inference.kv_cache import cache_dtype
from inference.request import NotReady, Request, Settings

CACHE_BYTES = 2 * 2**30  # the most that keys and values take on a CPU; on a GPU half of what is free
EARLIER = 16  # the most models that are kept after others took their places
EARLIER_BYTES = 2 * 2**30  # the most that they and their caches take together
EARLIER_SLOTS = 2  # texts that each of them writes at once
MOST_SLOTS = {"cpu": 32, "cuda": 128}


class Host:
    """Loads checkpoints into engines.

    Args:
        path: the checkpoint, or a run's folder.
        dtype: auto (the fastest on this machine), float32 or bfloat16.
        quantize: int8, or nothing.
        slots: texts that are written at once; 0 lets the memory decide.
        max_waiting, max_waiting_tokens: how long the line of requests may be.
        keep_earlier: a model that was replaced can still be asked, by its name, as long as the memory for such reaches.

    Attributes:
        reason: why nothing answers; empty when the model is ready.
        memory_rate: bytes a second that this machine reads, measured at the first load.
    """

    def __init__(
        self,
        path: str,
        device: torch.device | str = "cpu",
        dtype: str = "auto",
        quantize: str = "",
        slots: int = 0,
        max_waiting: int = 64,
        max_waiting_tokens: int = 65536,
        keep_earlier: bool = False,
    ):
        self.path, self.device = path, torch.device(device)
        self.dtype, self.quantize, self.slots = dtype, quantize, slots
        self.limits = {"max_waiting": max_waiting, "max_waiting_tokens": max_waiting_tokens}
        self.current: Engine | None = None
        self.keep_earlier, self.earlier = keep_earlier, {}  # engines by name, the oldest first
        self.reason = "the model is being loaded."
        self.memory_rate = 0.0
        self.draining = False
        self.retiring: set[Engine] = set()  # those that others took the places of, until they are done
        self.loading = threading.Lock()
        self.changing = threading.Lock()  # of which engines there are

    @property
    def engine(self) -> Engine:
        """The engine that answers now.

        Raises:
            NotReady: with the reason.
        """
        if self.current is None or self.reason:
            raise NotReady(self.reason)
        return self.current

    def engines(self) -> list[Engine]:
        """The engine that answers now, and the earlier ones that are still there, the newest first.

        Raises:
            NotReady: with the reason.
        """
        return [self.engine, *reversed(list(self.earlier.values()))]

    @contextlib.contextmanager
    def lease(self, model_id: str | None = None) -> Iterator[Engine]:
        """The engine of a model, by default the one that answers now. It takes requests until this is left, even if another model
        replaces it or the server is stopping, within the time of the drain.

        Raises:
            NotReady: with the reason.
            KeyError: for a model that is not here.
        """
        with contextlib.ExitStack() as stack:
            with self.changing:  # an engine cannot go between being found and being held
                found = next((each for each in self.engines() if model_id in (None, each.model_id)), None)
                if found is None:
                    raise KeyError(model_id)
                stack.enter_context(found.held())
            yield found

    def stamp(self) -> tuple | None:
        """What changes when another checkpoint lies at the path; None where there is none."""
        try:
            path = checkpoints.resolve(self.path).resolve()
            found = path.stat()
        except (OSError, UserError):
            return None
        return path, found.st_ino, found.st_mtime_ns, found.st_size

    def load(self) -> None:
        """Loads the checkpoint, warms it up and lets it take over; the one before finishes what it has begun. Blocks.

        Raises:
            UserError: when it cannot be loaded. The engine before, if there is one, goes on.
        """
        with self.loading:
            try:
                engine = self.make_engine()
            except Exception as error:
                if self.current is None:
                    told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}, see the log."
                    self.reason = f"the checkpoint could not be loaded: {told}"
                raise
            before = self.current
            replaced = before and before.model_id != engine.model_id
            smaller = self.smaller(before) if replaced and self.keep_earlier else None
            with self.changing:
                if self.draining:
                    gone = [engine]
                else:
                    self.current, self.reason = engine, ""
                    gone = [*filter(None, [before]), *self.keep(smaller)]
                self.retiring.update(gone)
        for each in gone:
            threading.Thread(target=self.retire, args=[each], name="retire", daemon=True).start()

    def smaller(self, engine: Engine) -> Engine:
        """A small engine, with its thread running, for the model of one that is being replaced."""
        figures = {name: getattr(engine, name) for name in ("weight_bytes", "parameters", "quantized")}
        small = Engine(engine.model, engine.tokenizer, EARLIER_SLOTS, engine.provenance, **self.limits, **figures)
        small.start()
        return small

    def keep(self, engine: Engine | None) -> list[Engine]:
        """Keeps a replaced model, if there is one, reachable by its name. Returns the engines that make room for it, the oldest first."""
        same = self.earlier.pop(self.current.model_id, None)  # the model that answers now is asked in its large engine
        if engine:
            self.earlier[engine.model_id] = engine
        gone = [same] if same else []
        while len(self.earlier) > EARLIER or sum(map(Engine.memory, self.earlier.values())) > EARLIER_BYTES:
            gone.append(self.earlier.pop(next(iter(self.earlier))))
        return gone

    def retire(self, engine: Engine) -> None:
        """Lets an engine finish for those who hold it."""
        engine.drain()
        self.retiring.discard(engine)

    def make_engine(self) -> Engine:
        """A warm engine, with its thread running."""
        model, tokenizer, provenance = checkpoints.load_model(self.path, self.device)
        if self.dtype == "auto":  # found out once: the trials take memory, which a busy process would not give back
            self.dtype = str(weights.fastest_dtype(self.device)).removeprefix("torch.")
        dtype = torch.bfloat16 if self.quantize else getattr(torch, self.dtype)
        self.memory_rate = self.memory_rate or weights.memory_rate(self.device)
        told = {"parameters": model.parameter_count(), "quantized": bool(self.quantize)}
        told["weight_bytes"] = weights.prepare(model, dtype, int8=bool(self.quantize))
        slots = self.slots or self.affordable_slots(model.config, cache_dtype(dtype, self.device.type).itemsize)
        engine = Engine(model, tokenizer, slots, provenance, **self.limits, **told)
        warm_up(engine)
        engine.start()
        return engine

    def affordable_slots(self, config, itemsize: int) -> int:
        """As many slots as the memory has room for, up to what is worth batching."""
        each = 2 * config.n_layer * config.n_kv_head * config.block_size * config.head_dim * itemsize
        on_gpu = self.device.type == "cuda"
        room = torch.cuda.mem_get_info(self.device)[0] // 2 if on_gpu else CACHE_BYTES
        return int(max(1, min(room // each, MOST_SLOTS.get(self.device.type, MOST_SLOTS["cpu"]))))

    def drain(self, seconds: float = float("inf")) -> None:
        """Takes nothing new, lets what runs finish for so long, and stops."""
        with self.changing:
            self.draining, self.reason = True, "the server is shutting down."
            engines = [*filter(None, [self.current]), *self.earlier.values(), *self.retiring]
        t0 = time.monotonic()
        for engine in engines:
            engine.drain(max(0.0, seconds - (time.monotonic() - t0)))


def warm_up(engine: Engine) -> None:
    """Lets an engine write a little, alone and in company: the first steps on a machine are slow, and no client should wait."""
    prompt = [engine.tokenizer.eot] * min(8, engine.block_size)
    settings = Settings(max_new_tokens=4, ignore_eos=True)  # with a seed it might not be written the way that most are
    for company in {1, 2, len(engine.scheduler.slots)}:
        engine.run([Request(prompt, settings, lambda _: None, scope="warm-up") for _ in range(company)])
    engine.forget()
