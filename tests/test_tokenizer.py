"""Text to ids and back, in all four ways."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tokenizer as tokenizers
from config import UserError
from tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, StreamDecoder

CORPUS = [
    "The cat sat on the mat, and the cat's hat was flat.\n\nThen they'd gone 1234 miles.\n",
    "naïve café 日本語 🙂 " * 9,
]
KINDS = ["gpt2", "bpe", "byte", "char"]
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=[]), max_size=60)  # lone surrogates as well
MIXED = st.lists(
    st.sampled_from(["the", " cat", "\n", "  ", "\t", "é", "日", "🙂", "x", "'s", "12", "\u0301", "\x85"])
).map("".join)


@pytest.fixture(scope="module")
def bpe():
    return tokenizers.train_bpe(CORPUS, 300)


@pytest.fixture(scope="module", params=KINDS)
def any_kind(request, bpe):
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2")
    return {"bpe": bpe, "byte": ByteTokenizer(), "char": CharTokenizer("".join(CORPUS))}[request.param]


def valid(text: str) -> str:
    """The text with U+FFFD for what no UTF-8 can hold; a pair of surrogates is the character it means."""
    return tokenizers.to_bytes(text).decode()


# ---- what an imported tokenizer has more


BYTES = [bytes([byte]) for byte in range(256)]


def test_tokens_that_no_text_is_cut_into():
    controls, visible = {"<|im_end|>": 258, tokenizers.EOT: 256}, {"<think>": 260}
    imported = BPETokenizer(BYTES, controls=controls, visible=visible, ends=[258])
    assert (imported.eot, imported.ends, imported.vocab_size) == (256, (258, 256), 261)
    assert imported.template_tokens == {"bos_token": tokenizers.EOT, "eos_token": "<|im_end|>"}
    assert imported.encode("<|im_end|><think>").max() < 256
    assert imported.decode([97, 256, 258, 259, 260, 98]) == "a<think>b"
    assert imported.byte_lengths()[256:].tolist() == [0, 0, 0, 0, 7]
    again = tokenizers.from_dict(json.loads(json.dumps(imported.to_dict())))
    assert again.to_dict() == imported.to_dict() and again.names == imported.names and again.ends == imported.ends


def test_the_end_of_text_may_stand_elsewhere_or_be_called_otherwise():
    assert BPETokenizer(BYTES, controls={"<|im_end|>": 256, tokenizers.EOT: 257}).eot == 257
    assert BPETokenizer(BYTES, controls={"</s>": 256}).template_tokens == {"bos_token": "</s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [(ByteTokenizer(), "68513ce4c5d4"), (CharTokenizer("ab"), "feb7d71c6697"), (BPETokenizer(BYTES), "a1efcefedae3")],
    ids=["byte", "char", "bpe"],
)
def test_shards_are_found_by_the_names_that_they_always_had(tokenizer, name):
    assert tokenizers.fingerprint(tokenizer) == name
    assert tokenizers.fingerprint(tokenizers.from_dict(tokenizer.to_dict())) == name


# ---- every kind


@given(text=ANY_TEXT | MIXED)
@example(text="\ud800 lone")
@example(text="\ud83d\ude42 a pair")
@example(text="<|endoftext|>")
@example(text="\x00\r\n\ufeff")
@settings(max_examples=150)
def test_any_text_comes_back(any_kind, text):
    ids = any_kind.encode(text)
    assert ids.dtype == np.uint32
    assert any_kind.decode(ids.tolist()) == valid(text)


@given(text=st.text(max_size=40))
@settings(max_examples=50)
def test_text_without_surrogates_comes_back_exactly(any_kind, text):
    assert any_kind.decode(any_kind.encode(text).tolist()) == text


def test_lone_surrogates_become_the_replacement_character(any_kind):
    assert any_kind.decode(any_kind.encode("a\ud800b").tolist()) == "a\ufffdb"


def test_the_name_of_the_end_of_text_is_ordinary_text(any_kind):
    assert any_kind.eot not in any_kind.encode("a<|endoftext|>b")


def test_eot_is_the_last_id_and_has_no_text(any_kind):
    assert any_kind.eot == any_kind.vocab_size - 1
    assert any_kind.decode([any_kind.eot]) == ""


@given(text=ANY_TEXT | MIXED)
@settings(max_examples=100)
def test_byte_lengths_add_up_to_the_text(any_kind, text):
    lengths = any_kind.byte_lengths()
    assert lengths.shape == (any_kind.vocab_size,)
    assert lengths[any_kind.encode(text)].sum() == len(valid(text).encode())


def test_ids_out_of_range_are_left_out(any_kind):
    ids = any_kind.encode("the cat").tolist()
    assert any_kind.decode([-1, *ids, any_kind.vocab_size, 10**9]) == "the cat"


def test_what_was_written_down_makes_the_same_tokenizer(any_kind):
    again = tokenizers.from_dict(any_kind.to_dict())
    assert (again.kind, again.eot, again.vocab_size) == (any_kind.kind, any_kind.eot, any_kind.vocab_size)
    assert again.to_dict() == any_kind.to_dict()
    assert tokenizers.fingerprint(again) == tokenizers.fingerprint(any_kind)
    text = "The cat's café 🙂 ÿ"
    assert again.encode(text).tolist() == any_kind.encode(text).tolist()


def test_fingerprints_differ_with_the_vocabulary(bpe):
    others = [tokenizers.train_bpe(CORPUS, 290), tokenizers.train_bpe(["another text " * 9], 300)]
    others += [ByteTokenizer(), CharTokenizer("abc"), CharTokenizer("abd")]
    assert len({tokenizers.fingerprint(one) for one in [bpe, *others]}) == 6


# ---- as the ids come


@given(text=ANY_TEXT | MIXED)
@settings(max_examples=100)
def test_streamed_pieces_join_to_the_whole_and_cut_no_character(any_kind, text):
    ids, decoder = any_kind.encode(text).tolist(), StreamDecoder(any_kind)
    pieces = [decoder.push(i) for i in ids]
    assert "".join(pieces) == valid(text)
    assert decoder.flush() == ""


@given(ids=st.lists(st.integers(0, 300), max_size=30))
@example(ids=[0xC3, 0xC3, 0x28])
@example(ids=[0xF8, 0x88, 0x80, 0x80, 0x80])
@settings(max_examples=200)
def test_streaming_nonsense_gives_what_decoding_it_gives(any_kind, ids):
    decoder = StreamDecoder(any_kind)
    assert "".join([*(decoder.push(i) for i in ids), decoder.flush()]) == any_kind.decode(ids)


def test_no_more_is_held_back_than_the_beginning_of_a_character(any_kind):
    """Ids without bytes, and bytes that begin one character after the other, may come for ever."""
    decoder = StreamDecoder(any_kind)
    for i in [any_kind.eot, 0xE2 % any_kind.vocab_size, *any_kind.encode("é").tolist()[:1]] * 50:
        decoder.push(i)
        assert len(decoder.half) <= 1 and len(decoder.held) <= 3


def test_nothing_is_shown_of_a_character_until_it_is_whole():
    decoder = StreamDecoder(ByteTokenizer())
    assert [decoder.push(byte) for byte in "é日🙂".encode()] == ["", "é", "", "", "日", "", "", "", "🙂"]


@given(raw=st.binary(max_size=12))
def test_unfinished_counts_the_bytes_of_a_cut_character(raw):
    cut = tokenizers.unfinished(raw)
    assert 0 <= cut <= 3
    for character in "é日🙂":
        whole = character.encode()
        for n in range(1, len(whole)):
            assert tokenizers.unfinished(b"x" + whole[:n]) == n
        assert tokenizers.unfinished(raw + whole) == 0


# ---- gpt2


def test_gpt2_gives_tiktokens_own_ids(gpt2, gpt2_folder, shared_data, monkeypatch):
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_folder))
    theirs = tiktoken.get_encoding("gpt2")
    texts = [(shared_data / "tinyshakespeare" / "input.txt").read_text()[:50000]]
    texts += [(shared_data / "wikitext-2" / "valid.txt").read_text()[:50000], *CORPUS, "  \n \t x\u3000\u00a0 \n\n"]
    for text in texts:
        assert gpt2.encode(text).tolist() == theirs.encode_ordinary(text)
    assert (gpt2.vocab_size, gpt2.eot) == (50257, theirs.eot_token)


@given(text=ANY_TEXT | MIXED)
@settings(max_examples=150)
def test_gpt2_gives_tiktokens_own_ids_for_any_text(gpt2, text):
    import tiktoken.registry

    theirs = tiktoken.registry.ENCODINGS["gpt2"]  # loaded by the fixture
    assert gpt2.encode(text).tolist() == theirs.encode_ordinary(text)


def test_gpt2_known_ids(gpt2):
    assert gpt2.encode("Hello, world!").tolist() == [15496, 11, 995, 0]


def test_gpt2_out_of_reach_says_what_to_do(tmp_path, monkeypatch):
    import tiktoken.registry

    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(UserError, match="TIKTOKEN_CACHE_DIR") as caught:
        tokenizers.load_gpt2()
    assert "--tokenizer bpe" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


# ---- bpe


def test_bpe_has_the_size_that_was_asked_for(bpe):
    assert bpe.vocab_size == 300


def test_bpe_begins_with_every_byte(bpe):
    assert sorted(bpe.ranks[:256]) == [bytes([i]) for i in range(256)]
    assert all(len(piece) > 1 for piece in bpe.ranks[256:])


def test_bpe_is_the_same_every_time(bpe):
    assert tokenizers.train_bpe(iter(CORPUS), 300).ranks == bpe.ranks


def test_bpe_learns_the_commonest_pair_first():
    learned = tokenizers.train_bpe(["abab ab ab cd"], 258).ranks[256:]
    assert learned == [b"ab"]


def test_bpe_of_a_small_corpus_is_smaller_than_asked():
    assert tokenizers.train_bpe(["abc"], 1000).vocab_size <= 259


def test_bpe_shortens_its_own_corpus(bpe):
    assert len(bpe.encode(CORPUS[0])) < 0.7 * len(CORPUS[0].encode())


def test_bpe_learns_from_text_with_surrogates():
    tokenizers.train_bpe(["a\ud800b" * 9], 260)


def test_bpe_without_room_for_the_bytes_is_refused():
    with pytest.raises(UserError, match="vocab_size is 256") as caught:
        tokenizers.train_bpe(CORPUS, 256)
    assert "--vocab_size 257" in str(caught.value)
    assert tokenizers.train_bpe(CORPUS, 257).vocab_size == 257


def test_automatic_size_grows_with_the_root_of_the_corpus():
    sizes = [tokenizers.automatic_vocab_size(n) for n in (0, 10**4, 10**6, 12 * 10**6, 10**9, 10**13)]
    assert sizes == [512, 512, 1472, 5184, 47424, 50257]
    assert all(a <= b for a, b in itertools.pairwise(sizes))


# ---- char


def test_char_ids_are_in_code_point_order():
    tokenizer = CharTokenizer("hello")
    assert tokenizer.characters == "ehlo"
    assert tokenizer.encode("hole").tolist() == [1, 3, 2, 0]
    assert tokenizer.vocab_size == 4 + 16 + 1


def test_char_spells_an_unknown_character_in_halves_of_its_bytes():
    tokenizer = CharTokenizer("ab")
    assert tokenizer.encode("aéb").tolist() == [0, 2 + 0xC, 2 + 0x3, 2 + 0xA, 2 + 0x9, 1]


def test_char_known_characters_among_unknown_ones():
    tokenizer = CharTokenizer("ab")
    for text in ("", "x", "xa", "ax", "xaxbx", "abxxab"):
        assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


def test_char_a_text_of_unknown_characters_alone_is_no_flood():
    """Each of them took a call of numpy once, eight seconds for a million."""
    tokenizer = CharTokenizer("ab")
    t0 = time.process_time()
    ids = tokenizer.encode("7€😀é" * 50_000)
    assert time.process_time() - t0 < 1
    assert tokenizer.decode(ids[:40].tolist()) == "7€😀é" * 2 and len(ids) == 50_000 * 2 * (1 + 3 + 4 + 2)


def test_char_a_stray_half_is_dropped():
    tokenizer = CharTokenizer("ab")
    assert tokenizer.decode([0, 2 + 4, 1]) == "ab"
