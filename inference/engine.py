"""Continuous batching: one thread owns the model, and every step moves all the running texts on by a token.

A step drains what came in, gives free slots to those who wait, writes the next token of every text that has been read, and
reads one chunk of the prompts that have not (Orca, Yu et al. 2022; chunked prefill: Sarathi, arXiv:2308.16369). Papers call reading
prefill, and writing decode. A long prompt therefore delays the others by a chunk at a time and no more.

The same engine works without its thread: `run` steps it until its requests are done, which is how `generate.py` writes.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from config import UserError
from inference.kv_cache import ManyRows, OneRow, Slots, cache_dtype
from inference.request import NotReady, Piece, Request, Settings, Token
from inference.sampling import Sampler, uniform
from inference.scheduler import Scheduler, Slot
from inference.transcript import Transcript
from model import token_losses
from tokenizer import Tokenizer

CHUNK = {"cpu": 128, "cuda": 1024}  # tokens of a prompt that are read between two steps of writing
IDLE = 1.0  # seconds without work after which the thread goes: its idle OpenMP team would slow those of other engines to half
log = logging.getLogger("inference")


@dataclass(frozen=True)
class Stats:
    """Plain figures of this instant, and totals since the start."""

    running: int
    waiting: int
    waiting_tokens: int
    slots: int
    kv_usage: float  # share of the cache's places that hold tokens of running requests
    prompt_tokens: int
    cached_tokens: int
    generation_tokens: int
    steps: int
    busy_seconds: float
    bytes_read: float  # weights and cache that the steps had to read


class Engine:
    """A model, its cache, and the requests on their way through it.

    Args:
        model: in evaluation mode, on its device and in its dtype.
        slots: texts that run at once.
        provenance: what the checkpoint says of itself.
        max_waiting, max_waiting_tokens: how long the line may be, in requests and in tokens of their prompts.
        weight_bytes, parameters, quantized: of the model as it was prepared, for the statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        slots: int = 8,
        provenance: dict | None = None,
        max_waiting: int = 10**9,
        max_waiting_tokens: int = 10**12,
        weight_bytes: int = 0,
        parameters: int = 0,
        quantized: bool = False,
    ):
        weight = next(model.parameters())
        self.model, self.tokenizer, self.provenance = model, tokenizer, provenance or {}
        self.device, self.block_size = weight.device, model.config.block_size
        self.sampling_device = torch.device("cpu") if weight.device.type == "mps" else weight.device  # MPS has no float64
        self.places = getattr(model, "places", None)  # the ids that stand for a picture or a sound, where the model takes any
        self.dtype, self.parameters, self.quantized = str(weight.dtype).removeprefix("torch."), parameters, quantized
        self.model_id = f"{self.provenance.get('run', 'model')}@{self.provenance.get('step', 0)}"
        self.cache = Slots(model.config, slots, weight.device, cache_dtype(weight.dtype, weight.device.type))
        self.chunk = CHUNK.get(weight.device.type, CHUNK["cpu"])
        self.scheduler = Scheduler(slots, self.block_size, max_waiting, max_waiting_tokens, self.chunk)
        self.weight_bytes = weight_bytes or sum(weight.nbytes for weight in model.parameters())
        self.transcripts: dict[int, Transcript] = {}
        self.news = threading.Event()  # something came in: the thread need not sleep
        self.sampler: tuple[list[Request], Sampler | None] = ([], None)
        self.thread: threading.Thread | None = None
        self.threaded = False
        self.lock = threading.Lock()  # of the line: `submit` comes from other threads
        self.holders = 0
        self.draining = self.stopping = False
        self.forget()

    # ---- from any thread

    def forget(self) -> None:
        """Sets the statistics to zero."""
        self.prompt_tokens = self.cached_tokens = self.generation_tokens = self.steps = 0
        self.busy_seconds = self.bytes_read = 0.0

    def submit(self, request: Request) -> None:
        """Puts a request in line.

        Raises:
            Busy: when the line is full.
            NotReady: while the engine drains, unless somebody holds it.
            UserError: for a prompt that does not end with a token, or a bias on a token that the vocabulary does not have.
        """
        if not request.ids or request.ids[-1] < 0:
            raise UserError("the prompt is empty, or ends with a picture or a sound: it needs at least one token at its end.")
        if request.media and request.settings.prompt_logprobs:
            raise UserError("pictures and sounds have no log-probabilities: leave prompt_logprobs out.")
        strangers = [i for i in request.settings.logit_bias if not 0 <= i < self.tokenizer.vocab_size]
        if strangers:
            raise UserError(
                f"logit_bias names the token {strangers[0]}; this model has 0 to {self.tokenizer.vocab_size - 1}."
            )
        with self.lock:
            if self.stopping or (self.draining and not self.holders):
                raise NotReady("the server is shutting down or changing its model: try again in a moment.")
            self.scheduler.check_room(request)
            self.scheduler.waiting.append(request)
            self.news.set()
            if self.threaded and not (self.thread and self.thread.is_alive()):
                self.thread = threading.Thread(target=self.loop, name="engine", daemon=True)
                self.thread.start()

    @contextlib.contextmanager
    def held(self) -> Iterator[Engine]:
        """While this is held a drain waits, and the engine still takes requests, until the time of the drain is up."""
        with self.lock:
            self.holders += 1
        try:
            yield self
        finally:
            with self.lock:
                self.holders -= 1

    def cancel(self, request: Request) -> None:
        """Gives a request up before its next token."""
        request.cancelled = True
        self.news.set()

    def stats(self) -> Stats:
        scheduler = self.scheduler
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            waiting_tokens=scheduler.waiting_tokens,
            slots=len(scheduler.slots),
            kv_usage=scheduler.used_places() / (len(scheduler.slots) * self.block_size),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generation_tokens=self.generation_tokens,
            steps=self.steps,
            busy_seconds=self.busy_seconds,
            bytes_read=self.bytes_read,
        )

    def memory(self) -> int:
        """Bytes of the weights and of the cache."""
        return self.weight_bytes + self.cache.bytes

    # ---- the thread

    def start(self) -> None:
        """From now on the steps run on a thread of their own, which is there while there is something to do."""
        self.threaded = True
        atexit.register(self.halt)

    def halt(self) -> None:
        """Ends the thread after its step: one that the interpreter's end meets inside torch would abort the process."""
        with self.lock:  # who is in `submit` now is in line before the end, or refused after it
            self.stopping = True
        self.news.set()
        if thread := self.thread:
            thread.join()

    def loop(self) -> None:
        torch.set_flush_denormal(True)  # a setting of each thread
        while not self.stopping:
            if self.step() or self.stopping or self.news.wait(IDLE):  # a step takes the news away, that of stopping too
                continue
            with self.lock:
                if not self.news.is_set():
                    self.thread = None
                    return

    def drain(self, seconds: float = float("inf")) -> None:
        """Refuses new requests but from those who hold it, waits up to `seconds` for these and for what runs, then stops."""
        with self.lock:
            self.draining = True
        t0 = time.monotonic()
        while self.threaded and self.in_use() and time.monotonic() - t0 < seconds:
            time.sleep(0.01)
        if self.threaded:
            self.halt()
            atexit.unregister(self.halt)
        for slot in self.scheduler.running:
            self.finish(slot.request, "cancelled", slot)
        while self.scheduler.waiting:
            self.finish(self.scheduler.waiting.popleft(), "cancelled")

    def in_use(self) -> bool:
        """Whether there is anyone to serve, or who may still ask."""
        with self.lock:  # nobody is between the line and a slot
            return bool(self.holders or self.scheduler.waiting or self.scheduler.running)

    def run(self, requests: Iterable[Request]) -> None:
        """Steps without a thread until these requests are done. Their sinks get the pieces."""
        for request in requests:
            self.submit(request)
        while self.step():
            pass

    # ---- one step

    @torch.inference_mode()
    def step(self) -> bool:
        """Moves everything on by a token, or a prompt by a chunk; False when there is nothing to do."""
        t0 = time.perf_counter()
        self.news.clear()
        self.give_up()
        with self.lock:
            self.scheduler.admit()
        if not self.scheduler.running:
            return False
        self.close_ranks()
        alone, together = [], []
        for slot in self.scheduler.writing():
            (alone if self.wants_to_be_alone(slot.request) else together).append(slot)
        for group in ([together] if together else []) + [[slot] for slot in alone]:
            self.guard(group, self.write)
        room = self.chunk
        while (slot := self.scheduler.reading()) and room >= min(slot.ahead, self.chunk):
            room -= min(slot.ahead, self.chunk)
            self.guard([slot], self.read)
        self.steps += 1
        seconds = time.perf_counter() - t0
        self.busy_seconds += seconds
        self.scheduler.took(seconds)
        return True

    def close_ranks(self) -> None:
        """Seats the texts that are written side by side: the model reads the keys and values of neighbours where they lie, those of
        scattered slots only after copying them, at every step."""
        for idle, stray in self.scheduler.strays():
            self.cache.swap(idle.index, stray.index, max(idle.used, stray.used))
            self.scheduler.swap(idle, stray)

    def wants_to_be_alone(self, request: Request) -> bool:
        """Whether a text gets a forward pass of its own, apart from the batch.

        `deterministic` asks for it. A seed promises the same text in any company, and on a CPU in one dtype a batch keeps that promise:
        a row has the same bits among two as among many. Int8 (other kernels for one or two rows) and GPUs (kernels chosen by the size
        of the batch) do not, so there a seed means alone.
        """
        varies = self.quantized or self.device.type != "cpu"
        return request.settings.deterministic or (varies and request.settings.seed is not None)

    def may_be_one_row(self, request: Request) -> bool:
        """Whether a text by itself may take the fast path for one row, whose bits differ from a batch's. A seeded text on a CPU may not:
        it runs beside a copy of itself, so that it reads the same when company comes."""
        return self.wants_to_be_alone(request) or request.settings.seed is None

    def guard(self, slots: list[Slot], work) -> None:
        """Does one piece of work; if it fails, the requests it was for fail, and no others."""
        try:
            work(slots)
        except Exception as error:
            log.exception("a step failed")
            for slot in slots:
                if slot.request:
                    slot.length = 0  # what is in the cache may be half written
                    self.finish(slot.request, "error", slot, error=f"{type(error).__name__}: {error}")

    def give_up(self) -> None:
        """Ends what was cancelled or is too late, in line or running."""
        now = time.monotonic()
        with self.lock:
            late = [(request, reason) for request in self.scheduler.waiting if (reason := request.over(now))]
            for request, _ in late:
                self.scheduler.waiting.remove(request)
        for request, reason in late:
            self.finish(request, reason)
        for slot in self.scheduler.running:
            if reason := slot.request.over(now):
                self.finish(slot.request, reason, slot)

    def read(self, slots: list[Slot]) -> None:
        """Reads the next chunk of a prompt; after the last one, writes the first token. Where chunks begin depends on no other."""
        [slot] = slots
        request = slot.request
        ids = slot.next_ids(self.chunk)
        hidden = self.forward(slots, [ids], OneRow(self.cache, slot.index, slot.length), self.fused(slot, ids))  # (1, T, C)
        scored = self.score_prompt(slot, ids, hidden) if request.settings.prompt_logprobs and not request.written else ()
        slot.length += len(ids)
        if slot.ahead:
            if scored:
                tell(request, Piece("", prompt=scored, at=time.monotonic()))
        elif request.settings.max_new_tokens == 0:
            self.finish(request, "length", slot, prompt=scored)
        else:
            self.choose([slot], self.model.logits(hidden[:, -1]), scored)

    def write(self, slots: list[Slot]) -> None:
        """Writes the next token of each slot."""
        full = [slot for slot in slots if slot.length == self.block_size]
        for slot in full:
            slot.slide(self.block_size)  # its newer half is read again
        slots = [slot for slot in slots if slot not in full]
        if not slots:
            return
        if len(slots) == 1 and self.may_be_one_row(slots[0].request):
            rows, window = slots, OneRow(self.cache, slots[0].index, slots[0].length)
        else:
            rows = slots if len(slots) > 1 else slots * 2  # a single row takes other arithmetic than many: it gets a twin
            window = ManyRows(self.cache, [slot.index for slot in rows], [slot.length for slot in rows])
        hidden = self.forward(slots, [slot.next_ids(1) for slot in rows], window)  # (B, 1, C)
        for slot in slots:
            slot.length += 1
        self.choose(slots, self.model.logits(hidden[:, -1])[: len(slots)])

    def forward(
        self, slots: list[Slot], ids: list[list[int]], window: OneRow | ManyRows, x: Tensor | None = None
    ) -> Tensor:
        """The model over the next ids of some slots, or over embeddings x in their place, seen through a window: (B, T, C)."""
        seen = sum(slot.length for slot in slots)
        self.bytes_read += self.weight_bytes + seen * self.cache.bytes_per_place
        return self.model.hidden(torch.tensor(ids, device=self.device), window, x)

    def fused(self, slot: Slot, ids: list[int]) -> Tensor | None:
        """The embeddings of a chunk in which pictures and sounds stand, (1, T, C); None for a chunk of text."""
        count = sum(i < 0 for i in ids)
        if not count:
            return None
        request = slot.request
        if request.vectors is None:
            request.vectors = self.model.encode(request.media)
        before = sum(i < 0 for i in request.ids[: slot.base + slot.length])
        return self.model.fuse(torch.tensor([ids], device=self.device), request.vectors[before : before + count])

    def choose(self, slots: list[Slot], logits: Tensor, scored: tuple[Token, ...] = ()) -> None:
        """Draws the next token of each slot, logits (B, V), and hands it on, behind what was `scored` of its prompt."""
        requests = [slot.request for slot in slots]
        if self.sampler[0] != requests:  # the same rows as in the last step need no new tensors
            self.sampler = requests, Sampler([request.settings for request in requests], self.sampling_device)
        sampler = self.sampler[1]
        uniforms = [0.0 if r.settings.temperature == 0 else uniform(r.seed, r.begun + r.written) for r in requests]
        seen = [[i for i in request.ids if i >= 0] for request in requests] if sampler.penalised else []
        logits = logits.to(self.sampling_device)
        prompts = [request.prompt_length - request.begun - request.places for request in requests]
        chosen = sampler.choose(logits, uniforms, seen, prompts).tolist()
        for row, (slot, token) in enumerate(zip(slots, chosen, strict=True)):
            most = slot.request.settings.logprobs
            reported = Token(token) if most is None else report(logits[row], [token], most)[0]
            self.hand_on(slot, token, reported, scored)

    def hand_on(self, slot: Slot, token: int, reported: Token, scored: tuple[Token, ...]) -> None:
        """Adds a token to its text, and gives the person what became certain."""
        request, now = slot.request, time.monotonic()
        request.first_token = request.first_token or now
        before = request.written
        text, reason, stop = self.transcript(request).push(token)
        tokens = (reported,) if request.written > before else ()  # what only ends the text is no part of it
        self.generation_tokens += len(tokens)
        if reason:
            self.finish(request, reason, slot, text=text, tokens=tokens, stop=stop, prompt=scored)
        else:
            tell(request, Piece(text, tokens, scored, at=now))

    def transcript(self, request: Request) -> Transcript:
        if request.number not in self.transcripts:
            self.transcripts[request.number] = Transcript(request, self.tokenizer)
        return self.transcripts[request.number]

    def finish(self, request: Request, reason: str, slot: Slot | None = None, text: str = "", **piece) -> None:
        """Ends a request and frees its slot."""
        transcript = self.transcripts.pop(request.number, None)
        if reason not in ("stop", "length") and transcript:
            text = transcript.close()
        if slot:
            self.scheduler.release(slot)
            self.prompt_tokens += request.prompt_length
            self.cached_tokens += request.cached
        request.finished, request.finish_reason = time.monotonic(), reason
        tell(request, Piece(text, finish_reason=reason, at=request.finished, **piece))

    def score_prompt(self, slot: Slot, ids: list[int], hidden: Tensor) -> tuple[Token, ...]:
        """The log-probabilities of the prompt's tokens that follow a chunk: hidden (1, T, C)."""
        start = slot.base + slot.length + 1
        following = slot.request.ids[start : start + len(ids)]
        if not following:
            return ()
        most = slot.request.settings.logprobs or 0
        rows = hidden[0, : len(following)]  # (T, C)
        if most or self.quantized:  # as it writes: in int8 the head is another one
            return tuple(report(self.model.logits(rows), following, most))
        targets = torch.tensor(following, device=self.device)
        losses = token_losses(rows, self.model.head.weight[: self.model.config.vocab_size], targets).tolist()
        return tuple(Token(i, -loss) for i, loss in zip(following, losses, strict=True))


def tell(request: Request, piece: Piece) -> None:
    """Hands a piece on. A listener that fails is told nothing more, and costs the others nothing."""
    try:
        request.sink(piece)
    except Exception:
        log.exception("a listener failed")
        request.cancelled = True


def report(logits: Tensor, ids: list[int], most: int) -> list[Token]:
    """Tokens with their log-probabilities, and the likeliest ones beside them: logits (T, V) or (V,)."""
    logprobs = logits.float().view(len(ids), -1).log_softmax(-1)  # (T, V)
    best = logprobs.topk(min(most, logprobs.size(-1)))
    own = logprobs[torch.arange(len(ids)), ids].tolist()
    return [
        Token(i, value, tuple(zip(indices, values, strict=True)))
        for i, value, indices, values in zip(ids, own, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def texts(model: nn.Module, tokenizer: Tokenizer, prompt: list[int], settings: Iterable[Settings]) -> list[str]:
    """Whole texts at once that go on from one prompt, one for each of some settings."""
    settings = list(settings)
    written: list[list[Piece]] = [[] for _ in settings]
    requests = [Request(prompt, each, pieces.append) for each, pieces in zip(settings, written, strict=True)]
    Engine(model, tokenizer, slots=max(1, min(64, len(requests)))).run(requests)
    return ["".join(map(text_of, pieces)) for pieces in written]


def stream(
    model: nn.Module, tokenizer: Tokenizer, prompt: list[int], settings: Settings, media: Sequence[Any] = ()
) -> Iterator[str]:
    """One text that goes on from a prompt and its pictures and sounds, piece by piece as it becomes certain."""
    pieces: list[Piece] = []
    engine = Engine(model, tokenizer, slots=1)
    engine.submit(Request(prompt, settings, pieces.append, media=media))
    while engine.step():
        yield from map(text_of, pieces)
        pieces.clear()


def text_of(piece: Piece) -> str:
    """The text of a piece.

    Raises:
        RuntimeError: when it says that the model failed.
    """
    if piece.error:
        raise RuntimeError(piece.error)
    return piece.text
