"""One GPT for text, pictures and sounds: batches that follow from (seed, k), encoders that do not care for padding, an engine that sees what
training saw, runs that resume and share exactly, and a model of text that keeps its words when it learns to see."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import checkpoint
from config import ROOT, MediaModelConfig, ModelConfig, TrainConfig, UserError
from inference.dialogue import Chat, Message
from inference.engine import Engine, text_of
from inference.request import Request, Settings
from model import GPT, IGNORE
from multimodal import embedded, judge, run, shards
from multimodal.batches import collate, cuts, media_row
from multimodal.corpus import MediaCorpus, mixed, named, open_corpus
from multimodal.fusion import Batch, MultimodalGPT
from multimodal.samples import Picture, Sample, Sound, Turn
from multimodal.spectrogram import MELS, log_mel
from multimodal.task import MediaTask
from tests.runs import equal, events, finish, flags, losses, main_here, resume, without_clock
from tests.test_distributed import torchrun
from tokenizer import ByteTokenizer
from training.distributed import Ranks
from training.evaluate import score

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 210)}
SHAPE = {"architecture": "modern", "modalities": "image,audio", "n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 96}
TINY = {
    "preset": "multimodal", "n_layer": 1, "n_head": 2, "n_embd": 32, "block_size": 128, "tokenizer": "byte", "vocab_size": 0, "time": "",
    "batch_size": 8, "max_iters": 8, "eval_interval": 4, "compile": "off", "dtype": "float32", "progress": False,
}  # fmt: skip


def write_rows(folder, count: int = 24) -> None:
    """Pictures of one colour, tones of two heights, both, and text, in rows.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows = []
    for n in range(count):
        colour = list(COLOURS)[n % 3]
        noisy = np.clip(np.array(COLOURS[colour]) + random.normal(0, 20, (24, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{n}.png")
        height = ("low", "high")[n % 2]
        t = np.arange(2000 + 40 * n) / 8000
        soundfile.write(folder / f"{n}.wav", 0.3 * np.sin(2 * np.pi * (300 if height == "low" else 1500) * t), 8000)
        rows += [
            {"image": f"{n}.png", "text": colour},
            {"audio": f"{n}.wav", "text": height},
            {"image": f"{n}.png", "audio": f"{n}.wav", "question": "both", "text": f"{colour} {height}"},
            {"text": f"nothing to see, number {n}"},
        ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Rows, and a home for what is made of them."""
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    write_rows(tmp_path / "own")
    return tmp_path / "own/rows.jsonl"


def corpus_of(data, **changes) -> tuple[MediaCorpus, TrainConfig]:
    config = TrainConfig(data=str(data), tokenizer="byte", batch_size=8, **changes)
    return open_corpus(config, MediaModelConfig(vocab_size=0, **SHAPE), 0, None, progress=False), config


def tiny_model(seed: int = 0, **changes) -> MultimodalGPT:
    """A model with random weights everywhere: fresh ones start as the identity, and hide mistakes."""
    torch.manual_seed(seed)
    model = MultimodalGPT(MediaModelConfig(**{**SHAPE, "vocab_size": ByteTokenizer().vocab_size, **changes}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def task_of(data, ranks: Ranks | None = None, **changes) -> MediaTask:
    corpus, config = corpus_of(data, **changes)
    return MediaTask(corpus, config, SHAPE["block_size"], ranks or Ranks(0, 1, torch.device("cpu")))


# ---- batches


def test_a_batch_follows_from_seed_and_step(data):
    one, again = task_of(data), task_of(data)
    for step in (0, 3, 40):
        assert equal(vars(one.batch(step)[0]), vars(again.batch(step)[0]))
    assert not torch.equal(one.batch(0)[0].idx, one.batch(1)[0].idx)
    other = task_of(data, seed=7)
    assert any(one.batch(k)[0].idx.tolist() != other.batch(k)[0].idx.tolist() for k in range(3))


def test_two_ranks_share_the_rows_of_one(data):
    whole = task_of(data).batch(5)[0]
    parts = [task_of(data, Ranks(rank, 2, torch.device("cpu"))).batch(5)[0] for rank in (0, 1)]
    assert sum(len(part) for part in parts) == len(whole)
    rows = sorted(row[row != 0].tolist() for row in whole.idx)
    assert rows == sorted(row[row != 0].tolist() for part in parts for row in part.idx)
    assert all(torch.equal(part.words, whole.words) for part in parts)


def test_every_row_comes_once_an_epoch(data):
    task = task_of(data, augment=0.0)
    count = len(task.corpus.train.rows)
    mixture = task.mixture
    drawn = [mixture.shuffled(str(data), 0)[n] for n in range(count)]
    assert sorted(drawn) == list(range(count))


def test_the_loss_of_a_batch_is_the_mean_of_its_micro_batches(data):
    model, batch = tiny_model(), task_of(data).batch(0)[0]
    pieces = [model(batch[start : start + 2]).detach() for start in range(0, len(batch), 2)]
    assert torch.stack(pieces).mean() == pytest.approx(float(model(batch).detach()), rel=1e-5)


def test_a_batch_is_cut_into_as_many_pieces_as_asked_for_and_padded_least():
    """Against all ways to cut, for blocks that are multiples of 16 and others."""
    random = np.random.default_rng(0)
    for micro, block in ((4, 10**8), (6, 10**8), (6, 160), (4, 100), (8, 100), (6, 200), (12, 10**8), (24, 10**8)):
        for _ in range(20):
            lengths, most = sorted(random.choice([*range(1, 70), min(block, 160), min(block, 200)], 24).tolist()), micro * block

            def padded(ends, lengths=lengths, block=block):
                return [(end - start) * min(block, -(-lengths[end - 1] // 16) * 16) for start, end in pairwise((0, *ends))]

            places = range(math.gcd(micro, 8), 24, math.gcd(micro, 8))
            ways = [[*some, 24] for some in combinations(places, 24 // micro - 1)]
            found = cuts(lengths, micro, most)
            assert found in ways and max(padded(found)) <= most
            assert sum(padded(found)) == min(sum(padded(way)) for way in ways if max(padded(way)) <= most)


def test_a_batch_of_rows_as_long_as_an_odd_block_is_cut():
    ends = cuts([30] * 57 + [200] * 7, 8, 8 * 200)
    assert len(ends) == 8 and ends[-1] == 64 and all(a < b for a, b in pairwise((0, *ends)))


def test_only_answers_and_texts_are_learned(data):
    task = task_of(data)
    batch, tokenizer = task.batch(0)[0], task.tokenizer
    for row, targets in zip(batch.idx, batch.targets, strict=True):
        learned = tokenizer.decode([i for i in targets[targets != IGNORE].tolist() if i != tokenizer.eot])
        assert learned.strip() in {"low", "high", *COLOURS} or learned.startswith("nothing") or learned.split()[0] in COLOURS
        assert row[0] == tokenizer.eot


def test_a_row_counts_as_the_root_of_what_is_learned_of_it(data):
    task = task_of(data)
    whole = task.mixture.batch(0)
    roots = (whole.targets != IGNORE).sum(1).sqrt()
    assert len(set(roots.tolist())) > 1
    assert torch.allclose(whole.weights.sum(1), roots / roots.mean())
    assert torch.allclose(whole.weights[whole.targets == IGNORE], torch.zeros(()))
    shares = [task.mixture.batch(0, rank, 2) for rank in (0, 1)]
    assert float(sum(share.weights.sum() for share in shares)) == pytest.approx(len(whole))


def test_every_answer_of_a_conversation_ends(data):
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 3, ("a", "one", "b", "two", "c", "three"), strict=True)]
    data.write_text("\n".join([json.dumps({"messages": turns})] * 40))
    task = task_of(data)
    rows, tokenizer = task.corpus.train, task.tokenizer
    batch = collate([media_row(rows, 0, 96)], rows, 96)
    read = tokenizer.decode(batch.idx[0, 1:].tolist())
    targets = batch.targets[0][batch.targets[0] != IGNORE].tolist()
    assert "".join(tokenizer.decode([n]) if n != tokenizer.eot else "." for n in targets) == " one. two. three."
    assert " one\nUser: b\nAssistant: two\nUser: c\nAssistant: three" in read


def test_words_are_hidden_from_the_model_but_learned(data):
    task = task_of(data)
    plain, eot = collate([media_row(task.corpus.train, 0, 96)], task.corpus.train, 96), task.tokenizer.eot
    random = np.random.default_rng(0)
    hidden = collate([media_row(task.corpus.train, 0, 96, random, 0.0, word_dropout=1.0)], task.corpus.train, 96)
    asked = plain.targets[0, :-1] != IGNORE
    asked[int(plain.lengths[0]) - 1 :] = False  # the end of the text is no input
    assert torch.equal(plain.targets, hidden.targets)
    assert (hidden.idx[0, 1:][asked] == eot).all() and torch.equal(hidden.idx[0, 1:][~asked], plain.idx[0, 1:][~asked])


# ---- encoders


def test_what_lies_behind_a_sound_changes_nothing():
    model = tiny_model()
    long, short = torch.randn(1, 80, MELS), torch.randn(1, 33, MELS)
    padded = torch.full((2, 80, MELS), 7.0)
    padded[0], padded[1, :33] = long[0], short[0]
    together = model.audio(padded, torch.tensor([80, 33]))
    alone = model.audio(short, torch.tensor([33]))
    assert torch.allclose(together[1, : alone.size(1)], alone[0], atol=1e-5)
    assert torch.allclose(together[0], model.audio(long, torch.tensor([80]))[0], atol=1e-5)


def test_what_a_microphone_adds_to_a_band_throughout_is_not_heard():
    model, sound, frames = tiny_model(), torch.randn(1, 80, MELS), torch.tensor([61])
    leaning = sound + torch.linspace(-1, 1, MELS)
    assert torch.allclose(model.audio(sound, frames), model.audio(leaning, frames), atol=1e-4)
    assert not torch.allclose(model.audio(sound, frames), model.audio(sound + torch.randn(1, 80, 1), frames), atol=1e-2)


@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_pictures_of_every_size_are_sixteen_vectors(side):
    model = tiny_model(image_size=side)
    assert model.image(torch.randint(256, (3, side, side, 3), dtype=torch.uint8)).shape == (3, 16, 32)


def test_a_spectrogram_shows_a_tone_where_it_is():
    """Low tones light low bands, and twice as loud is as much brighter everywhere."""
    t = torch.arange(8000) / 8000
    bands = [int(log_mel(torch.sin(2 * torch.pi * hertz * t), 8000).mean(0).argmax()) for hertz in (200, 800, 3000)]
    assert bands == sorted(bands) and len(set(bands)) == 3
    quiet, loud = (log_mel(scale * torch.sin(2 * torch.pi * 800 * t), 8000).max() for scale in (0.1, 1.0))
    assert float(loud - quiet) == pytest.approx(0.5, abs=1e-3)  # two tens of decibels, over four


def test_the_loss_of_hearing_is_that_of_all_alignments():
    """CTC by brute force: every way to spell two words over a few vectors."""
    import itertools

    model = tiny_model(vocab_size=260)
    frames = torch.tensor([32])
    batch = Batch(*[torch.empty(0)] * 6, torch.randn(1, 32, MELS), frames, *[torch.empty(0)] * 2, torch.tensor([[5, 9]]), torch.empty(0))
    heard = model.audio(batch.spectrograms, frames)  # (1, 4, C)
    fits = model.audio.words(heard, model.wte.weight[:260])
    chances = torch.cat((fits, model.audio.blank(heard)), -1).softmax(-1)[0]  # (4, 261)
    total = 0.0
    for path in itertools.product((5, 9, 260), repeat=4):
        spelt = [i for n, i in enumerate(path) if i != 260 and (n == 0 or i != path[n - 1])]
        total += float(chances[range(4), path].prod().detach()) if spelt == [5, 9] else 0.0
    assert float(model.heard_words_loss(batch, heard).detach()) == pytest.approx(-np.log(total) / 2, rel=1e-3)


# ---- the engine sees what training sees


def media_prompt(model) -> tuple[Chat, list[Message]]:
    random = np.random.default_rng(1)
    picture = Picture(random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    sound = Sound(random.normal(0, 0.1, 4000).astype(np.float32))
    return Chat(ByteTokenizer(), documents=True, places=model.places), [Message("user", (picture, "a", sound, "b"))]


def test_the_engine_answers_as_the_whole_forward_does():
    model, tokenizer = tiny_model(), ByteTokenizer()
    chat, messages = media_prompt(model)
    prompt = chat.prompt(messages, model.config.block_size)
    pieces = []
    engine = Engine(model, tokenizer, slots=2)
    engine.chunk = 7  # pictures and sounds are cut by the chunks they are read in
    engine.run([Request(prompt.ids, Settings(max_new_tokens=8, temperature=0, ignore_eos=True), pieces.append, media=prompt.media)])
    written = [token.id for piece in pieces for token in piece.tokens]
    ids, vectors = list(prompt.ids), model.encode(prompt.media)
    with torch.no_grad():
        for _ in range(8):
            row = torch.tensor([ids])
            ids.append(int(model.logits(model.hidden(row, x=model.fuse(row, vectors)))[0, -1].argmax()))
    assert written == ids[len(prompt.ids) :]


def test_a_prompt_has_the_ids_of_a_training_row(data):
    """What the server makes of a question is what training showed, up to the answer."""
    corpus, _ = corpus_of(data)
    for samples in corpus.val.some(3).values():
        for sample in samples:
            model = tiny_model()
            prompt = Chat(corpus.tokenizer, documents=True, places=model.places).prompt([Message(t.role, t.parts) for t in sample.turns[:-1]], 96)
            ids, learned = shards.encode(shards.outline(sample), corpus.tokenizer)
            asked = [i for i, is_learned in zip(ids, learned, strict=True) if not is_learned]
            assert [i for i in prompt.ids if i >= 0] == [i for i in asked if i >= 0]


def test_another_picture_is_not_taken_for_one_that_was_kept():
    model, tokenizer = tiny_model(), ByteTokenizer()
    engine = Engine(model, tokenizer, slots=1)
    told = []
    for seed in (1, 2, 1):
        picture = Picture(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        prompt = Chat(tokenizer, documents=True, places=model.places).prompt([Message("user", (picture, "what"))], 96)
        pieces = []
        settings = Settings(max_new_tokens=6, temperature=0, ignore_eos=True, logprobs=3)
        engine.run([Request(prompt.ids, settings, pieces.append, scope="one", media=prompt.media)])
        told.append([token.logprob for piece in pieces for token in piece.tokens])
    assert told[0] == pytest.approx(told[2], abs=1e-4) and told[0] != pytest.approx(told[1], abs=1e-4)


# ---- judging


def test_a_judge_who_knows_sees_through_the_controls(monkeypatch):
    """Answers by a model that only looks: right with its media, wrong without, and with those of another row."""
    samples = [
        Sample("part", (Turn("user", (Picture(np.full((4, 4, 3), 10 + n, np.uint8)), "describe")), Turn("assistant", (f"number {10 + n}",))))
        for n in range(10)
    ]

    def looks(model, tokenizer, rows):
        return [f"number {row.media[0].pixels[0, 0, 0]}" for row in rows]

    monkeypatch.setattr(judge, "answers", looks)
    verdict, examples = judge.judge(None, None, "part", samples)
    assert (verdict.exact, verdict.blank, verdict.shuffled) == (1.0, 0.0, 0.0)
    assert verdict.cer == 0 and verdict.floor == 0.1 and all(example.right for example in examples)


def turns_of(picture: Picture, last: str, answer: str) -> Sample:
    """A conversation of several turns, the picture in the first."""
    said = [("user", (picture, "a")), ("assistant", ("one",)), ("user", ("b",)), ("assistant", ("two",)), ("user", (last,))]
    return Sample("rows", tuple(Turn(*each) for each in (*said, ("assistant", (answer,)))))


def test_a_row_is_asked_whole_and_answered_with_all_the_room_that_is_left(monkeypatch):
    """Rows up to the longest that are trained on, of a tokenizer with which an answer has many tokens."""
    model, tokenizer, requests = tiny_model(block_size=192), ByteTokenizer(), []
    monkeypatch.setattr(judge.Engine, "run", lambda self, some: requests.extend(some))
    picture = Picture(np.zeros((32, 32, 3), np.uint8))
    most = max(n for n in range(192) if judge.fits(turns_of(picture, "c" * n, "ddd"), tokenizer, model.config))
    samples = [turns_of(picture, "c" * asked, "d" * said) for asked, said in ((1, 3), (most - 1, 3), (most, 3), (12, 80), (1, 0))]
    judge.answers(model, tokenizer, samples)
    for sample, request in zip(samples, requests, strict=True):
        ids, _ = shards.encode(shards.outline(sample), tokenizer)
        said = len(tokenizer.encode(judge.truth(sample))) + bool(judge.truth(sample))
        assert [i for i in request.ids if i >= 0] == [i for i in ids[: len(ids) - said - 1] if i >= 0]
        assert request.places == 16 and list(request.media) == [picture]
        assert request.settings.max_new_tokens == 193 - len(request.ids) >= said + 1
    assert requests[2].settings.max_new_tokens == 5, "a row that fills the block has its answer and an end"


def test_media_that_another_row_lent_leave_room_for_an_answer(monkeypatch):
    model, tokenizer, requests = tiny_model(), ByteTokenizer(), []
    monkeypatch.setattr(judge.Engine, "run", lambda self, some: requests.extend(some))
    long = Sound(np.zeros(32000, np.float32))
    judge.answers(model, tokenizer, [Sample("rows", (Turn("user", (long, "e" * 60)), Turn("assistant", ("yes",))))])
    assert len(requests[0].ids) > 96 and requests[0].settings.max_new_tokens == 5


def test_rows_that_the_block_has_no_room_for_are_not_judged(data, monkeypatch):
    rows = [json.dumps({"image": f"{n % 24}.png", "text": list(COLOURS)[n % 3] + " and on" * (20 * (n % 2))}) for n in range(48)]
    data.write_text("\n".join(rows))
    corpus, _ = corpus_of(data, val_fraction=0.5)
    kept = [sample for some in corpus.val.some(500).values() for sample in some]
    assert len(kept) == len(corpus.val.rows) < corpus.meta["val"]["rows"]
    for sample in kept:
        shown = sample.media[0].pixels.mean((0, 1))
        assert min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - shown).sum()) == judge.truth(sample)
    assert [len(some) for some in corpus.val.some(3).values()] == [3]
    fresh = [turns_of(Picture(np.zeros((32, 32, 3), np.uint8)), "c", "d" * n) for n in (3, 3, 90)]
    monkeypatch.setattr(judge, "embedded_rows", lambda *_: {"captions": fresh})
    monkeypatch.setattr(judge, "answers", lambda model, tokenizer, samples: list(map(judge.truth, samples)))
    verdicts, _ = run.judged(corpus, tiny_model(), corpus.tokenizer)
    assert {verdict.part: verdict.count for verdict in verdicts} == {"captions": 2, str(data): len(kept)}


def test_error_rates_are_those_of_the_textbook():
    truths, given = ["one two three"], ["one too three four"]
    words = [text.split() for text in given], [text.split() for text in truths]
    assert judge.error_rate(*words) == pytest.approx(2 / 3)  # one substituted, one inserted
    assert judge.error_rate(given, truths) == pytest.approx(6 / 13)


# ---- runs


def run_flags(folder, run: str = "a", **changes) -> list[str]:
    if not (folder / "own").exists():
        write_rows(folder / "own")
    places = {"data": folder / "own/rows.jsonl", "out_dir": folder / "out", "log_dir": folder / "logs", "run": run}
    return flags(**{**TINY, **places, **changes})


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run in one go."""
    folder = tmp_path_factory.mktemp("seeing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "DATA", folder / "data")
        assert main_here(folder, patch, *run_flags(folder)) == 0
    return folder


def test_a_run_logs_its_parts_and_draws_its_sheets(straight):
    last = events(straight, "evaluation")[-1]
    [(name, part)] = last["parts"].items()
    assert name.endswith("rows.jsonl") and 0 <= part["accuracy"] <= 1 and np.isfinite(last["bpb"])
    assert (straight / "logs/a/examples.png").exists() and (straight / "logs/a/examples_001.png").exists()
    summary = json.loads((straight / "logs/a/summary.json").read_text())
    [answer] = summary["answers"].values()
    assert {"exact", "wer", "cer", "blank", "shuffled", "floor"} <= answer.keys()


def test_a_run_of_plain_text_has_no_examples_and_no_sheet(tmp_path, monkeypatch, capsys):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/rows.jsonl").write_text("\n".join(json.dumps({"text": f"nothing to see, number {n}"}) for n in range(40)))
    assert main_here(tmp_path, monkeypatch, *run_flags(tmp_path, max_iters=2, eval_interval=1)) == 0
    assert np.isfinite(events(tmp_path, "evaluation")[-1]["loss"])
    assert not list((tmp_path / "logs/a").glob("examples*"))
    assert "by generation" not in capsys.readouterr().out


def test_the_commands_below_a_sheet_ask_what_was_asked_last(tmp_path):
    pictures = [Picture(np.full((16, 16, 3), 50 * n, np.uint8)) for n in (1, 2, 3)]
    sound = Sound(np.zeros(800, np.float32))
    turns = [
        Turn("system", ("be brief",)), Turn("user", (*pictures[:2], "first")), Turn("assistant", ("one",)),
        Turn("user", (pictures[2], sound, "it's \"$HOME\"?")), Turn("assistant", ("two",)),
    ]  # fmt: skip
    described = (Turn("user", (pictures[0], "describe")), Turn("assistant", ("dark",)))
    rows = [Sample("rows", tuple(turns)), Sample("rows", described), Sample("rows", (Turn("assistant", ("hello",)),))]
    folder = tmp_path / "a folder"
    several, one, none = map(shlex.split, run.write_media(folder, [judge.Example("rows", row, "", "") for row in rows], 8000))
    names = [folder / name for name in ("1.png", "1_2.png", "1_3.png")]
    assert several == [*(word for name in names for word in ("--image", str(name))),
                       "--audio", str(folder / "1.wav"), "--prompt", "it's \"$HOME\"?"]  # fmt: skip
    assert [np.asarray(Image.open(name)).max() for name in names] == [50, 100, 150]
    assert one == ["--image", str(folder / "2.png")] and none == []


def test_a_resumed_run_has_the_bits_of_a_straight_one(straight, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    assert main_here(tmp_path, monkeypatch, *run_flags(tmp_path, max_iters=8, patience=1)) == 0  # the reference on the same paths
    whole = checkpoint.load(tmp_path / "out/a/last.pt")
    assert main_here(tmp_path, monkeypatch, *run_flags(tmp_path, "b", max_iters=8, save_interval=4)) == 0
    step = checkpoint.load(tmp_path / "out/b/step_00000004.pt")
    checkpoint.write(tmp_path / "out/b/last.pt", {key: value for key, value in step.items() if key != "format"})
    for name in ("previous.pt", "step_00000008.pt"):
        (tmp_path / "out/b" / name).unlink(missing_ok=True)
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, "b")) == 0
    again = checkpoint.load(tmp_path / "out/b/last.pt")
    assert equal(without_clock(whole)["model"], without_clock(again)["model"])
    assert losses(tmp_path, "b") == losses(tmp_path, "a")


def test_a_run_with_a_budget_of_time_is_gone_on_with(tmp_path, monkeypatch):
    """What follows from how long rows are on average stands in its checkpoints, which hold plain numbers only."""
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    monkeypatch.setattr("train.CLOSING", 0.1)
    assert main_here(tmp_path, monkeypatch, *run_flags(tmp_path, "b", time="4s")) == 0
    before = checkpoint.load(tmp_path / "out/b/last.pt")["training"]["progress"]["step"]
    assert main_here(tmp_path, monkeypatch, *resume(tmp_path, "b", time="4.5s")) == 0
    assert checkpoint.load(tmp_path / "out/b/last.pt")["training"]["progress"]["step"] > before


@pytest.mark.parametrize("fsdp", [False, True], ids=["whole", "shards"])
def test_two_ranks_have_the_losses_of_one(tmp_path, monkeypatch, fsdp):
    """At a low rate: where a gradient is next to nothing, AdamW's first steps go by a sign that rounding decides."""
    together = {"batch_size": 8, "micro_batch_size": 2, "max_iters": 6, "eval_interval": 3, "optimizer": "adamw", "learning_rate": 1e-4}
    done = finish(torchrun(tmp_path, *run_flags(tmp_path, "two", fsdp=fsdp, **together)))
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    assert main_here(tmp_path, monkeypatch, *run_flags(tmp_path, "one", **together)) == 0
    one, two = losses(tmp_path, "one"), losses(tmp_path, "two")
    assert one.keys() == two.keys() and max(abs(one[k] - two[k]) for k in one) < 1e-5


def test_evaluate_says_it_again(straight, monkeypatch, capsys):
    monkeypatch.setattr(shards, "DATA", straight / "data")
    assert main_here(straight, monkeypatch, "evaluate", str(straight / "out/a")) == 0
    told = capsys.readouterr().out
    assert "bits per byte" in told and "by generation" in told and "shuffled" in told


def test_other_data_are_evaluated_without_the_mixture_and_the_strictness_of_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    set_so = {"mix": f"{tmp_path / 'own/rows.jsonl'}=2", "strict": True, "max_iters": 1, "sample_tokens": 0}
    assert main_here(tmp_path, monkeypatch, *run_flags(tmp_path, **set_so)) == 0
    write_rows(tmp_path / "other")
    with open(tmp_path / "other/rows.jsonl", "a") as file:
        file.write('\n{"image": "gone.png", "text": "red"}')
    capsys.readouterr()
    assert main_here(tmp_path, monkeypatch, "evaluate", str(tmp_path / "out/a"), "--data", str(tmp_path / "other/rows.jsonl")) == 0
    told = capsys.readouterr().out
    assert "missing media file" in told and "by generation" in told


def test_a_part_that_the_data_do_not_have_is_told_in_sentences():
    with pytest.raises(UserError, match=r"^mix names 'quux'\. The parts of --data are captions\.$"):
        mixed({"captions": 1.0}, "quux=2")
    with pytest.raises(UserError, match=r"did you mean captions\? The parts"):
        mixed({"captions": 1.0}, "caption=2")


def test_a_model_that_sees_is_not_exported(straight, monkeypatch, capsys):
    for format_ in ("hf", "gguf"):
        out = straight / f"exported-{format_}"
        assert main_here(straight, monkeypatch, "export", str(straight / "out/a"), "--out", str(out), "--format", format_) == 2
        assert "image,audio" in capsys.readouterr().err and not out.exists()


def test_a_model_of_text_keeps_its_words_when_it_learns_to_see(tmp_path, monkeypatch):
    """With the GPT frozen, it goes on with a text as it did before; only its encoders have learned."""
    torch.manual_seed(3)
    tokenizer = ByteTokenizer()
    before = GPT(ModelConfig(architecture="modern", vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=32, block_size=128))
    provenance = {"run": "text", "step": 1, "documents": True, "val_loss": 1.0, "train_config": {}}
    checkpoint.write(tmp_path / "text.pt", checkpoint.content_of(before, tokenizer, provenance))
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    start = {"init_from": tmp_path / "text.pt", "freeze": "gpt"}
    assert main_here(tmp_path, monkeypatch, *run_flags(tmp_path, **start)) == 0
    after, _, _ = checkpoint.load_model(tmp_path / "out/a")
    idx = torch.randint(tokenizer.vocab_size, (2, 50), generator=torch.Generator().manual_seed(1))
    assert torch.equal(after(idx), before.eval()(idx))
    first = MultimodalGPT(after.config)
    first.take_over(before.state_dict())
    assert not torch.equal(after.image.proj.weight, first.image.proj.weight)


def test_a_checkpoint_from_when_these_numbers_had_no_dimension_is_read():
    model, other = tiny_model(seed=1), tiny_model(seed=2)
    old = {name: weight.squeeze() if name.endswith(("sharpness", "doubt")) else weight for name, weight in model.state_dict().items()}
    assert old["image.sharpness"].ndim == 0
    other.load_state_dict(old)
    assert equal(other.state_dict(), model.state_dict())


def test_an_encoder_begins_as_loud_as_the_words_it_comes_to():
    loud = GPT(ModelConfig(**{**{k: v for k, v in SHAPE.items() if k != "modalities"}, "vocab_size": 257}))
    with torch.no_grad():
        loud.wte.weight.normal_(std=3.0)
    model = MultimodalGPT(MediaModelConfig(**SHAPE, vocab_size=257))
    model.take_over(loud.state_dict())
    seen = model.image(torch.randint(256, (64, 32, 32, 3), dtype=torch.uint8))
    assert float(seen.detach().std()) == pytest.approx(3.0, rel=0.3)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"modalities": "smell"}, "smell"), ({"freeze": "nose"}, "nose"), ({"freeze": "gpt,image,audio"}, "nothing to train"),
        ({"mix": "rows=2"}, "rows"), ({"image_size": 33}, "image_size"), ({"ngrams": 2}, "--ngrams 0"),
        ({"data": "captions", "modalities": "audio"}, "captions"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"), ({"block_size": 8}, "block_size"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_sentence(tmp_path, monkeypatch, capsys, changes, word):
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    assert main_here(tmp_path, monkeypatch, *run_flags(tmp_path, **changes)) == 2
    told = capsys.readouterr().err
    assert word in told and "Traceback" not in told


def test_text_alone_freezes_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text("a few words " * 400)
    small = flags(data=tmp_path / "text.txt", tokenizer="byte", n_layer=1, n_head=1, n_embd=16, block_size=16, freeze="gpt", max_iters=1)
    assert main_here(tmp_path, monkeypatch, *small, "--out_dir", str(tmp_path / "out"), "--log_dir", str(tmp_path / "logs")) == 2
    assert "modalities" in capsys.readouterr().err


def test_a_short_evaluation_has_rows_of_every_part():
    part = np.repeat([0, 1, 2], (200, 200, 40))
    rows = np.array(list(zip(part, np.repeat([30, 90, 50], (200, 200, 40)), strict=True)), [("part", int), ("places", int)])
    task = MediaTask.__new__(MediaTask)
    task.corpus = SimpleNamespace(val=SimpleNamespace(rows=rows))
    assert sorted(np.concatenate(task.validation_groups(1.0))) == list(range(len(rows)))
    some = np.concatenate(task.validation_groups(0.1))
    assert np.bincount(part[some]).tolist() == [20, 20, 4]


@pytest.mark.parametrize("text", [None, score([(30.0, 10, 40), (10.0, 10, 40)])])
def test_the_loss_weighs_the_parts_by_their_shares_and_rows_make_it_up(text):
    """Rows of (part, nats, tokens foreseen, tokens, bytes): two of a part drawn three times as often as the next, and what is held out."""
    task = MediaTask.__new__(MediaTask)
    parts = ["speech", "captions", "speech, held out"]
    task.corpus = SimpleNamespace(val=SimpleNamespace(parts=parts), shares={"speech": 3.0, "captions": 1.0, "stories": 4.0 if text else 0.0})
    found = task.score([(0, 2.0, 1, 2, 8), (0, 6.0, 1, 2, 8), (1, 12.0, 0, 3, 9), (2, 90.0, 0, 1, 4)], text)
    answers = (3 * (1.0 + 3.0) / 2 + 1 * 4.0) / 4
    assert found.loss == pytest.approx((answers + text.loss) / 2 if text else answers)
    assert found.terms.sum() == pytest.approx(found.loss) and found.terms[3] == 0
    assert len(found.terms) == 4 + (2 if text else 0)


def test_media_are_made_once(data):
    t0 = time.monotonic()
    first, _ = corpus_of(data)
    written = {path: path.stat().st_mtime_ns for path in first.train.media.folder.parent.rglob("*") if path.is_file()}
    again, _ = corpus_of(data)
    assert {path: path.stat().st_mtime_ns for path in again.train.media.folder.parent.rglob("*") if path.is_file()} == written
    assert again.data_hash == first.data_hash and time.monotonic() - t0 < 30


def test_a_rows_words_are_what_it_is_asked_for():
    picture, sound = Picture(np.zeros((4, 4, 3), np.uint8)), Sound(np.zeros(10, np.float32), said="who is it")
    asked = Sample("x", (Turn("user", (picture, sound)), Turn("assistant", ("a cat",))))
    described = Sample("x", (Turn("user", (picture, "describe")), Turn("assistant", ("a cat",))))
    assert shards.outline(asked)["heard"] == ["who is it"] and shards.outline(asked)["seen"] == [""]
    assert shards.outline(described)["seen"] == ["a cat"]
    known = Sample("x", (Turn("user", (replace(picture, said="a small cat"), "how large is it")), Turn("assistant", ("small",))))
    assert shards.outline(known)["seen"] == ["a small cat"]


def test_a_picture_is_asked_several_things_in_training_and_one_when_judged():
    several = next(iter(embedded.questions(1, 0, embedded.Setting(16, questions=4))))
    assert [turn.role for turn in several.turns] == ["user", "assistant"] * 4
    assert sum(isinstance(part, Picture) for turn in several.turns for part in turn.parts) == 1
    assert len({turn.parts[-1] for turn in several.turns[::2]}) == 4, "each another question"
    assert len(next(iter(embedded.questions(1, 0, embedded.Setting(16)))).turns) == 2


def test_the_embedded_speech_has_the_rate_of_the_model():
    """The same words at another rate: as long in seconds, and the same wave where both have samples."""
    for part in ("speech", "spoken-questions", "silence"):
        for usual, finer in zip(*(embedded.PARTS[part].make(3, 0, embedded.Setting(16, rate=rate)) for rate in (8000, 16000)), strict=True):
            [one], [two] = ([each.wave for each in sample.media if isinstance(each, Sound)] for sample in (usual, finer))
            assert len(two) == 2 * len(one) <= 16000 * embedded.PARTS[part].seconds
            assert two.dtype == np.float32 and np.corrcoef(one[100:-100], two[200:-200:2])[0, 1] > 0.99
    fresh = judge.embedded_rows(["silence"], MediaModelConfig(**{**SHAPE, "vocab_size": 257, "audio_rate": 16000}), 2)
    [usual, *_] = embedded.silences(1, judge.FRESH, embedded.Setting(16))
    assert len(fresh["silence"][0].media[0].wave) == 2 * len(usual.media[0].wave)


def test_a_corpus_has_the_embedded_speech_at_the_rate_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    model = MediaModelConfig(**{**SHAPE, "vocab_size": 0, "audio_rate": 16000})
    corpus = open_corpus(TrainConfig(data="silence", tokenizer="byte"), model, 0, None, progress=False)
    [usual, *_] = embedded.silences(1, 0, embedded.Setting(16))
    seconds = len(usual.media[0].wave) / 8000
    assert len(corpus.train.media.spectrogram(0)) == int(100 * seconds)


@pytest.mark.parametrize("data", ["multimodal", "silence,speech", "spoken-questions"])
def test_embedded_speech_that_is_longer_than_the_model_hears_is_refused_before_it_is_made(tmp_path, monkeypatch, data):
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    config = TrainConfig(data=data, tokenizer="byte")
    with pytest.raises(UserError, match="audio_seconds 3"):
        open_corpus(config, MediaModelConfig(**{**SHAPE, "vocab_size": 0, "audio_seconds": 2.0}), 0, None, progress=False)
    assert not (tmp_path / "data").exists()
    assert named(config, MediaModelConfig(**{**SHAPE, "vocab_size": 0, "audio_seconds": 3.0}))


def test_pieces_are_text():
    """`text_of` is what judging joins: an engine's error is not a wrong answer."""
    from inference.request import Piece

    with pytest.raises(RuntimeError):
        text_of(Piece("", error="it broke"))


@pytest.mark.parametrize(("verb", "word"), [(["export", "RUN", "--out", "x"], "image,audio"), (["average", "RUN", "RUN", "--out", "x.pt"], "")])
def test_the_verbs_on_checkpoints_know_models_that_see_in_a_process_of_their_own(tmp_path, monkeypatch, verb, word):
    monkeypatch.setattr(shards, "DATA", tmp_path / "data")
    saved = checkpoint.content_of(tiny_model(), ByteTokenizer(), {"run": "a", "step": 1, "documents": True, "val_loss": 1.0, "train_config": {}})
    checkpoint.write(tmp_path / "a.pt", saved)
    arguments = [str(tmp_path / "a.pt") if each == "RUN" else each for each in verb]
    done = subprocess.run([sys.executable, ROOT / "train_cli.py", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert "unknown to this version" not in done.stderr and word in done.stderr
