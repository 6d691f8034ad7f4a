"""Who runs next: requests wait in one line, and each that runs has a slot of the cache."""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from dataclasses import dataclass, field

from inference.request import Busy, Request

SMOOTHING = 0.1  # weight of the newest value in an exponential moving average


@dataclass
class Slot:
    """One place for a text. When its request leaves, its tokens stay, and a later request that begins alike need not read them.

    Attributes:
        base: where in the request's ids the window of the model begins; it moves on when a text outgrows the context.
        length: how many ids from there on have their keys and values in the cache.
        kept: after the request has left, the ids of those keys and values.
    """

    index: int
    request: Request | None = None
    base: int = 0
    length: int = 0
    kept: list[int] = field(default_factory=list)
    scope: str = ""
    left_at: float = 0.0

    @property
    def used(self) -> int:
        """How many places of the cache hold something."""
        return self.length if self.request else len(self.kept)

    @property
    def ahead(self) -> int:
        """How many ids the model has not read yet: one while it writes, more while it reads."""
        return len(self.request.ids) - self.base - self.length

    @property
    def reads(self) -> bool:
        """Whether it reads rather than writes: until its last id, and to the end where nothing is to be written."""
        return self.ahead > 1 or self.request.settings.max_new_tokens == 0

    def next_ids(self, most: int) -> list[int]:
        """The next ids to read."""
        start = self.base + self.length
        return self.request.ids[start : start + most]

    def reusable(self, request: Request) -> int:
        """How many of a request's first ids are here already. The last one is always read: its logits are wanted."""
        settings = request.settings
        repeatable = settings.deterministic or settings.seed is not None
        if self.scope != request.scope or repeatable or settings.prompt_logprobs:
            return 0  # what was there before must not change the bits of a text with a seed
        return common_start(self.kept, request.ids[:-1])

    def take(self, request: Request, block_size: int) -> None:
        """Gives this slot to a request."""
        self.base = window_start(request, block_size)
        self.length = 0 if self.base else self.reusable(request)  # before scope and kept change
        self.request, self.scope, self.kept = request, request.scope, []
        request.cached, request.admitted = self.length, time.monotonic()

    def slide(self, block_size: int) -> None:
        """Forgets the older half of a context that is full; the rest is read again."""
        self.base, self.length = len(self.request.ids) - kept_half(block_size), 0

    def leave(self) -> None:
        self.kept = [] if self.base else self.request.ids[: self.length]
        self.request, self.left_at = None, time.monotonic()


class Scheduler:
    """The line and the slots.

    Args:
        count: slots, which is how many requests run at once.
        max_waiting, max_waiting_tokens: how long the line may be, in requests and in tokens of their prompts.
        chunk: tokens of a prompt that a step reads.

    Attributes:
        seconds_per_step: how long a step takes just now, a moving average.
        share: the part of max_new_tokens that requests use in the end, a moving average.
    """

    def __init__(self, count: int, block_size: int, max_waiting: int, max_waiting_tokens: int, chunk: int):
        self.slots = [Slot(index) for index in range(count)]
        self.block_size, self.chunk = block_size, chunk
        self.max_waiting, self.max_waiting_tokens = max_waiting, max_waiting_tokens
        self.waiting: deque[Request] = deque()
        self.seconds_per_step, self.share = 0.0, 1.0

    @property
    def running(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.request]

    @property
    def waiting_tokens(self) -> int:
        return sum(request.prompt_length for request in tuple(self.waiting))

    def check_room(self, request: Request) -> None:
        """Refuses a request that the line has no room for.

        Raises:
            Busy: with the time after which to come again.
        """
        free = len(self.slots) - len(self.running)
        in_line = [each.prompt_length for each in tuple(self.waiting)[free:]]  # who will find a slot free does not wait
        tokens = sum(in_line)
        if len(self.waiting) - free >= self.max_waiting:
            told = f"{len(in_line)} requests are waiting, which is all the queue holds"
        elif in_line and tokens + request.prompt_length > self.max_waiting_tokens:
            told = f"the prompts that are waiting have {tokens} tokens, and with this one's {request.prompt_length} more than the queue holds"
        else:
            return
        raise Busy(f"{told}: try again in a moment.", retry_after=max(0.1, self.steps_until_a_turn() * self.seconds_per_step))

    def steps_until_a_turn(self) -> float:
        """How many steps from now a slot would be free for one more in line, if everyone goes on as before."""
        running = [(slot, request) for slot in self.slots if (request := slot.request)]  # it may leave while we look
        free_at = [self.steps_left(request, len(request.ids) - slot.base - slot.length) for slot, request in running]
        free_at += [0.0] * (len(self.slots) - len(running))
        heapq.heapify(free_at)
        for request in tuple(self.waiting):
            heapq.heapreplace(free_at, free_at[0] + self.steps_left(request, request.prompt_length))
        return free_at[0]

    def steps_left(self, request: Request, unread: int) -> float:
        """How many steps a request is expected to take: a chunk of its prompt or one token each."""
        return math.ceil(unread / self.chunk) + max(1.0, self.share * request.settings.max_new_tokens - request.written)

    def took(self, seconds: float) -> None:
        """Notes how long a step took."""
        self.seconds_per_step += (seconds - self.seconds_per_step) * (SMOOTHING if self.seconds_per_step else 1.0)

    def admit(self) -> None:
        """Gives free slots to those who wait longest: the slot that knows most of the prompt, else the one longest unused."""
        while self.waiting and (free := [slot for slot in self.slots if not slot.request]):
            request = self.waiting.popleft()
            best = max(free, key=lambda slot: (slot.reusable(request), -slot.left_at, -slot.index))
            best.take(request, self.block_size)

    def reading(self) -> Slot | None:
        """The slot whose prompt is read next: the one that was admitted first."""
        return min((slot for slot in self.running if slot.reads), key=lambda slot: slot.request.admitted, default=None)

    def writing(self) -> list[Slot]:
        """The slots that write their next token."""
        return [slot for slot in self.running if not slot.reads]

    def strays(self) -> list[tuple[Slot, Slot]]:
        """Which slots must change places so that those who write sit side by side from the first on: who sits in the way, who
        is to sit there. One that leaves makes one such pair, one that has read its prompt another."""
        writing = self.writing()
        row = self.slots[: len(writing)]
        seated = {slot.index for slot in writing}
        return list(zip((s for s in row if s.index not in seated), (s for s in writing if s.index >= len(row)), strict=True))

    def swap(self, a: Slot, b: Slot) -> None:
        a.index, b.index = b.index, a.index
        self.slots[a.index], self.slots[b.index] = a, b

    def release(self, slot: Slot) -> None:
        request = slot.request
        if request.settings.max_new_tokens:
            self.share += SMOOTHING * (request.written / request.settings.max_new_tokens - self.share)
        slot.leave()

    def used_places(self) -> int:
        """Places of the cache that hold tokens of running requests."""
        return sum(slot.length for slot in self.running)


def kept_half(block_size: int) -> int:
    """How many of the newest ids are read again when the context is full."""
    return max(1, block_size // 2)


def window_start(request: Request, block_size: int) -> int:
    """Where in a request's ids the model's window begins: a longer prompt loses its beginning, and a prefix slides it on
    just as far as writing those tokens would have."""
    base = max(0, request.prompt_length - request.begun - block_size)
    while len(request.ids) - base > block_size:
        base += block_size + 1 - kept_half(block_size)  # where `slide` puts it, once there is one id too many
    return base


def common_start(a: list[int], b: list[int]) -> int:
    """How many first elements two lists share."""
    most = min(len(a), len(b))
    return next((at for at in range(most) if a[at] != b[at]), most)
