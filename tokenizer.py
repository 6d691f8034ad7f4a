"""Text to token ids and back. Four ways to cut text, one small interface, and every one round-trips any Unicode text.

`gpt2` is GPT-2's byte-pair encoding, `bpe` one trained on your corpus, `byte` has no vocabulary to learn, and `char`
takes the characters of the corpus. All of them end a document with one end-of-text token, `eot`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable

import numpy as np

from config import UserError

EOT = "<|endoftext|>"
# How GPT-2 cuts text into words before it merges bytes (the `r50k_base` pattern of tiktoken, in its linear-time form).
WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


class Tokenizer:
    """What the rest of the toolkit knows of a tokenizer.

    Attributes:
        kind: gpt2, bpe, char or byte.
        vocab_size: number of ids, `eot` included.
        eot: the id that ends a document (and, before the first one, starts it).
    """

    kind: str
    vocab_size: int
    eot: int

    @functools.cached_property
    def controls(self) -> dict[str, int]:
        """Special tokens that are never shown, id by name: `eot`, and what else an imported tokenizer has. No text is cut into them."""
        return {EOT: self.eot}

    @functools.cached_property
    def visible(self) -> dict[str, int]:
        """Special tokens that a reader sees by name, such as `<think>`. No text is cut into these either."""
        return {}

    @functools.cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids by which a model says that it has finished."""
        return (self.eot,)

    @property
    def names(self) -> dict[int, str]:
        """The names of all special tokens, by id. Only a chat template writes them."""
        return {i: name for name, i in (self.controls | self.visible).items()}

    @property
    def template_tokens(self) -> dict[str, str]:
        """The names of the tokens that chat templates write as variables."""
        eot = self.names[self.eot]
        return {"bos_token": eot, "eos_token": self.names.get(self.ends[0], eot)}

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, (n,) uint32. `<|endoftext|>` written in the text is ordinary text. Lone surrogates become U+FFFD."""
        raise NotImplementedError

    def token_bytes(self) -> list[bytes]:
        """The bytes of each id, those of `controls` being none."""
        raise NotImplementedError

    def to_dict(self) -> dict:
        """Plain values that `from_dict` makes the same tokenizer from."""
        return {"kind": self.kind}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of some ids; they may begin or end in the middle of a character. Ids out of range are left out."""
        table = self._table
        return b"".join(table[i] for i in ids if 0 <= i < len(table))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, with U+FFFD where the bytes are no valid UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        """Bytes of text that each id stands for, (vocab_size,) float64: what turns nats per token into bits per byte."""
        return np.array([len(piece) for piece in self._table], dtype=np.float64)

    @functools.cached_property
    def _table(self) -> list[bytes]:
        return self.token_bytes()


class BPETokenizer(Tokenizer):
    """Byte-pair encoding (Sennrich et al. 2016; on bytes: GPT-2), run by tiktoken.

    Args:
        ranks: the tokens in order of their rank; the 256 single bytes are among them. The id is the rank.
        words: the pattern that cuts a text before bytes are merged; GPT-2's but for imported models.
        controls, visible: an imported model's tokens beside those, by name; by default `eot` alone, whose id follows the ranks.
        ends: the ids that end a text, beside `eot`, the usual one first.
    """

    def __init__(
        self,
        ranks: list[bytes],
        kind: str = "bpe",
        words: str = WORDS,
        controls: dict[str, int] | None = None,
        visible: dict[str, int] | None = None,
        ends: Iterable[int] = (),
    ):
        import tiktoken

        self.kind, self.ranks, self.words = kind, ranks, words
        self.controls, self.visible = controls or {EOT: len(ranks)}, visible or {}
        self.eot = self.controls.get(EOT, len(ranks))
        self.ends = tuple(dict.fromkeys([*ends, self.eot]))
        self.vocab_size = max(len(ranks), *self.names) + 1
        self._bpe = tiktoken.Encoding(
            name=kind,
            pat_str=words,
            mergeable_ranks={piece: rank for rank, piece in enumerate(ranks)},
            special_tokens={EOT: self.eot},
        )
        # The thread that first cuts a text owns the pattern's memory, and others cut up to twice as slowly while it is at work too. So
        # let it be this one, which leaves the work to others where there are several.
        self._bpe.encode_ordinary("It's 42 !\n\n x ")

    def encode(self, text: str) -> np.ndarray:
        try:
            return self._bpe.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # a lone surrogate
            return self._bpe.encode_to_numpy(to_bytes(text).decode(), disallowed_special=())

    def token_bytes(self) -> list[bytes]:
        shown = {i: to_bytes(name) for name, i in self.visible.items()}
        return [*self.ranks, *(shown.get(i, b"") for i in range(len(self.ranks), self.vocab_size))]

    def to_dict(self) -> dict:
        ranks = [piece.decode("latin-1") for piece in self.ranks]
        more = {"controls": self.controls, "visible": self.visible, "ends": list(self.ends)}
        usual = {"controls": {EOT: len(ranks)}, "visible": {}, "ends": [len(ranks)]}
        told = {name: value for name, value in more.items() if value != usual[name]}  # most fingerprints know of none
        return {"kind": self.kind, "ranks": ranks, "words": self.words, **told}


class ByteTokenizer(Tokenizer):
    """One id a byte. Nothing to train, nothing out of vocabulary, and texts four times as long."""

    kind, eot, vocab_size = "byte", 256, 257

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(to_bytes(text), dtype=np.uint8).astype(np.uint32)

    def token_bytes(self) -> list[bytes]:
        return [bytes([i]) for i in range(256)] + [b""]


class CharTokenizer(Tokenizer):
    """One id a character of the corpus, in code point order.

    A character that the corpus did not have is spelt as its UTF-8 bytes, each as two ids out of sixteen that stand for half
    a byte, so that nothing is ever lost; a corpus never contains those sixteen.
    """

    kind = "char"

    def __init__(self, characters: str):
        self.characters = "".join(sorted(set(characters)))
        self.nibble = len(self.characters)
        self.eot = self.nibble + 16
        self.vocab_size = self.eot + 1
        points = np.array([ord(c) for c in self.characters], dtype=np.int64)
        self._id_of = np.full(0x110000, -1, dtype=np.int32)
        self._id_of[points] = np.arange(len(points))

    def encode(self, text: str) -> np.ndarray:
        try:
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        except UnicodeEncodeError:  # a lone surrogate
            text = to_bytes(text).decode()
            points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ids = self._id_of[points]
        if ids.size == 0 or ids.min() >= 0:
            return ids.astype(np.uint32)
        strange = ids < 0
        spelt = np.frombuffer(points[strange].tobytes().decode("utf-32-le").encode(), dtype=np.uint8)
        halves = self.nibble + np.stack((spelt >> 4, spelt & 15), axis=1).ravel()
        places = np.ones(len(ids), dtype=np.int64)  # ids that each character takes: two for each byte of a strange one
        places[strange] = 2 + 2 * (points[strange, None] >= [0x80, 0x800, 0x10000]).sum(1)
        found, is_strange = np.repeat(ids, places), np.repeat(strange, places)
        found[is_strange] = halves
        return found.astype(np.uint32)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        out, high = bytearray(), -1
        for i in ids:
            half = i - self.nibble
            if not 0 <= half < 16:
                high = -1
                out += self._table[i] if 0 <= i < self.vocab_size else b""
            elif high < 0:
                high = half
            else:
                out.append(high << 4 | half)
                high = -1
        return bytes(out)

    def token_bytes(self) -> list[bytes]:
        return [c.encode() for c in self.characters] + [b""] * 17

    def byte_lengths(self) -> np.ndarray:
        lengths = super().byte_lengths()
        lengths[self.nibble : self.eot] = 0.5  # two ids spell one byte
        return lengths

    def to_dict(self) -> dict:
        return {"kind": self.kind, "characters": self.characters}


def to_bytes(text: str) -> bytes:
    """UTF-8, with lone surrogates (which no UTF-8 can hold) as U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace").encode()


def from_dict(state: dict) -> Tokenizer:
    """The tokenizer that `to_dict` wrote down."""
    kind = state["kind"]
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        return CharTokenizer(state["characters"])
    ranks = [piece.encode("latin-1") for piece in state["ranks"]]
    words = state.get("words", WORDS)  # files from when there was one pattern do not name it
    return BPETokenizer(ranks, kind, words, state.get("controls"), state.get("visible"), state.get("ends", ()))


def load_gpt2() -> BPETokenizer:
    """GPT-2's own vocabulary of 50,257, from tiktoken's cache or its download.

    Raises:
        UserError: when the files are neither cached nor to be had.
    """
    import tiktoken

    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests' own kinds of failure, a hash that differs, an unwritable cache
        where = os.environ.get("TIKTOKEN_CACHE_DIR", "tiktoken's default cache")
        raise UserError(
            f"GPT-2's tokenizer could not be loaded ({type(error).__name__}; looked in {where}).\n"
            "On a machine with a network, run python -c \"import tiktoken; tiktoken.get_encoding('gpt2')\" with TIKTOKEN_CACHE_DIR set to a\n"
            "folder, copy that folder here and set TIKTOKEN_CACHE_DIR to it; or pass --tokenizer bpe, which is trained on your corpus."
        ) from error
    return BPETokenizer([encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab - 1)], "gpt2")


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Learns `vocab_size` - 1 tokens (and `eot`) from some texts, with Hugging Face's trainer.

    The texts are cut at GPT-2's word boundaries first. The result is the same for the same texts and size. A small corpus may
    offer fewer merges than asked for; then the vocabulary is smaller.

    Raises:
        UserError: for a size that has no room for the 256 bytes.
    """
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise UserError(
            f"vocab_size is {vocab_size}; a bpe needs 257 or more (256 bytes and the end of text): pass --vocab_size 257 or --tokenizer byte."
        )
    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # cuts where WORDS does
    alphabet = sorted(byte_symbols())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=alphabet, show_progress=False, max_token_length=32
    )
    trained.train_from_iterator((to_bytes(text).decode() for text in texts), trainer)
    symbols = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    to_byte = byte_symbols()
    return BPETokenizer([bytes(to_byte[c] for c in symbol) for symbol, _ in symbols])


def automatic_vocab_size(n_bytes: int) -> int:
    """A vocabulary for a corpus of so many bytes: about 1.5 times the square root, 512 to 50,257, a multiple of 64.

    The head is most of a small model's arithmetic and rare tokens are never learned, so a small text wants a small one:
    1 MB gets about 1,500 tokens, 12 MB about 5,000.
    """
    return min(50257, max(512, round(1.5 * n_bytes**0.5 / 64) * 64))


@functools.cache
def byte_symbols() -> dict[str, int]:
    """The printable character that byte-level BPE files write for each byte (GPT-2's convention), to the byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


class StreamDecoder:
    """Turns ids into text as they come, holding back the bytes of a character that is not whole yet."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.half: list[int] = []  # an id that made no bytes, as half a byte does: the next one may
        self.held = b""  # the beginning of a character

    def push(self, *ids: int) -> str:
        """The text that has become certain with these ids."""
        return "".join(self._push(i) for i in ids)

    def _push(self, i: int) -> str:
        new = self.tokenizer.decode_bytes([*self.half, i])
        self.half = [] if new else [i]
        raw = self.held + new
        whole = len(raw) - unfinished(raw)
        self.held = raw[whole:]
        return raw[:whole].decode("utf-8", errors="replace")

    def flush(self) -> str:
        """What was held back, whole or not."""
        text, self.half, self.held = self.held.decode("utf-8", errors="replace"), [], b""
        return text


def unfinished(raw: bytes) -> int:
    """How many bytes at the end begin a UTF-8 character that is not whole: 0 to 3."""
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte >= 0xC0:
            return back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else 0
        if byte < 0x80:
            return 0
    return 0


def fingerprint(tokenizer: Tokenizer) -> str:
    """A short name for exactly this vocabulary: token shards are kept under it."""
    return hashlib.sha256(json.dumps(tokenizer.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
