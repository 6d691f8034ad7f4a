"""From tokens to the text that a person gets: whole characters, nothing of a stop string, and why it ended."""

from __future__ import annotations

from inference.request import Request
from tokenizer import StreamDecoder, Tokenizer


class Transcript:
    """The text of one request as it grows: a streaming detokenizer that knows stop strings."""

    def __init__(self, request: Request, tokenizer: Tokenizer):
        self.request, self.ends = request, tokenizer.ends
        self.decoder = StreamDecoder(tokenizer)
        self.stops = [stop for stop in request.settings.stop if stop]  # an empty one stops nothing
        self.held = self.decoder.push(*request.settings.prefix_ids)  # text that may yet turn out to be the beginning of a stop string
        self.held = self.held[len(self.held) - self.undecided() :]
        self.known = len(self.held)  # characters of it that the prefix had: they are not told again

    def push(self, token: int) -> tuple[str, str, str | int | None]:
        """Takes one more token: the text that became certain, why it ends here ("" if it goes on), and what stopped it."""
        text, reason, stop = self.certain(token)
        known = min(self.known, len(text))
        self.known -= known
        return text[known:], reason, stop

    def certain(self, token: int) -> tuple[str, str, str | int | None]:
        """As `push`, with the characters that the prefix already had."""
        settings = self.request.settings
        if token in settings.stop_ids:
            return self.close(), "stop", token
        if token in self.ends and not settings.ignore_eos:
            return self.close(), "stop", None
        self.request.ids.append(token)
        self.held += self.decoder.push(token)
        at, stop = self.first_stop()
        if stop:
            return self.held[:at], "stop", stop
        if self.request.written >= settings.max_new_tokens:
            text = self.close()
            at, stop = self.first_stop()
            return (text[:at], "stop", stop) if stop else (text, "length", None)
        keep = self.undecided()
        text, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return text, "", None

    def close(self) -> str:
        """All that was held back, now that nothing follows."""
        self.held += self.decoder.flush()
        return self.held

    def first_stop(self) -> tuple[int, str]:
        """Where the first stop string begins, and which: (-1, "") if there is none. One that lies wholly in the prefix stops nothing."""
        found = [(at, stop) for stop in self.stops if (at := self.held.find(stop, max(0, self.known - len(stop) + 1))) >= 0]
        return min(found, default=(-1, ""))

    def undecided(self) -> int:
        """How many characters at the end could be the beginning of a stop string."""
        longest = min(len(self.held), max((len(stop) - 1 for stop in self.stops), default=0))
        tails = range(longest, 0, -1)
        return next((n for n in tails if any(stop.startswith(self.held[-n:]) for stop in self.stops)), 0)
