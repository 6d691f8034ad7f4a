"""Models and tokenizers to transformers and back: the same logits, the same ids, clear words where that cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
import tokenizer as tokenizers
from config import ROOT, UserError
from inference.chat_template import fill
from inference.dialogue import Chat, Message
from inference.sampling import start_ids
from model import GPT, build
from tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, train_bpe
from training import export
from training.export import our_config, our_tokenizer, read_folder, their_config, their_tokenizer, write_folder

transformers = pytest.importorskip("transformers")
TEXTS = [
    "The cat's hat.\n\n  They'd gone  \n 1234 miles.\t\n",
    "naïve café 日本語 🙂 \u00a0x",
    " \n a\n\n\nb   ",
    "",
    "\r\n\x85\u3000.",
]
SHAPES = {
    "classic": {"architecture": "classic"},
    "classic, untied": {"architecture": "classic", "tied_head": False, "n_inner": 48},
    "modern": {"architecture": "modern"},
    "modern, untied, grouped": {"architecture": "modern", "tied_head": False, "n_kv_head": 2, "rope_theta": 777.0},
    "modern, wide heads": {"architecture": "modern", "n_kv_head": 1, "head_dim": 12, "n_inner": 40, "norm_eps": 1e-5},
}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
QWEN3 = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}


@pytest.fixture(scope="module")
def bpe():
    return tokenizers.train_bpe(TEXTS * 9, 320)


@pytest.fixture(scope="module")
def exported_bpe(bpe):
    return their_tokenizer(bpe)


def save_theirs(folder: Path, kind: str, **values) -> torch.nn.Module:
    """A random model of transformers in a folder, with a tokenizer of characters beside it."""
    torch.manual_seed(0)
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT2, **values}))
    else:
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**{**QWEN3, **values}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer = CharTokenizer("".join(map(chr, range(65, 65 + 44))))
    their_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    (folder / "toolkit_tokenizer.json").write_text(json.dumps(tokenizer.to_dict()))
    return model.eval()


def edit_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def ours_of(content: dict) -> GPT:
    model = build(content["config"])
    model.load_state_dict(content["model"])
    return model.eval()


def save_ours(path: Path, model: GPT, tokenizer) -> Path:
    provenance = {"run": "r", "step": 3, "val_loss": 2.0, "val_bpb": 1.0, "data": "d", "documents": True}
    checkpoint.write(path, checkpoint.content_of(model, tokenizer, provenance))
    return path


def ids(model: GPT) -> torch.Tensor:
    shape = (2, model.config.block_size)
    return torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def logits_of(folder: Path, idx: torch.Tensor) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(idx).logits


def test_runs_of_tokens_are_known_to_no_other_program(tmp_path, tiny_model):
    saved = save_ours(tmp_path / "best_model.pt", tiny_model(ngrams=3), ByteTokenizer())
    with pytest.raises(UserError, match="--ngrams 0"):
        export.load_text_model(saved)


# ---- theirs to ours


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("gpt2", {}),
        ("gpt2", {"tie_word_embeddings": False, "n_inner": 40}),
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 8}),
        ("qwen3", {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    ],
)
def test_an_imported_model_has_their_logits(tmp_path, kind, values):
    theirs = save_theirs(tmp_path, kind, **values)
    ours = ours_of(read_folder(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids(ours)), theirs(ids(ours)).logits, atol=1e-4, rtol=0)


def test_an_older_transformers_wrote_the_base_of_the_positions_elsewhere(tmp_path):
    theirs = save_theirs(tmp_path, "qwen3", rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 50.0, "rope_scaling": None}))
    ours = ours_of(read_folder(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids(ours)), theirs(ids(ours)).logits, atol=1e-4, rtol=0)


def test_weights_in_several_files(tmp_path):
    from safetensors.torch import load_file, save_file

    save_theirs(tmp_path, "gpt2")
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    for n, names in enumerate((list(weights)[:9], list(weights)[9:])):
        save_file({name: weights[name] for name in names}, tmp_path / f"model-{n}.safetensors")
    read_folder(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match="the weights have no tensor"):
        read_folder(tmp_path)


# ---- ours to theirs


@pytest.mark.parametrize("shape", SHAPES)
def test_an_exported_model_has_our_logits(tmp_path, tiny_model, shape):
    model = tiny_model(**SHAPES[shape])
    told = write_folder(save_ours(tmp_path / "a.pt", model, ByteTokenizer()), tmp_path / "out")
    assert "transformers" in told
    with torch.no_grad():
        torch.testing.assert_close(logits_of(tmp_path / "out", ids(model)), model(ids(model)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("the model type `qwen3` is not recognized.\n\nYou can update it."), "it says: the model type `qwen3` is not recognized.)"),
        (TypeError("unexpected keyword argument 'dtype'"), "update it to compare with it; it says: unexpected keyword"),
        (ImportError("no torch"), "(install transformers to compare with it)"),
    ],
)
def test_a_transformers_that_cannot_load_it_does_not_break_the_export(tmp_path, tiny_model, monkeypatch, error, told):
    class TooOld:
        @staticmethod
        def from_pretrained(*_, **__):
            raise error

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModelForCausalLM=TooOld))
    model = tiny_model(**SHAPES["modern"])
    said = write_folder(save_ours(tmp_path / "a.pt", model, ByteTokenizer()), tmp_path / "out")
    assert said.startswith("checked with our own importer (") and told in said and "largest difference" in said
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("shape", ["classic", "modern, untied, grouped"])
def test_a_trained_model_goes_out_and_comes_back(tmp_path, tiny_model, shape):
    model = tiny_model(**SHAPES[shape]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        model(ids(model)[:, :-1], ids(model)[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    write_folder(save_ours(tmp_path / "a.pt", model.eval(), ByteTokenizer()), tmp_path / "out")
    again = ours_of(read_folder(tmp_path / "out"))
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(ids(model)), model(ids(model)))
        torch.testing.assert_close(logits_of(tmp_path / "out", ids(model)), model(ids(model)), atol=1e-4, rtol=0)


def test_a_config_goes_out_and_comes_back(tiny_model):
    for shape in SHAPES.values():
        config = tiny_model(**shape).config
        assert our_config(their_config(config, 256)) == config


def test_the_base_of_the_positions_is_where_both_generations_look(tiny_model):
    written = their_config(tiny_model(rope_theta=777.0).config, 256)
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 777.0


def test_what_is_exported_generates(tmp_path, tiny_model):
    write_folder(save_ours(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    start = tokenizer("Hello", return_tensors="pt")
    written = model.generate(start["input_ids"], max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(written[0]).startswith(tokenizers.EOT + "Hello"), "a text begins as in the corpus"
    assert model.config.eos_token_id == ByteTokenizer.eot


# ---- tokenizers


def their_ids(folder: Path, text: str) -> list[int]:
    return transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]


@pytest.mark.parametrize("kind", ["bpe", "byte", "gpt2"])
def test_an_exported_tokenizer_gives_our_ids_and_their_text(request, bpe, tmp_path, kind):
    ours = {"bpe": lambda: bpe, "byte": ByteTokenizer, "gpt2": lambda: request.getfixturevalue("gpt2")}[kind]()
    theirs = their_tokenizer(ours)
    theirs.save(str(tmp_path / "tokenizer.json"))
    loaded = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert theirs.encode(text).ids == ours.encode(text).tolist()
        assert loaded(text)["input_ids"] == ours.encode(text).tolist()
        assert theirs.decode(ours.encode(text).tolist()) == text
    assert theirs.token_to_id(tokenizers.EOT) == ours.eot


@given(
    text=st.text(max_size=40)
    | st.lists(st.sampled_from(["the", " cat", "\n", "  ", "\t", "é", "'s", "12", "ss"])).map("".join)
)
@settings(max_examples=200)
def test_an_exported_bpe_gives_our_ids_for_any_text(bpe, exported_bpe, text):
    assert exported_bpe.encode(text).ids == bpe.encode(text).tolist()


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_an_exported_tokenizer_gives_our_ids_on_real_text(request, shared_data, kind):
    text = (shared_data / "tinyshakespeare" / "input.txt").read_text()[:200_000]
    ours = tokenizers.train_bpe([text], 1000) if kind == "bpe" else request.getfixturevalue("gpt2")
    assert their_tokenizer(ours).encode(text).ids == ours.encode(text).tolist()


def test_an_exported_char_tokenizer_gives_our_ids_for_the_text_of_its_corpus(tmp_path, tiny_model):
    ours = CharTokenizer("".join(TEXTS))
    theirs = their_tokenizer(ours)
    for text in TEXTS:
        assert theirs.encode(text).ids == ours.encode(text).tolist()
        assert theirs.decode(ours.encode(text).tolist()) == text


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_a_tokenizer_goes_out_and_comes_back(tmp_path, tiny_model, bpe, kind):
    ours = {"bpe": bpe, "byte": ByteTokenizer(), "char": CharTokenizer("ab\n")}[kind]
    write_folder(save_ours(tmp_path / "a.pt", tiny_model(ours.vocab_size), ours), tmp_path / "out")
    again = tokenizers.from_dict(read_folder(tmp_path / "out")["tokenizer"])
    assert again.to_dict() == ours.to_dict()
    if kind != "char":
        assert their_ids(tmp_path / "out", "café\n") == start_ids(ours, "café\n", True)


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_a_text_begins_in_transformers_as_it_does_here(tmp_path, tiny_model, bpe, kind, documents):
    ours = {"bpe": bpe, "byte": ByteTokenizer(), "char": CharTokenizer("".join(TEXTS))}[kind]
    content = checkpoint.content_of(tiny_model(ours.vocab_size), ours, {"run": "r", "step": 1, "documents": documents})
    checkpoint.write(tmp_path / "a.pt", content)
    write_folder(tmp_path / "a.pt", tmp_path / "out")
    for text in filter(None, TEXTS):
        assert their_ids(tmp_path / "out", text) == start_ids(ours, text, documents)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("The", "cat")["input_ids"].count(ours.eot) == documents
    assert theirs("The", add_special_tokens=False)["input_ids"] == ours.encode("The").tolist()
    assert read_folder(tmp_path / "out")["provenance"]["documents"] is documents


def test_a_folder_that_does_not_say_how_texts_begin_is_taken_for_the_usual_kind(tmp_path):
    save_theirs(tmp_path, "gpt2")
    assert read_folder(tmp_path)["provenance"]["documents"] is True


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
def test_a_gpt2_folder_without_our_own_file_has_gpt2s_tokenizer(tmp_path, gpt2, files):
    theirs = their_tokenizer(gpt2)
    if files == "vocab.json":
        (tmp_path / "vocab.json").write_text(json.dumps(theirs.get_vocab()))
    else:
        theirs.save(str(tmp_path / "tokenizer.json"))
    assert our_tokenizer(tmp_path, 50257).to_dict() == gpt2.to_dict()


def test_a_tokenizer_that_gives_other_ids_is_refused(tmp_path, bpe):
    from tokenizers import pre_tokenizers

    theirs = their_tokenizer(bpe)
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="its ids would differ"):
        our_tokenizer(tmp_path, bpe.vocab_size)


def without_merges(theirs: dict) -> None:
    del theirs["model"]["merges"]


def of_an_unknown_part(theirs: dict) -> None:
    theirs["pre_tokenizer"] = {"type": "OfTomorrow"}


def of_an_unknown_pattern(theirs: dict) -> None:
    theirs["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": r"(?y{g})\X"}, "behavior": "Isolated", "invert": False}


def without_some_bytes(theirs: dict) -> None:
    theirs["model"] |= {"vocab": {c: i for i, c in enumerate("aelh")}, "merges": []}
    theirs["added_tokens"] = []


def that_panics(theirs: dict) -> None:
    theirs["model"]["continuing_subword_prefix"] = "é"


def with_mixed_ids(theirs: dict) -> None:
    theirs["model"]["vocab"]["a"] = "97"


SPOILT = [without_merges, of_an_unknown_part, of_an_unknown_pattern, without_some_bytes, that_panics, with_mixed_ids]


@pytest.mark.parametrize("damage", ["other ids", "no file", "no json", "too large", *SPOILT])
def test_a_tokenizer_of_no_use_is_refused_with_a_true_way_out(tmp_path, bpe, damage):
    file, told = tmp_path / "tokenizer.json", ""
    their_tokenizer(CharTokenizer("abc") if damage == "other ids" else bpe).save(str(file))
    if damage == "no file":
        file.unlink()
    if damage == "no json":
        file.write_text("{")
    if damage in SPOILT:
        theirs = json.loads(file.read_text(encoding="utf-8"))
        damage(theirs)
        file.write_text(json.dumps(theirs))
        told = "is no byte-level BPE with all 256 bytes" if damage is without_some_bytes else "cannot be read .*or choose a model"
    with pytest.raises(UserError, match=rf"{tmp_path.name}.*{told}") as caught:
        our_tokenizer(tmp_path, 300 if damage == "too large" else bpe.vocab_size)
    assert "--tokenizer_from" not in str(caught.value)


def test_rows_cut_and_filled_in_training_do_not_keep_a_tokenizer_from_being_read(tmp_path, bpe):
    theirs = their_tokenizer(bpe)
    theirs.enable_truncation(8)
    theirs.enable_padding(length=8)
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert our_tokenizer(tmp_path, bpe.vocab_size).encode("a text" * 9).tolist() == bpe.encode("a text" * 9).tolist()


def test_a_model_that_is_no_longer_made_of_numbers_is_not_exported(tmp_path, tiny_model):
    model = tiny_model()
    with torch.no_grad():
        next(model.blocks.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite.*earlier checkpoint"):
        write_folder(save_ours(tmp_path / "a.pt", model, ByteTokenizer()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- letters beyond ASCII


@pytest.fixture
def windows(monkeypatch):
    """Text is kept in the locale's encoding where none is named, and the locale's is not UTF-8."""
    read, write = Path.read_text, Path.write_text
    monkeypatch.setattr(Path, "read_text", lambda path, encoding="cp1252", errors=None: read(path, encoding, errors))
    monkeypatch.setattr(
        Path, "write_text", lambda path, text, encoding="cp1252", *more, **named: write(path, text, encoding, *more, **named)
    )


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
def test_a_tokenizer_is_read_on_windows(tmp_path, bpe, files):
    theirs = their_tokenizer(bpe)
    if files == "vocab.json":
        text = json.dumps(theirs.get_vocab(), ensure_ascii=False)
        (tmp_path / "vocab.json").write_text(text, encoding="utf-8")
    else:
        theirs.save(str(tmp_path / "tokenizer.json"))
    assert our_tokenizer(tmp_path, bpe.vocab_size).to_dict() == bpe.to_dict()


@pytest.mark.usefixtures("windows")
def test_a_run_of_any_name_is_exported_on_windows(tmp_path, tiny_model):
    content = checkpoint.content_of(tiny_model(), ByteTokenizer(), {"run": "物語", "step": 1})
    checkpoint.write(tmp_path / "a.pt", content)
    write_folder(tmp_path / "a.pt", tmp_path / "out")
    assert "物語" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


# ---- refused


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, tiny_model):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        write_folder(save_ours(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_file_in_the_folders_place_is_left_alone(tmp_path, tiny_model):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="--out"):
        write_folder(save_ours(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("failure", ["logits", "writing"])
def test_an_export_that_fails_leaves_nothing(tmp_path, tiny_model, monkeypatch, failure):
    path = save_ours(tmp_path / "a.pt", tiny_model(), ByteTokenizer())
    if failure == "logits":
        right = export.to_theirs
        monkeypatch.setattr(export, "to_theirs", lambda model: {n: w * 1.1 for n, w in right(model).items()})
    else:
        monkeypatch.setattr(export, "card", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="differ" if failure == "logits" else "No space left"):
        write_folder(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_of_the_users_outlives_a_failure(tmp_path, tiny_model, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="differ"):
        write_folder(save_ours(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_empty_folder_is_written_to(tmp_path, tiny_model, monkeypatch):
    """A mounted volume can be neither renamed nor put in the place of."""
    monkeypatch.chdir(tmp_path)
    write_folder(save_ours(tmp_path.parent / "a.pt", tiny_model(), ByteTokenizer()), Path("."))
    assert "model.safetensors" in [path.name for path in tmp_path.iterdir()]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size there")
def test_a_disk_that_is_full_is_a_sentence(tmp_path, tiny_model):
    """A limit on files' sizes stands in for the disk. safetensors tells of it with an error of its own kind."""
    path = save_ours(tmp_path / "a.pt", tiny_model(), ByteTokenizer())
    code = (
        "import resource, signal, sys, train_cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "train_cli.main(['export', sys.argv[1], '--out', sys.argv[2]])\n"
    )
    call = [sys.executable, "-c", code, str(path), str(tmp_path / "out")]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--out" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model_type": "llama"}, "'llama'"),
        ({"activation_function": "relu"}, "activation_function"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
    ],
)
def test_another_model_is_refused_naming_what_differs(tmp_path, values, told):
    save_theirs(tmp_path, "gpt2")
    edit_config(tmp_path, **values)
    with pytest.raises(UserError, match=told):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        {"use_sliding_window": True},
        {"attention_bias": True},
    ],
)
def test_a_qwen3_of_another_kind_is_refused(tmp_path, values):
    save_theirs(tmp_path, "qwen3")
    edit_config(tmp_path, **values)
    with pytest.raises(UserError, match=r"rope_scaling|use_sliding_window|attention_bias"):
        read_folder(tmp_path)


def test_damaged_folders_are_named(tmp_path):
    save_theirs(tmp_path / "whole", "gpt2")
    for name, damage in DAMAGES.items():
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        told = damage(folder)
        with pytest.raises(UserError, match=told):
            read_folder(folder)


def only_bin(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "bin files can run code"


def cut(folder: Path) -> str:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return "model.safetensors cannot be read"


def without_a_tensor(folder: Path) -> str:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.ln_2.bias"]
    save_file(weights, folder / "model.safetensors")
    return "no tensor 'transformer.h.1.ln_2.bias'"


def of_another_shape(folder: Path) -> str:
    edit_config(folder, n_embd=64)
    return "do not fit"


def without_a_setting(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    del config["n_layer"]
    (folder / "config.json").write_text(json.dumps(config))
    return "n_layer"


def without_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "no readable config.json"


def list_for_config(folder: Path) -> str:
    (folder / "config.json").write_text("[]")
    return "no readable config.json"


def a_setting_of_another_type(folder: Path) -> str:
    edit_config(folder, n_layer="2")
    return r"n_layer is '2' in config.json, where a whole number is wanted"


def half_a_layer(folder: Path) -> str:
    edit_config(folder, n_layer=1.5)
    return r"n_layer is 1\.5 in config.json"


def yes_for_a_number(folder: Path) -> str:
    edit_config(folder, n_head=True)
    return "n_head is True in config.json"


def nothing_for_a_setting(folder: Path) -> str:
    edit_config(folder, vocab_size=None)
    return "says nothing of 'vocab_size'"


def a_word_for_yes(folder: Path) -> str:
    edit_config(folder, tie_word_embeddings="false")
    return "tie_word_embeddings is 'false' in config.json, where true or false is wanted"


def a_list_of_kinds(folder: Path) -> str:
    edit_config(folder, model_type=["gpt2"])
    return r"model_type is \['gpt2'\]"


DAMAGES = {
    f.__name__: f
    for f in (
        only_bin,
        cut,
        without_a_tensor,
        of_another_shape,
        without_a_setting,
        without_config,
        list_for_config,
        a_setting_of_another_type,
        half_a_layer,
        yes_for_a_number,
        nothing_for_a_setting,
        a_word_for_yes,
        a_list_of_kinds,
    )
}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn' in config.json, where an object is wanted"),
        ({"rope_parameters": "default"}, "rope_parameters is 'default'"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, "rope_theta is '1e6' in config.json, where a number is wanted"),
        ({"rms_norm_eps": [1e-6]}, "rms_norm_eps is"),
    ],
)
def test_a_qwen3_with_settings_of_another_type_is_refused(values, told):
    with pytest.raises(UserError, match=told):
        our_config({"model_type": "qwen3", **QWEN3, **values})


def test_a_setting_that_is_null_is_as_if_it_were_not_there():
    """For transformers, no number of heads for keys and values means as many as there are heads."""
    nothing = dict.fromkeys(["num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "rope_parameters", "tie_word_embeddings"])
    found = our_config({"model_type": "qwen3", **QWEN3, **nothing})
    assert (found.n_kv_head, found.head_dim, found.norm_eps, found.rope_theta, found.tied_head) == (4, 8, 1e-6, 1e4, False)


QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_a_tokenizer_that_cuts_words_as_qwen_does_keeps_its_ids(tmp_path):
    """Ids of an imported and of an exported tokenizer.json equal the library's own, on a text full of borders."""
    text = "Hello  World's 12345 DON'T, café\n\n  x\t \n日本語 don't... " * 3
    ranks = train_bpe([text], 300).ranks
    ours = BPETokenizer(ranks, "bpe", QWEN_WORDS)
    their_tokenizer(ours).save(str(tmp_path / "tokenizer.json"))
    found = our_tokenizer(tmp_path, ours.vocab_size)
    assert found.to_dict() == ours.to_dict()
    assert their_tokenizer(found).encode(text, add_special_tokens=False).ids == ours.encode(text).tolist()
    assert ours.encode(text).tolist() != BPETokenizer(ranks).encode(text).tolist()


QWEN_CHAT = (  # what Qwen3's own template does, less its tools
    "{% for message in messages %}{% set content = message.content %}"
    "{%- if message.role == 'assistant' and '</think>' in content %}\n"
    "    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
    "{%- endif %}\n"
    "{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)


def save_qwen(folder: Path) -> BPETokenizer:
    """A random Qwen3 as it comes from the hub, with the tokens that were added to its tokenizer; the tokenizer without them."""
    from tokenizers import AddedToken, models

    save_theirs(folder, "qwen3", vocab_size=320)
    (folder / "toolkit_tokenizer.json").unlink()
    plain = BPETokenizer(train_bpe(TEXTS * 9, 300).ranks, "bpe", QWEN_WORDS)
    theirs = their_tokenizer(plain)
    pieces, merges = export.spelling(plain)
    theirs.model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges)  # the vocabulary has no added token
    theirs.add_special_tokens([AddedToken(name, special=True) for name in (tokenizers.EOT, "<|im_start|>", "<|im_end|>")])
    theirs.add_tokens([AddedToken(name, special=False) for name in ("<think>", "</think>")])
    theirs.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": QWEN_CHAT}))
    eot = plain.eot
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": eot, "eos_token_id": [eot + 2, eot]}))
    edit_config(folder, bos_token_id=eot, eos_token_id=eot + 2)
    return plain


THOUGHTS = [("user", "Hi"), ("assistant", "<think>\nHm.\n</think>\n\nYes."), ("user", "Why, the cat?")]


@pytest.mark.parametrize("talk", [THOUGHTS[:1], THOUGHTS], ids=["short", "long"])
def test_a_chat_of_an_imported_qwen_is_put_to_it_as_transformers_does(tmp_path, talk):
    plain = save_qwen(tmp_path)
    content = read_folder(tmp_path)
    ours = tokenizers.from_dict(content["tokenizer"])
    assert (ours.eot, ours.ends) == (plain.eot, (plain.eot + 2, plain.eot))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    said = [{"role": role, "content": text} for role, text in talk]
    ids = theirs.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    chat = Chat(ours, content["provenance"]["chat_template"], content["provenance"]["documents"])
    assert chat.ids([Message(**each) for each in said]) == ids
    assert {plain.eot + 1, plain.eot + 2, plain.eot + 3} <= {*ids} and plain.eot + 4 not in ids


def test_a_qwen_goes_out_again_with_its_added_tokens(tmp_path):
    """By our own file of the tokenizer, and by transformers' alone."""
    plain = save_qwen(tmp_path / "in")
    checkpoint.write(tmp_path / "a.pt", read_folder(tmp_path / "in"))
    write_folder(tmp_path / "a.pt", tmp_path / "out")
    before, after = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("in", "out"))
    text = "<|im_start|>user\nThe cat<|im_end|><think>x</think>" + tokenizers.EOT
    assert after(text, add_special_tokens=False)["input_ids"] == before(text, add_special_tokens=False)["input_ids"]
    ids = after(text, add_special_tokens=False)["input_ids"]
    assert after.decode(ids, skip_special_tokens=True) == before.decode(ids, skip_special_tokens=True)
    assert (after.eos_token, after.bos_token) == ("<|im_end|>", tokenizers.EOT)
    told = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert told.eos_token_id == [plain.eot + 2, plain.eot]
    once = read_folder(tmp_path / "out")["tokenizer"]
    (tmp_path / "out" / "toolkit_tokenizer.json").unlink()
    assert read_folder(tmp_path / "out")["tokenizer"] == once == read_folder(tmp_path / "in")["tokenizer"]


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json", "config.json"])
def test_what_ends_an_answer_is_found_wherever_a_folder_says_it(tmp_path, file):
    plain = save_qwen(tmp_path)
    for name in {"tokenizer_config.json", "generation_config.json"} - {file}:
        (tmp_path / name).unlink()
    if file != "config.json":
        edit_config(tmp_path, eos_token_id=None)
    assert our_tokenizer(tmp_path, 320).ends == (plain.eot + 2, plain.eot)


def test_added_tokens_of_a_folder_without_tokenizer_json(tmp_path):
    plain = save_qwen(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    added = {str(token.pop("id")): token for token in whole["added_tokens"]}
    settings = {"eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = our_tokenizer(tmp_path, 320)
    assert (found.controls["<|im_end|>"], found.visible["<think>"]) == (plain.eot + 2, plain.eot + 3)


def test_an_added_token_that_the_model_has_no_row_for_is_left_out(tmp_path, bpe):
    theirs = their_tokenizer(bpe)
    theirs.add_special_tokens(["[PAD]"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert our_tokenizer(tmp_path, bpe.vocab_size).to_dict() == bpe.to_dict()
    assert our_tokenizer(tmp_path, bpe.vocab_size + 1).controls["[PAD]"] == bpe.vocab_size


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "tokenizer_config.json, several"])
def test_a_chat_template_comes_along(tmp_path, tiny_model, name):
    folder, template = tmp_path / "out", "{{ messages[0].content }}"
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": template}]
    name, _, several = name.partition(", ")
    write_folder(save_ours(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), folder)
    assert "chat_template" not in read_folder(folder)["provenance"]
    (folder / name).write_text(template if name.endswith("jinja") else json.dumps({"chat_template": named if several else template}))
    assert read_folder(folder)["provenance"]["chat_template"] == template


CHAT = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {%- if message.role == 'system' and not loop.first %}{{ raise_exception('too late') }}{% endif %}\n"
    "    {%- if message.role == 'note' %}{% continue %}{% endif -%}\n"
    "<{{ message.role }}>{{ message.content | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALKS = [
    [("user", "Hi")],
    [("system", "Be kind."), ("user", " naïve 🙂\n"), ("assistant", "{{ 7 * 7 }}"), ("user", "Why?")],
]


@pytest.mark.parametrize("talk", TALKS, ids=["short", "long"])
def test_a_chat_template_goes_out_and_renders_as_our_server_does(tmp_path, tiny_model, bpe, talk):
    """The template as the server fills it in, byte for byte and id for id; that texts begin with the end of one is not said twice."""
    model, path = tiny_model(bpe.vocab_size), tmp_path / "a.pt"
    provenance = {"run": "r", "step": 1, "chat_template": CHAT, "documents": True}
    checkpoint.write(path, checkpoint.content_of(model, bpe, provenance))
    write_folder(path, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    said = [{"role": role, "content": content} for role, content in talk]
    text = theirs.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert text == "".join(fill(CHAT, said, bpe)) and text.endswith("<assistant>")
    ids = theirs.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    assert ids == Chat(bpe, CHAT, documents=True).ids([Message(**message) for message in said])
    assert read_folder(tmp_path / "out")["provenance"]["chat_template"] == CHAT
