"""Models as GGUF files for llama.cpp and Ollama: `classic` is its `gpt2`, `modern` its `qwen3`, tokenizer included.

A file holds names with values (the shape, the tokenizer), then the tensors. It is read back, and where llama.cpp is at hand it must
compute what we do, before the file gets its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tokenizer as tokenizers
from config import ModelConfig, UserError
from inference.sampling import start_ids
from model import GPT
from tokenizer import EOT, CharTokenizer, Tokenizer
from training.export import load_text_model, new_folder, parts, spelling
from training.llama_peer import Answer, NoAnswer, ask
from training.ollama import modelfile

FILE = "model.gguf"
ARCHITECTURES = {"classic": "gpt2", "modern": "qwen3"}
# What the matrices are kept in, and by how much that may change a weight, as a share of its tensor's largest.
KINDS = {"f32": 0.0, "f16": 2**-10, "bf16": 2**-8, "q8_0": 2**-7}
PATTERNS = {  # the patterns that llama.cpp cuts words by as we do, and what it calls them
    tokenizers.WORDS: "gpt-2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
MAX_LAYERS = 512  # llama.cpp's
BLOCK = 32  # numbers that share a scale in q8_0
NORMAL, CONTROL, VISIBLE, UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of token


def write_folder(path: Path | str, out: Path, kind: str = "f32") -> list[str]:
    """Exports a checkpoint to a folder with a GGUF file and a Modelfile for Ollama, and checks what was written.

    Returns:
        sentences with what was checked.

    Raises:
        UserError: when the folder is not empty, the format cannot say what the checkpoint holds, or a check fails; then nothing
            is left in it.
    """
    if out.suffix == ".gguf":
        raise UserError(f"out is {out}, but a folder is made, for {FILE} and a Modelfile: pass --out {out.with_suffix('')}.")
    model, tokenizer, provenance = load_text_model(path)
    documents = bool(provenance.get("documents"))
    names = {"name": provenance["run"], "chat_template": provenance.get("chat_template", "")}
    with new_folder(out) as folder:
        write_file(folder / FILE, model, tokenizer, kind, documents, **names)
        told = [read_back(folder / FILE, model, tokenizer, kind, documents, **names)]
        told += compare(folder / FILE, model, tokenizer, kind, documents)
        text, note = modelfile(FILE, model.config, provenance, tokenizer)
        (folder / "Modelfile").write_text(text, encoding="utf-8", newline="\n")
    return [*told, f"Modelfile: {note}"]


def refuse(config: ModelConfig, tokenizer: Tokenizer, kind: str) -> None:
    """Refuses what the format or llama.cpp cannot say.

    Raises:
        UserError: naming the setting, its value, and what to do instead.
    """
    if isinstance(tokenizer, CharTokenizer):
        raise UserError(
            "the tokenizer is char, for which GGUF has no kind: train with --tokenizer bpe or byte, "
            "or export with --format hf for transformers."
        )
    if getattr(tokenizer, "words", tokenizers.WORDS) not in PATTERNS:
        raise UserError(
            "the tokenizer cuts words by a pattern that llama.cpp does not have, so its tokens would differ: "
            "export with --format hf for transformers."
        )
    if config.n_layer > MAX_LAYERS:
        raise UserError(f"n_layer is {config.n_layer}; llama.cpp takes {MAX_LAYERS} at most: export with --format hf.")
    heads = config.n_head * config.head_dim
    for name, width in {"n_embd": config.n_embd, "n_inner": config.n_inner, "n_head times head_dim": heads}.items():
        if kind == "q8_0" and width % BLOCK:
            raise UserError(f"{name} is {width}; q8_0 needs a multiple of {BLOCK}: pass --gguf_type f16.")


# ---- writing


def library() -> Any:
    """llama.cpp's own package for the format.

    Raises:
        UserError: when it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError("the package gguf is not installed: pip install -r requirements.txt brings it.") from error
    return gguf


def write_file(
    path: Path, model: GPT, tokenizer: Tokenizer, kind: str = "f32", documents: bool = False, **names: str
) -> None:
    """Writes a model and its tokenizer as one GGUF file.

    Args:
        kind: one of `KINDS`. Vectors and the positions of `classic` stay f32, as llama.cpp's own tools have it.
        documents: whether a text begins with an end-of-text token, as in the corpus; llama.cpp then puts it there.
        names: `name` of the model and its `chat_template`, where there are any.

    Raises:
        UserError: for what cannot be said in the format, and for weights that are not finite.
    """
    gguf = library()
    refuse(model.config, tokenizer, kind)
    writer = gguf.GGUFWriter(path, ARCHITECTURES[model.config.architecture])
    types = gguf.GGUFValueType
    try:
        for key, value in metadata(model.config, tokenizer, kind, documents, **names).items():
            if key != "general.architecture":  # which the writer has put there
                writer.add_key_value(key, value, types.UINT32 if type(value) is int else types.get_type(value))
        for name, weight, stored in tensors(model, kind):
            if not np.isfinite(weight).all():
                raise UserError(
                    f"{name} has weights that are no finite numbers, so the model computes nothing: export another checkpoint."
                )
            with np.errstate(over="ignore"):  # a weight that does not fit is found when the file is read back
                writer.add_tensor(name, gguf.quants.quantize(weight, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def metadata(
    config: ModelConfig, tokenizer: Tokenizer, kind: str, documents: bool, name: str = "", chat_template: str = ""
) -> dict[str, Any]:
    """The names and values of a file, as the format's specification has them (github.com/ggml-org/ggml, docs/gguf.md)."""
    shape: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_inner,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_kv_head,
    }
    if config.architecture == "classic":
        shape["attention.layer_norm_epsilon"] = config.norm_eps
    else:  # that the two numbers of a pair stand half a head apart, llama.cpp knows of every qwen3
        shape |= {f"attention.{what}_length": config.head_dim for what in ("key", "value")}
        shape |= {"rope.dimension_count": config.head_dim, "rope.freq_base": float(config.rope_theta)}
        shape["attention.layer_norm_rms_epsilon"] = config.norm_eps
    architecture, gguf = ARCHITECTURES[config.architecture], library()
    file_type = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
    general = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(gguf.LlamaFileType[file_type]),
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "tokenizer.chat_template": chat_template,
    }
    return {
        **{key: value for key, value in general.items() if value != ""},
        **{f"{architecture}.{key}": value for key, value in shape.items()},
        **vocabulary(tokenizer, config.vocab_size, documents),
    }


def vocabulary(tokenizer: Tokenizer, size: int, documents: bool) -> dict[str, Any]:
    """The tokenizer's part of the metadata. Ids that the model has beyond the tokenizer's become tokens that nothing is cut into."""
    tokens, merges = spelling(tokenizer)
    names, rest = tokenizer.names, range(len(tokens), size)
    kinds = dict.fromkeys(tokenizer.controls.values(), CONTROL) | dict.fromkeys(tokenizer.visible.values(), VISIBLE)
    never = [(EOT, EOT)]  # bytes are not merged, but the format has no empty list: this pair comes about in no text
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PATTERNS[getattr(tokenizer, "words", tokenizers.WORDS)],
        "tokenizer.ggml.tokens": [*tokens, *(names.get(i, f"[PAD{i}]") for i in rest)],
        "tokenizer.ggml.token_type": [NORMAL] * len(tokens) + [kinds.get(i, UNUSED) for i in rest],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges or never],
        "tokenizer.ggml.bos_token_id": tokenizer.eot,
        "tokenizer.ggml.eos_token_id": tokenizer.ends[0],
        "tokenizer.ggml.add_bos_token": documents,
        "tokenizer.ggml.add_eos_token": False,
    }


def tensors(model: GPT, kind: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    """The tensors by llama.cpp's names, rows first, each with the type that it is kept in."""
    gguf = library()
    kinds = gguf.GGMLQuantizationType
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[model.config.architecture].upper()]
    named = gguf.get_tensor_name_map(architecture, model.config.n_layer)
    for _, theirs, weight in parts(model):
        name = named.get_name(theirs, try_suffixes=(".weight", ".bias"))
        plain = weight.dim() == 1 or name.startswith("position_embd")
        yield name, weight.contiguous().numpy(), kinds.F32 if plain else kinds[kind.upper()]


# ---- checking


def read_back(path: Path, model: GPT, tokenizer: Tokenizer, kind: str, documents: bool, **names: str) -> str:
    """Compares what a file says with what it should: every value, every tensor; f32 to the bit.

    Raises:
        UserError: naming what differs.
    """
    gguf = library()
    reader = gguf.GGUFReader(path)
    for key, value in metadata(model.config, tokenizer, kind, documents, **names).items():
        found = reader.fields[key].contents() if key in reader.fields else None
        if found != (float(np.float32(value)) if isinstance(value, float) else value):
            raise UserError(f"{key} was not written as it is: nothing was kept. Please report this checkpoint.")
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    count = len(written)
    for name, weight, stored in tensors(model, kind):
        found = gguf.quants.dequantize(written.pop(name), stored).reshape(weight.shape)
        allowed = (KINDS[kind] if stored.name != "F32" else 0.0) * np.abs(weight).max()
        if not np.abs(found - weight).max() <= allowed:
            raise UserError(f"{name} cannot be kept as {stored.name.lower()}: pass --gguf_type f32 or bf16.")
    how = "equal to ours bit for bit" if kind == "f32" else f"ours but for the rounding to {kind}"
    return f"read back: {count} tensors, {how}; shape and tokenizer as they are"


PROMPTS = ["", "Once upon a time", "The", "def f(x):\n    return", "\u65e5\u672c\u8a9e \U0001f642 caf\u00e9, 1234"]
TEXTS = [  # full of borders between words, tokens and characters
    *PROMPTS[1:],
    "Hello  World's   12345 DON'T, they'd've  \n\n\n  x\t \n don't... (a, b) [c] {d} \"e\" `f`\\",
    " leading, trailing \n",
    "\r\n\x00\x1c\x85\u00a0\u2028\u3000\ufeff.",
    "na\u00efve e\u0301 \u00df \u0130 \u01c5 \u00b2\u00bd \u0663\u0664 \u0939\u093f\u0928\u094d\u0926\u0940 \ud55c\uad6d\uc5b4",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e9\u05dc\u05d5\u05dd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0010ffff",
    "if (x != y) { return a[i++] << 2; } // <|endoftext|> <s> [PAD300] \u2581\u0120",
    "-_=+" * 9 + " " * 33 + "0" * 17 + "\n" * 5 + "z",
]
STEPS, LONGEST = 16, 256  # tokens that are written after each prompt; tokens of the long prompt
# Of f32, how far a logit may be from ours, in standard deviations of our logits. llama.cpp looks GELU up in a table of float16.
LOGITS = {"classic": 0.02, "modern": 0.001}
# Of the others, the most that its next token's distribution may be from ours: Kullback and Leibler's divergence, nats a token.
DIVERGENCE = {"f16": 0.001, "bf16": 0.01, "q8_0": 0.05}
# By how many nats a token that it chose greedily may be behind our likeliest: where two are as good as tied, rounding decides.
TIES = {"f16": 0.1, "bf16": 0.3, "q8_0": 1.0}


def compare(path: Path, model: GPT, tokenizer: Tokenizer, kind: str, documents: bool) -> list[str]:
    """llama.cpp's tokens and logits beside ours, where it can be asked.

    Raises:
        UserError: when they differ by more than rounding does.
    """
    steps = min(STEPS, model.config.block_size // 2)
    room = model.config.block_size - steps
    chance = torch.Generator().manual_seed(0)
    prompts = [start_ids(tokenizer, prompt, documents) for prompt in PROMPTS]
    prompts.append(torch.randint(model.config.vocab_size, (LONGEST,), generator=chance).tolist())
    prompts = [prompt[:room] for prompt in prompts]
    try:
        answer = ask(path, TEXTS, prompts, steps)
    except NoAnswer as error:
        return [f"of the file it is only known that it reads back: not compared with llama.cpp, which {error}"]
    told = f"checked with llama.cpp (llama-cpp-python {answer.version}): "
    return [told + compare_tokens(answer, tokenizer, documents), told + compare_logits(answer, model, prompts, kind)]


def compare_tokens(answer: Answer, tokenizer: Tokenizer, documents: bool) -> str:
    for text, ids, again in zip(TEXTS, answer.ids, answer.again, strict=True):
        if ids != start_ids(tokenizer, text, documents) or again != text.encode():
            raise UserError(
                f"llama.cpp cuts {text!r} into other tokens than we do: nothing was written. Please report this checkpoint."
            )
    return f"{len(TEXTS)} texts full of oddities have our tokens, and come back from them"


def compare_logits(answer: Answer, model: GPT, prompts: list[list[int]], kind: str) -> str:
    with torch.no_grad():
        ours = torch.cat([model(torch.tensor([ids]))[0] for ids in answer.read]).double()
    theirs = torch.from_numpy(np.concatenate(answer.logits)).double()
    if kind == "f32":
        value, allowed = (ours - theirs).abs().max() / ours.std(), LOGITS[model.config.architecture]
        measured, tie = f"the largest difference of a logit is {value:.1e} of our logits' standard deviation", 2 * allowed * ours.std()
    else:
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        value, allowed, tie = (p.exp() * (p - q)).sum(-1).mean(), DIVERGENCE[kind], TIES[kind]
        measured = f"the mean divergence of the next token's distribution is {max(0.0, value):.1e} nats"
    if not value <= allowed:
        raise UserError(
            f"llama.cpp computes otherwise than we do: {measured}, allowed {allowed:g}. "
            "Nothing was written; please report this checkpoint."
        )
    written = torch.cat([picked(ids, prompt) for ids, prompt in zip(answer.read, prompts, strict=True)])
    told = compare_greedy(ours[written], theirs[written].argmax(-1), float(tie))
    return f"{len(ours)} positions, {measured} (allowed {allowed:g}); {told}"


def compare_greedy(ours: torch.Tensor, chosen: torch.Tensor, tie: float) -> str:
    """Whether the tokens that llama.cpp chose, (N,), are the likeliest by our logits (N, V), or no more than a tie behind."""
    if not len(chosen):
        return "with room for one token only it wrote none"
    behind = ours.amax(-1) - ours.gather(-1, chosen[:, None])[:, 0]  # (N,) nats
    most, agree = behind.max(), int((behind == 0).sum())
    if not most <= tie:
        raise UserError(
            f"llama.cpp writes another text than we do: a token that it chose is {most:.2g} nats behind our likeliest, "
            f"allowed {tie:.2g}. Nothing was written; please report this checkpoint."
        )
    rest = f", and the others {most:.1e} nats behind at most" if agree < len(behind) else ""
    return f"of {len(behind)} tokens that it wrote greedily {agree} are our likeliest as well{rest}"


def picked(ids: list[int], prompt: list[int]) -> torch.Tensor:
    """At which of the places the next token was chosen greedily, (len(ids),) bool."""
    places = torch.arange(len(ids))
    return (places >= len(prompt) - 1) & (places < len(ids) - 1)
