"""GGUF files: what is in them, that llama.cpp computes what we do with them, and what is left when something fails."""

from __future__ import annotations

import importlib.util
import random
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import checkpoint
import tokenizer as tokenizers
import train_cli
from config import ROOT, ModelConfig, UserError
from inference.chat_template import fill
from tokenizer import EOT, BPETokenizer, ByteTokenizer, CharTokenizer
from training import gguf_export, llama_peer, ollama
from training.gguf_export import write_file, write_folder
from training.llama_peer import NoAnswer, ask

SHAPES = {
    "classic": {"architecture": "classic"},
    "classic, untied": {"architecture": "classic", "tied_head": False, "n_inner": 48},
    "modern": {"architecture": "modern"},
    "modern, untied, grouped": {"architecture": "modern", "tied_head": False, "n_kv_head": 2, "rope_theta": 777.0},
    "modern, wide heads": {"architecture": "modern", "n_kv_head": 1, "head_dim": 12, "n_inner": 40, "norm_eps": 1e-5},
}
ATOMS = [
    "the", " cat", "\n", "  ", "\t", "\r\n", "'s", "'S", "'re", "'LL", "12", "3", "\u00bd", "\u0663", "ss", "\u00a0", "\u3000", "\x85",
    "\x0b", "\x1c", "\x00", "\u200d", "e\u0301", "\U0001f642", "\U0001f1e9\U0001f1ea", EOT, "<|im_start|>", "{{", "\\", "_", " ,",
    "\ufeff", "\u01c5", "\u0130", "\u2028",
]  # fmt: skip
QWEN_WORDS = next(words for words, name in gguf_export.PATTERNS.items() if name == "qwen2")


@pytest.fixture
def llama():
    if not importlib.util.find_spec("llama_cpp"):
        pytest.skip("llama-cpp-python is not installed: pip install llama-cpp-python")


@pytest.fixture
def alone(monkeypatch):
    """Without llama.cpp, as on most machines."""
    monkeypatch.setattr(llama_peer.importlib.util, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def bpe():
    return tokenizers.train_bpe(["The cat's hat.\n\n  They'd gone  \n 1234 miles.\t\n", "caf\u00e9 \u65e5\u672c\u8a9e"] * 9, 320)


def save(path: Path, model, tokenizer, **provenance) -> Path:
    told = {"run": "r", "step": 3, "documents": True, **provenance}
    checkpoint.write(path, checkpoint.content_of(model, tokenizer, told))
    return path


def read(path: Path) -> tuple[dict, dict]:
    """The values and the tensors of a file."""
    reader = gguf.GGUFReader(path)
    return {k: field.contents() for k, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


# ---- what is in a file


@pytest.mark.usefixtures("alone")
def test_a_modern_model_lies_where_llama_cpp_looks(tmp_path, tiny_model):
    model = tiny_model(architecture="modern", n_kv_head=2, head_dim=12, n_inner=40, rope_theta=777.0, tied_head=False)
    write_folder(save(tmp_path / "a.pt", model, ByteTokenizer()), tmp_path / "out")
    values, tensors = read(tmp_path / "out" / "model.gguf")
    assert values["general.architecture"] == "qwen3"
    expected = {
        "context_length": 32, "embedding_length": 32, "block_count": 2, "feed_forward_length": 40, "vocab_size": 257,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 12, "attention.value_length": 12,
        "rope.dimension_count": 12, "rope.freq_base": 777.0,
    }  # fmt: skip
    assert {key: values[f"qwen3.{key}"] for key in expected} == expected
    assert values["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    block, name = model.blocks[1], "blk.1"
    q, k, v = block.attn.qkv.weight.split((48, 24, 24))
    gate, up = block.mlp.gate_up.weight.chunk(2)
    ours = {
        "token_embd": model.wte.weight[:257], "output": model.head.weight[:257], "output_norm": model.norm.weight,
        f"{name}.attn_q": q, f"{name}.attn_k": k, f"{name}.attn_v": v, f"{name}.attn_output": block.attn.proj.weight,
        f"{name}.attn_q_norm": block.attn.q_norm.weight, f"{name}.attn_k_norm": block.attn.k_norm.weight,
        f"{name}.attn_norm": block.norm1.weight, f"{name}.ffn_norm": block.norm2.weight,
        f"{name}.ffn_gate": gate, f"{name}.ffn_up": up, f"{name}.ffn_down": block.mlp.down.weight,
    }  # fmt: skip
    for name, weight in ours.items():
        assert np.array_equal(tensors[f"{name}.weight"].data, weight.detach().numpy()), name
    assert len(tensors) == 3 + 2 * 11


@pytest.mark.usefixtures("alone")
def test_a_classic_model_lies_where_llama_cpp_looks(tmp_path, tiny_model):
    model = tiny_model(architecture="classic")
    write_folder(save(tmp_path / "a.pt", model, ByteTokenizer()), tmp_path / "out")
    values, tensors = read(tmp_path / "out" / "model.gguf")
    assert values["general.architecture"] == "gpt2"
    assert values["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    block = model.blocks[1]
    ours = {
        "token_embd": model.wte.weight[:257], "position_embd": model.wpe.weight, "blk.1.attn_qkv": block.attn.qkv.weight,
        "blk.1.attn_output": block.attn.proj.weight, "blk.1.ffn_up": block.mlp.up.weight, "blk.1.ffn_down": block.mlp.down.weight,
        "blk.1.attn_norm": block.norm1.weight, "blk.1.ffn_norm": block.norm2.weight, "output_norm": model.norm.weight,
    }  # fmt: skip
    for name, weight in ours.items():
        assert np.array_equal(tensors[f"{name}.weight"].data, weight.detach().numpy()), name
    assert np.array_equal(tensors["blk.0.attn_qkv.bias"].data, model.blocks[0].attn.qkv.bias.detach().numpy())
    assert "output.weight" not in tensors, "the head is the embedding"


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("kind", "size"), [("f16", 2), ("bf16", 2), ("q8_0", 34 / 32)])
def test_matrices_are_kept_smaller_and_nothing_else(tmp_path, tiny_model, kind, size):
    model = tiny_model(architecture="classic")
    told = write_folder(save(tmp_path / "a.pt", model, ByteTokenizer()), tmp_path / "out", kind)
    values, tensors = read(tmp_path / "out" / "model.gguf")
    file_types = gguf.LlamaFileType
    assert values["general.file_type"] == {"f16": file_types.MOSTLY_F16, "bf16": file_types.MOSTLY_BF16, "q8_0": file_types.MOSTLY_Q8_0}[kind]
    for name, tensor in tensors.items():
        exact = len(tensor.shape) == 1 or name.startswith("position_embd")
        assert tensor.n_bytes == tensor.n_elements * (4 if exact else size), name
    assert kind in told[0]


@pytest.mark.parametrize("documents", [True, False])
def test_the_tokenizer_is_in_the_file(tmp_path, tiny_model, bpe, documents):
    size = bpe.vocab_size + 7
    write_file(tmp_path / "a.gguf", tiny_model(size), bpe, documents=documents)
    values, _ = read(tmp_path / "a.gguf")
    to_byte = tokenizers.byte_symbols()
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == len(set(tokens)) == size
    assert [bytes(to_byte[c] for c in token) for token in tokens[: bpe.eot]] == bpe.token_bytes()[: bpe.eot]
    assert tokens[bpe.eot] == EOT
    assert types == [1] * bpe.eot + [3] + [5] * 7
    merged = ["".join(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    assert merged == tokens[256 : bpe.eot]
    assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert values["tokenizer.ggml.bos_token_id"] == values["tokenizer.ggml.eos_token_id"] == bpe.eot
    assert values["tokenizer.ggml.add_bos_token"] is documents
    assert values["tokenizer.ggml.add_eos_token"] is False


@pytest.mark.usefixtures("alone")
def test_the_tokens_that_an_imported_tokenizer_has_more_are_in_the_file(tmp_path, tiny_model, bpe):
    controls, visible = {EOT: bpe.eot, "<|im_end|>": bpe.eot + 1, 'a"b': bpe.eot + 3}, {"<think>": bpe.eot + 2}
    imported = BPETokenizer(bpe.ranks, "bpe", QWEN_WORDS, controls, visible, [bpe.eot + 1, bpe.eot + 3])
    chat = "{% for m in messages %}{{ m.role + ':' + m.content }}<|im_end|>{% endfor %}assistant:"
    path = save(tmp_path / "a.pt", tiny_model(bpe.eot + 5), imported, chat_template=chat)
    write_folder(path, tmp_path / "out")
    values, _ = read(tmp_path / "out" / "model.gguf")
    named = [EOT, "<|im_end|>", "<think>", 'a"b', f"[PAD{bpe.eot + 4}]"]
    assert values["tokenizer.ggml.tokens"][bpe.eot :] == named
    assert values["tokenizer.ggml.token_type"][bpe.eot :] == [3, 3, 4, 3, 5]
    assert (values["tokenizer.ggml.bos_token_id"], values["tokenizer.ggml.eos_token_id"]) == (bpe.eot, bpe.eot + 1)
    lines = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "stop" in line] == ['PARAMETER stop "<|im_end|>"', 'PARAMETER stop "<|endoftext|>"']
    assert "user:{{ .Content }}<|im_end|>assistant:" in lines[-1]


@pytest.mark.parametrize("damage", ["a value", "a weight"])
def test_a_file_that_is_not_what_was_meant_is_noticed(tmp_path, tiny_model, damage):
    model, path = tiny_model(), tmp_path / "a.gguf"
    write_file(path, model, ByteTokenizer(), documents=damage != "a value")
    if damage == "a weight":
        content = bytearray(path.read_bytes())
        content[-64] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match="add_bos_token" if damage == "a value" else "cannot be kept as f32"):
        gguf_export.read_back(path, model, ByteTokenizer(), "f32", True)


# ---- beside llama.cpp


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_computes_what_we_do(tmp_path, tiny_model, shape):
    told = write_folder(save(tmp_path / "a.pt", tiny_model(**SHAPES[shape]), ByteTokenizer()), tmp_path / "out")
    assert "equal to ours bit for bit" in told[0]
    assert "have our tokens" in told[1]
    assert "of 96 tokens that it wrote greedily 96 are our likeliest" in told[2]


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_llama_cpp_computes_nearly_the_same_with_smaller_weights(tmp_path, tiny_model, bpe, kind):
    path = save(tmp_path / "a.pt", tiny_model(bpe.vocab_size + 70), bpe, documents=False)
    assert "divergence" in write_folder(path, tmp_path / "out", kind)[2]


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("kind", ["bpe", "qwen", "gpt2"])
def test_llama_cpp_cuts_any_text_as_we_do(request, tmp_path, tiny_model, bpe, kind):
    if kind == "gpt2":
        tokenizer = request.getfixturevalue("gpt2")
    else:
        tokenizer = bpe if kind == "bpe" else BPETokenizer(bpe.ranks, "bpe", QWEN_WORDS)
    chance = random.Random(0)
    spans = [(0x00, 0x1BFF), (0x2000, 0x33FF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF)]
    pick = lambda: chance.choice(ATOMS) if chance.random() < 0.8 else chr(chance.randint(*chance.choice(spans)))  # noqa: E731
    texts = ["".join(pick() for _ in range(chance.randint(1, 12))) for _ in range(1000)]
    write_file(tmp_path / "a.gguf", tiny_model(tokenizer.vocab_size, n_embd=8, n_layer=1), tokenizer)
    answer = ask(tmp_path / "a.gguf", texts, [[0]], 0)
    for text, ids, again in zip(texts, answer.ids, answer.again, strict=True):
        assert ids == tokenizer.encode(text).tolist(), text
        assert again == text.encode()


@pytest.mark.usefixtures("llama")
def test_llama_cpp_takes_the_tokens_that_an_imported_tokenizer_has_more(tmp_path, tiny_model, bpe):
    controls, visible = {EOT: bpe.eot, "<|im_end|>": bpe.eot + 1}, {"<think>": bpe.eot + 2}
    imported = BPETokenizer(bpe.ranks, "bpe", QWEN_WORDS, controls, visible, [bpe.eot + 1])
    told = write_folder(save(tmp_path / "a.pt", tiny_model(bpe.eot + 5), imported), tmp_path / "out")
    assert "have our tokens" in told[1]


@pytest.mark.usefixtures("llama")
def test_a_model_that_is_wired_wrongly_is_noticed_and_not_kept(tmp_path, tiny_model, monkeypatch):
    """The gate and what it gates change places: a file like any other, which reads back as written."""
    right = gguf_export.parts

    def swapped(model):
        for ours, theirs, weight in right(model):
            other = theirs.replace("gate_proj", "up") if "gate_proj" in theirs else theirs.replace("up_proj", "gate")
            yield ours, other.replace("mlp.up.", "mlp.up_proj.").replace("mlp.gate.", "mlp.gate_proj."), weight

    monkeypatch.setattr(gguf_export, "parts", swapped)
    with pytest.raises(UserError, match="computes otherwise than we do"):
        write_folder(save(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def answered(model, prompts: list[list[int]], chosen: list[int], change: float = 0.0) -> llama_peer.Answer:
    """What llama.cpp would say if after each prompt it chose this token, computing as we do but for what is added to its logit."""
    read, logits = [], []
    for prompt, token in zip(prompts, chosen, strict=True):
        with torch.no_grad():
            ours = model(torch.tensor([[*prompt, token]]))[0]
        ours[len(prompt) - 1, token] += change
        read.append([*prompt, token])
        logits.append(ours.numpy())
    return llama_peer.Answer("0", [], [], read, logits)


def test_greedy_text_must_be_ours_but_for_ties(tiny_model):
    model, prompts = tiny_model(), [[256, 1, 2], [256, 3]]
    with torch.no_grad():
        ours = [model(torch.tensor([prompt]))[0, -1] for prompt in prompts]
    best, second = ([int(each.topk(2).indices[n]) for each in ours] for n in (0, 1))
    gap = max(float(each[a] - each[b]) for each, a, b in zip(ours, best, second, strict=True))
    told = gguf_export.compare_logits(answered(model, prompts, best), model, prompts, "f32")
    assert told.endswith("of 2 tokens that it wrote greedily 2 are our likeliest as well")
    swapped = torch.tensor(second)
    assert "0 are our likeliest" in gguf_export.compare_greedy(torch.stack(ours), swapped, gap + 0.01)
    with pytest.raises(UserError, match=r"writes another text than we do.*Nothing was written"):
        gguf_export.compare_greedy(torch.stack(ours), swapped, gap - 0.01)
    with pytest.raises(UserError, match="computes otherwise than we do"):
        gguf_export.compare_logits(answered(model, prompts, second, gap + 0.01), model, prompts, "f32")


def test_a_context_of_one_token_leaves_none_to_write(tiny_model):
    model = tiny_model(block_size=1)
    with torch.no_grad():
        logits = [model(torch.tensor([[token]]))[0].numpy() for token in (256, 7)]
    answer = llama_peer.Answer("0", [], [], [[256], [7]], logits)
    assert "it wrote none" in gguf_export.compare_logits(answer, model, answer.read, "f32")


@pytest.mark.usefixtures("llama")
@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_a_model_with_a_context_of_one_token_is_exported(tmp_path, tiny_model, architecture):
    model = tiny_model(block_size=1, architecture=architecture)
    told = write_folder(save(tmp_path / "a.pt", model, ByteTokenizer()), tmp_path / "out")
    assert "it wrote none" in told[2]


# ---- llama.cpp that is not there, refuses, or crashes


def pretend(tmp_path: Path, monkeypatch, body: str) -> None:
    """A llama_cpp of our own making, for this process and those that it starts."""
    package = tmp_path / "fake" / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from . import llama_cpp\nGGML_TYPE_F32 = 0\n__version__ = '0'\n" f"def Llama(*_, **__):\n    {body}\n"
    )
    (package / "llama_cpp.py").write_text("llama_model_default_params = None\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


@pytest.mark.usefixtures("alone")
def test_without_llama_cpp_it_says_so_and_how_to_have_it(tmp_path, tiny_model):
    told = write_folder(save(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), tmp_path / "out")
    assert "only known that it reads back: not compared with llama.cpp" in told[1] and "pip install llama-cpp-python" in told[1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "model.gguf"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_crash_of_llama_cpp_is_told_and_harms_nothing(tmp_path, tiny_model, monkeypatch):
    pretend(tmp_path, monkeypatch, f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    told = write_folder(save(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), tmp_path / "out")
    assert told[1].endswith("not compared with llama.cpp, which broke down (SIGSEGV)")
    assert (tmp_path / "out" / "model.gguf").exists()


def test_a_file_that_llama_cpp_refuses_is_not_kept(tmp_path, tiny_model, monkeypatch):
    pretend(tmp_path, monkeypatch, "import sys; print('error: no such thing', file=sys.stderr); raise ValueError('Failed to load model')")
    with pytest.raises(UserError, match=r"does not take the file \(error: no such thing\)"):
        write_folder(save(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_refusal_without_a_word_is_a_sentence(tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, "raise ValueError('Failed to load model')")
    with pytest.raises(UserError, match=r"does not take the file \(it does not say why\)"):
        ask(tmp_path / "a.gguf", [], [[0]], 0)


@pytest.mark.parametrize("code", [1, 2, 3, 134])
def test_a_runtime_that_gives_up_is_no_refusal(tmp_path, monkeypatch, code):
    """What Python and the C runtimes exit with of themselves: 3 is an abort on Windows."""
    pretend(tmp_path, monkeypatch, f"import os; os._exit({code})")
    with pytest.raises(NoAnswer, match="broke down"):
        ask(tmp_path / "a.gguf", [], [[0]], 0)


def test_llama_cpp_that_takes_for_ever_is_not_waited_for(tmp_path, monkeypatch):
    pretend(tmp_path, monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(llama_peer, "PATIENCE", 0.5)
    with pytest.raises(NoAnswer, match="did not finish"):
        ask(tmp_path / "a.gguf", [], [[0]], 0)


# ---- refused


@pytest.mark.parametrize(
    ("shape", "tokenizer", "kind", "told"),
    [
        ({}, CharTokenizer("ab"), "f32", "the tokenizer is char.*--tokenizer bpe or byte"),
        ({}, BPETokenizer([bytes([b]) for b in range(256)], words=r"\S+|\s+"), "f32", "pattern.*--format hf"),
        ({"n_layer": 600}, ByteTokenizer(), "f32", "n_layer is 600"),
        ({"n_embd": 48}, ByteTokenizer(), "q8_0", "n_embd is 48.*--gguf_type f16"),
        ({"n_inner": 40}, ByteTokenizer(), "q8_0", "n_inner is 40"),
        ({"architecture": "modern", "head_dim": 12}, ByteTokenizer(), "q8_0", "head_dim is 48"),
    ],
    ids=["char", "pattern", "n_layer", "n_embd", "n_inner", "head_dim"],
)
def test_what_the_format_cannot_say_is_refused_by_name(shape, tokenizer, kind, told):
    config = ModelConfig(**{"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 257, **shape})
    with pytest.raises(UserError, match=told):
        gguf_export.refuse(config, tokenizer, kind)


@pytest.mark.usefixtures("alone")
def test_a_weight_that_a_type_cannot_hold_is_refused(tmp_path, tiny_model):
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[3, 4] = 1e5
    path = save(tmp_path / "a.pt", model, ByteTokenizer())
    with pytest.raises(UserError, match=r"blk\.1\.ffn_down\.weight cannot be kept as f16: pass --gguf_type f32 or bf16"):
        write_folder(path, tmp_path / "out", "f16")
    assert not (tmp_path / "out").exists()
    write_folder(path, tmp_path / "out", "bf16")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", gguf_export.KINDS)
def test_weights_that_are_not_finite_are_refused_whatever_the_type(tmp_path, tiny_model, kind, value):
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[3, 4] = value
    with pytest.raises(UserError, match=r"blk\.1\.ffn_down\.weight has weights that are no finite numbers.*another checkpoint"):
        write_folder(save(tmp_path / "a.pt", model, ByteTokenizer()), tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        train_cli.main(["export", *arguments])
    return end.value.code or 0


@pytest.mark.usefixtures("alone")
def test_the_command_line(tmp_path, tiny_model, capsys):
    path = str(save(tmp_path / "a.pt", tiny_model(), ByteTokenizer()))
    for kind in gguf_export.KINDS:
        assert run(path, "--format", "gguf", "--gguf_type", kind, "--out", str(tmp_path / kind)) == 0
    printed = capsys.readouterr().out
    assert 0 < printed.index("only known that it reads back") < printed.index("done: ollama create")
    sizes = [(tmp_path / kind / "model.gguf").stat().st_size for kind in gguf_export.KINDS]
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3]
    for more in (["--out", str(tmp_path / "f32")], ["--out", str(tmp_path / "x.gguf")]):
        assert run(path, "--format", "gguf", *more) == 2
        assert "--out" in capsys.readouterr().err
    assert run(path, "--gguf_type", "f16", "--out", str(tmp_path / "y")) == 2
    assert "--format gguf" in capsys.readouterr().err


def test_without_the_package_it_says_how_to_have_it(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install -r requirements.txt"):
        write_folder(save(tmp_path / "a.pt", tiny_model(), ByteTokenizer()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size there")
@pytest.mark.parametrize("room", [1_000, 60_000], ids=["no room for the names", "none for the tensors"])
def test_a_disk_that_is_full_is_a_sentence(tmp_path, tiny_model, room):
    """A limit on files' sizes stands in for the disk. numpy tells of it with an error that has no number."""
    path = save(tmp_path / "a.pt", tiny_model(), ByteTokenizer())
    code = (
        "import resource, signal, sys, train_cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)\n"
        "train_cli.main(['export', sys.argv[1], '--format', 'gguf', '--out', sys.argv[2]])\n"
    )
    call = [sys.executable, "-c", code, str(path), str(tmp_path / "out"), str(room)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--out" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


# ---- Ollama

LOOP = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
CHATS = {
    "braces within": LOOP.replace("<{{ m.role }}>", "{ {{- m.role -}} } "),
    "bos": "{{ bos_token }}" + LOOP,
    "no bos": LOOP,
    "lines": "{% for m in messages %}{{ '[' + m.role + ']\\n' + m.content + '\\n' }}{% endfor %}{{ '[assistant]\\n' }}",
    "quotes": "{% for m in messages %}{{ m.role }} \"{{ m.content }}\" # {% endfor %}assistant: ",
}
UNSAYABLE = {
    "trims": LOOP.replace("m.content", "m.content | trim"),
    "counts": LOOP.replace("<{{", "{{ loop.index }}<{{"),
    "first only": "{{ messages[0].content }}",
    "refuses the system": "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + LOOP,
    "has a system of its own": "{% if messages[0].role != 'system' %}<system>Be kind.{% endif %}" + LOOP,
    "forgets thoughts": LOOP.replace("m.content", "m.content.split('</think>')[-1]"),
    "drops old answers": "{% for m in messages %}{% if loop.last or m.role != 'assistant' %}{{ m.role + m.content }}{% endif %}{% endfor %}",
    "braces": LOOP.replace("<assistant>", "{{ '{{' }}"),
    "ends in a quote": LOOP + '"',
    "a brace before the words": LOOP.replace(">{{", ">{{ '{' }}{{"),
    "a brace after the words": LOOP.replace("{{ eos_token }}", "{{ '{' }}"),
    "a brace at the start": "{{ '{' }}" + LOOP,
}


def go(template: str, talk: list[tuple[str, str]]) -> str:
    """The little of Go's language that our templates use, as Ollama runs it."""
    before, _, turns = template.partition("{{ range .Messages }}")
    turns, after = turns.split("{{ end }}{{ end }}")
    roles = {}
    for branch in turns.replace("{{ else if", "{{ if").split("{{ if eq .Role ")[1:]:
        role, _, text = branch.partition(" }}")
        roles[role.strip('"')] = text
    return before + "".join(roles[role].replace("{{ .Content }}", content) for role, content in talk) + after


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("name", CHATS)
def test_a_chat_template_in_gos_language_says_the_same(name, begins):
    talk = [("system", "Sys"), ("user", " a\n"), ("assistant", "b"), ("user", "c"), ("assistant", "\td "), ("user", "e")]
    template = ollama.go_template(CHATS[name], begins, ByteTokenizer())
    for part in (talk, talk[1:], talk[1:2], talk[:2]):
        said = "".join(fill(CHATS[name], [{"role": role, "content": content} for role, content in part], ByteTokenizer()))
        assert go(template, part) == (said.removeprefix(EOT) if begins else said)


@pytest.mark.parametrize("name", UNSAYABLE)
def test_a_chat_template_that_go_cannot_say_is_left_to_the_gguf_file(tmp_path, tiny_model, name):
    path = save(tmp_path / "a.pt", tiny_model(), ByteTokenizer(), chat_template=UNSAYABLE[name])
    text, note = ollama.modelfile("model.gguf", tiny_model().config, checkpoint.load(path)["provenance"], ByteTokenizer())
    assert 'TEMPLATE """' not in text and note == ollama.UNSAID


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("chat", ["", CHATS["lines"]], ids=["base", "chat"])
def test_the_modelfile(tmp_path, tiny_model, chat):
    provenance = {"chat_template": chat} if chat else {}
    write_folder(save(tmp_path / "a.pt", tiny_model(), ByteTokenizer(), **provenance), tmp_path / "out")
    lines = (tmp_path / "out" / "Modelfile").read_text()
    values, _ = read(tmp_path / "out" / "model.gguf")
    assert lines.startswith("FROM ./model.gguf\nREQUIRES 0.30.0\n")
    for line in ("num_ctx 32", "temperature 0.8", "top_k 0", "top_p 1.0", 'stop "<|endoftext|>"'):
        assert f"\nPARAMETER {line}\n" in lines
    assert values.get("tokenizer.chat_template", "") == chat
    template = lines.partition('\nTEMPLATE """')[2].removesuffix('"""\n')
    assert template == (ollama.go_template(chat, True, ByteTokenizer()) if chat else "{{ .Prompt }}")
