"""Models in and out of transformers' format: `classic` is its GPT-2, `modern` its Qwen3, tokenizer included.

A folder holds config.json, model.safetensors and tokenizer.json, as `AutoModelForCausalLM.from_pretrained` reads them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import checkpoint
import tokenizer as tokenizers
from config import ModelConfig, UserError
from model import GPT, build
from tokenizer import EOT, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

TOLERANCE = 1e-3  # largest difference of a logit between our model and the exported one
OURS = "toolkit_tokenizer.json"  # what an exported folder says to our own importer


# ---- names: ours on the left, transformers' on the right; {} is the block's number


def names(config: ModelConfig) -> dict[str, str | tuple[str, ...]]:
    """Our tensors and theirs. A tuple is stacked row by row into one of ours. GPT-2's matrices lie the other way round."""
    if config.architecture == "classic":
        top = {"wte.weight": "transformer.wte.weight", "wpe.weight": "transformer.wpe.weight"}
        top |= {f"norm.{end}": f"transformer.ln_f.{end}" for end in ("weight", "bias")}
        inside = {
            "norm1": "ln_1",
            "attn.qkv": "attn.c_attn",
            "attn.proj": "attn.c_proj",
            "norm2": "ln_2",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }
        block = {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in inside.items() for end in ("weight", "bias")}
        prefix = "transformer.h."
    else:
        top = {"wte.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
        attention = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
        block = {
            "norm1.weight": "input_layernorm.weight",
            "attn.qkv.weight": attention,
            "attn.q_norm.weight": "self_attn.q_norm.weight",
            "attn.k_norm.weight": "self_attn.k_norm.weight",
            "attn.proj.weight": "self_attn.o_proj.weight",
            "norm2.weight": "post_attention_layernorm.weight",
            "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
            "mlp.down.weight": "mlp.down_proj.weight",
        }
        prefix = "model.layers."
    if not config.tied_head:
        top["head.weight"] = "lm_head.weight"
    table: dict[str, str | tuple[str, ...]] = dict(top)
    for layer in range(config.n_layer):
        for ours, theirs in block.items():
            full = tuple(f"{prefix}{layer}.{part}" for part in ([theirs] if isinstance(theirs, str) else theirs))
            table[f"blocks.{layer}.{ours}"] = full if len(full) > 1 else full[0]
    return table


def turned(config: ModelConfig, name: str) -> bool:
    """Whether transformers keeps this matrix transposed (GPT-2's Conv1D)."""
    return (
        config.architecture == "classic"
        and name.startswith("blocks.")
        and name.endswith(".weight")
        and "norm" not in name
    )


def parts(model: GPT) -> Iterator[tuple[str, str, Tensor]]:
    """The weights one by one: our name, transformers' name, and the matrix or vector as we keep it, in float32."""
    state, rows = model.state_dict(), {name: getattr(p, "parts", ()) for name, p in model.named_parameters()}
    for ours, theirs in names(model.config).items():
        weight = state[ours].detach().float().cpu()
        if isinstance(theirs, str):
            yield ours, theirs, weight
        else:
            yield from ((ours, name, part) for name, part in zip(theirs, weight.split(rows[ours]), strict=True))


def to_theirs(model: GPT) -> dict[str, Tensor]:
    """The weights under transformers' names."""
    return {
        theirs: (weight.T if turned(model.config, ours) else weight).contiguous()
        for ours, theirs, weight in parts(model)
    }


def to_ours(config: ModelConfig, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names from transformers'.

    Raises:
        UserError: naming a tensor that is missing.
    """
    out = {}
    for ours, wanted in names(config).items():
        pieces = []
        for name in (wanted,) if isinstance(wanted, str) else wanted:
            short = name.removeprefix("transformer.")
            if name not in theirs and short not in theirs:
                raise UserError(
                    f"the weights have no tensor {name!r}: the folder is not whole, or not of this architecture."
                )
            pieces.append(theirs[name] if name in theirs else theirs[short])
        weight = torch.cat(pieces).float()
        out[ours] = weight.T.contiguous() if turned(config, ours) else weight
    if config.tied_head:
        out["head.weight"] = out["wte.weight"]
    return out


# ---- configurations


def their_config(config: ModelConfig, eot: int) -> dict[str, Any]:
    """config.json of a model."""
    common = {
        "vocab_size": config.vocab_size,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "tie_word_embeddings": config.tied_head,
        "torch_dtype": "float32",
    }
    if config.architecture == "classic":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_positions": config.block_size,
            "n_ctx": config.block_size,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.n_inner,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            **{f"{where}_pdrop": config.dropout for where in ("resid", "embd", "attn")},
            **common,
        }
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "intermediate_size": config.n_inner,
        "hidden_act": "silu",
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # where transformers 4, vLLM and llama.cpp look
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},  # and transformers 5
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        **common,
    }


def our_config(theirs: dict[str, Any]) -> ModelConfig:
    """The shape that a config.json describes.

    Raises:
        UserError: for a model that is neither GPT-2 nor a dense Qwen3, naming what differs.
        KeyError: naming a setting that it does not have.
    """
    kind = theirs.get("model_type")
    refused = {
        "gpt2": {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
        "qwen3": {"hidden_act": ("silu",), "attention_bias": (False,), "use_sliding_window": (False,)},
    }
    if kind not in [*refused]:  # a list, since what stands in the file may be one
        raise UserError(f"model_type is {kind!r}; import reads 'gpt2' and 'qwen3' (dense).")
    for name, allowed in refused[kind].items():
        if theirs.get(name, allowed[0]) not in allowed:
            raise UserError(
                f"{name} is {theirs[name]!r}; this toolkit's {kind} has {allowed[0]!r}, so its logits would differ."
            )
    if kind == "gpt2":
        return ModelConfig(
            architecture="classic",
            vocab_size=stated(theirs, "vocab_size", int),
            n_layer=stated(theirs, "n_layer", int),
            n_head=stated(theirs, "n_head", int),
            n_embd=stated(theirs, "n_embd", int),
            n_inner=stated(theirs, "n_inner", int, 0),
            block_size=stated(theirs, "n_positions", int),
            tied_head=stated(theirs, "tie_word_embeddings", bool, True),
            norm_eps=stated(theirs, "layer_norm_epsilon", float, 1e-5),
        )
    rope = stated(theirs, "rope_parameters", dict, {})
    scaling = stated(theirs, "rope_scaling", dict, {}) or rope
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":  # "type" before transformers 4.43
        raise UserError("the model stretches its rotary positions (rope_scaling), which this toolkit does not.")
    return ModelConfig(
        architecture="modern",
        vocab_size=stated(theirs, "vocab_size", int),
        n_layer=stated(theirs, "num_hidden_layers", int),
        n_head=stated(theirs, "num_attention_heads", int),
        n_kv_head=stated(theirs, "num_key_value_heads", int, 0),
        n_embd=stated(theirs, "hidden_size", int),
        head_dim=stated(theirs, "head_dim", int, 0),
        n_inner=stated(theirs, "intermediate_size", int),
        block_size=min(stated(theirs, "max_position_embeddings", int), 32768),
        tied_head=stated(theirs, "tie_word_embeddings", bool, False),
        rope_theta=stated(rope, "rope_theta", float, stated(theirs, "rope_theta", float, 10000.0)),
        norm_eps=stated(theirs, "rms_norm_eps", float, 1e-6),
    )


TYPES = {int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}  # in JSON's words


def stated(theirs: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A setting of a config.json; null is as if it were not there.

    Raises:
        UserError: when it is of another type.
        KeyError: when it is not there, and has no default.
    """
    value = theirs.get(name)
    if value is None:
        value = default
    if value is None:
        raise KeyError(name)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UserError(f"{name} is {value!r} in config.json, where {TYPES[kind]} is wanted: copy config.json again.")
    return value


# ---- tokenizers


def their_tokenizer(tokenizer: Tokenizer, documents: bool = False):
    """Our tokenizer as a `tokenizers.Tokenizer` that gives the same ids.

    That format cannot spell a char tokenizer's unknown characters: there, and only there, they become the end of text.

    Args:
        documents: whether a text begins with an end-of-text token, as in the corpus. A chat begins as its template says.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Theirs

    if isinstance(tokenizer, CharTokenizer):
        ids = {c: i for i, c in enumerate(tokenizer.characters)} | {
            f"<nibble {n:x}>": tokenizer.nibble + n for n in range(16)
        }
        theirs = Theirs(models.WordLevel(ids | tokenizer.controls, unk_token=EOT))
        theirs.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        theirs.decoder = decoders.Fuse()
    else:
        spelt, merges = spelling(tokenizer)
        named = tokenizer.controls | tokenizer.visible
        theirs = Theirs(models.BPE({piece: i for i, piece in enumerate(spelt)} | named, merges))
        words = getattr(tokenizer, "words", tokenizers.WORDS)
        to_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words == tokenizers.WORDS)
        cut = [] if words == tokenizers.WORDS else [pre_tokenizers.Split(Regex(words), "isolated")]
        theirs.pre_tokenizer = pre_tokenizers.Sequence([*cut, to_symbols])  # ByteLevel's own pattern is WORDS
        theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in tokenizer.controls])
    theirs.add_tokens([AddedToken(name, special=False, normalized=False) for name in tokenizer.visible])
    if documents:
        eot = tokenizer.names[tokenizer.eot]
        begun = {"single": [eot, "$A"], "pair": [eot, "$A", "$B:1"]}
        theirs.post_processor = processors.TemplateProcessing(**begun, special_tokens=[(eot, tokenizer.eot)])
    return theirs


def spelling(tokenizer: BPETokenizer | ByteTokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """The tokens that text is cut into, and the two that each longer one is merged from, in the letters of byte-level BPE's files."""
    symbol = {byte: char for char, byte in tokenizers.byte_symbols().items()}

    def spell(piece: bytes) -> str:
        return "".join(symbol[byte] for byte in piece)

    if isinstance(tokenizer, ByteTokenizer):
        return [spell(bytes([byte])) for byte in range(256)], []
    pairs = [(spell(left), spell(right)) for left, right in merge_pairs(tokenizer)]
    return [spell(piece) for piece in tokenizer.ranks], pairs


def merge_pairs(tokenizer: BPETokenizer) -> list[tuple[bytes, bytes]]:
    """The two tokens that each longer token was merged from: what is left of it when only earlier merges are applied."""
    rank = {piece: i for i, piece in enumerate(tokenizer.ranks)}
    pairs = []
    for limit, piece in enumerate(tokenizer.ranks):
        if len(piece) == 1:
            continue
        parts = [bytes([b]) for b in piece]
        while len(parts) > 2:
            lowest = min(range(len(parts) - 1), key=lambda i: rank.get(parts[i] + parts[i + 1], limit))
            if rank.get(parts[lowest] + parts[lowest + 1], limit) >= limit:
                break
            parts[lowest : lowest + 2] = [parts[lowest] + parts[lowest + 1]]
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs


def our_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a transformers folder, where it is byte-level BPE.

    Raises:
        UserError: when it cannot be read, is of another kind, or gives other ids than ours.
    """
    ours = folder / OURS
    try:
        if ours.exists():
            return tokenizers.from_dict(json.loads(ours.read_text(encoding="utf-8")))
        return byte_level(folder, vocab_size)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tiktoken and tokenizers are written in Rust, whose panics are no Exception
        raise UserError(
            f"the tokenizer in {folder} cannot be read ({error}): copy the folder again, "
            "or choose a model with GPT-2's or Qwen's kind of tokenizer."
        ) from error


def byte_level(folder: Path, vocab_size: int) -> BPETokenizer:
    """The byte-level BPE of a transformers folder.

    Raises:
        UserError: when it is of another kind, or gives other ids than ours. Other errors tell that it cannot be read.
    """
    whole = folder / "tokenizer.json"
    vocabulary, words, added = their_vocabulary(folder)
    known = [token for token in added if token["content"] and token["id"] < vocab_size]  # some were never given a row
    controls = {token["content"]: token["id"] for token in known if token["special"]}
    visible = {token["content"]: token["id"] for token in known if not token["special"]}
    ends = their_ends(folder, controls | visible)
    to_byte, names = tokenizers.byte_symbols(), {token["content"] for token in added}
    ordered = sorted((i, piece) for piece, i in vocabulary.items() if piece not in names)
    named = [*controls.values(), *visible.values()]
    if (
        [i for i, _ in ordered] != list(range(len(ordered)))
        or any(c not in to_byte for _, piece in ordered for c in piece)
        or not to_byte.keys() <= {piece for _, piece in ordered}
        or any(i < len(ordered) for i in named)
    ):
        raise UserError(
            f"the tokenizer in {folder} is no byte-level BPE with all 256 bytes and ids in order, which is all that import reads: "
            "choose a model with GPT-2's kind of tokenizer."
        )
    ranks = [bytes(to_byte[c] for c in piece) for _, piece in ordered]
    if len(ranks) not in named:  # where the end of text is, unless the folder says otherwise
        controls = {EOT: len(ranks)} | controls
    kind = "gpt2" if vocab_size == 50257 else "bpe"
    found = BPETokenizer(ranks, kind, words, controls, visible, [i for i in ends if 0 <= i < vocab_size])
    if found.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer in {folder} has {found.vocab_size} tokens, the model {vocab_size}: copy both from one model."
        )
    if whole.exists() and not same_ids(found, whole):
        raise UserError(
            f"the tokenizer in {folder} cuts text in a way that this toolkit does not know, so its ids would differ: "
            "choose a model with GPT-2's or Qwen's kind of tokenizer."
        )
    return found


def their_vocabulary(folder: Path) -> tuple[dict[str, int], str, list[dict[str, Any]]]:
    """The ids of a folder's tokens, the pattern that cuts words, and the tokens that no text is cut into: `content`, `id`, `special`.

    Raises:
        UserError: when there is no tokenizer. Other errors tell that it cannot be read.
    """
    whole, vocab_file, words = folder / "tokenizer.json", folder / "vocab.json", tokenizers.WORDS
    if whole.exists():
        theirs = json.loads(whole.read_text(encoding="utf-8"))
        vocabulary, words = theirs["model"].get("vocab", {}), pattern(theirs) or words
        added = theirs.get("added_tokens", [])
    elif vocab_file.exists():
        vocabulary = json.loads(vocab_file.read_text(encoding="utf-8"))
        decoder = settings_of(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
        added = [{**token, "id": int(i)} for i, token in decoder.items()]
    else:
        raise UserError(f"{folder} has neither tokenizer.json nor vocab.json: copy the whole folder of the model.")
    vocabulary = vocabulary if isinstance(vocabulary, dict) else {}
    eot = [{"content": EOT, "id": vocabulary[EOT], "special": True}] if EOT in vocabulary else []
    return vocabulary, words, eot + added


def their_ends(folder: Path, named: dict[str, int]) -> list[int]:
    """The ids by which a folder's model says that it has finished, first the one that chat templates call `eos_token`."""
    token = settings_of(folder, "tokenizer_config.json").get("eos_token")
    ids = [named.get(token["content"] if isinstance(token, dict) else token)]
    for file in ("generation_config.json", "config.json"):
        found = settings_of(folder, file).get("eos_token_id")
        ids += found if isinstance(found, list) else [found]
    return [i for i in ids if isinstance(i, int)]


def settings_of(folder: Path, file: str) -> dict[str, Any]:
    """One of a folder's files of settings; nothing where it has none that can be read."""
    try:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def pattern(theirs: dict[str, Any]) -> str:
    """The pattern by which a tokenizer.json cuts words, or nothing where it is ByteLevel's own, which is GPT-2's."""
    before = theirs.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    return next((step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"), "")


def same_ids(ours: BPETokenizer, file: Path) -> bool:
    """Whether a tokenizer.json cuts a text full of borders as we do. (Text that is not in Unicode's composed form is left
    out: Qwen composes it first, we keep every byte.)"""
    from tokenizers import Tokenizer as Theirs

    text = "Hello  World's 12345 DON'T, caf\u00e9 \n\n  x\t \n\u65e5\u672c\u8a9e \U0001f642 don't..."
    theirs = Theirs.from_file(str(file))
    theirs.no_truncation()  # to the length of the rows that its model was trained on
    theirs.no_padding()
    return theirs.encode(text, add_special_tokens=False).ids == ours.encode(text).tolist()


# ---- the two verbs


def read_folder(folder: Path) -> dict[str, Any]:
    """A transformers folder as the content of a checkpoint.

    Raises:
        UserError: naming the file or the setting that cannot be used.
    """
    from safetensors.torch import load_file

    try:
        theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(theirs, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} has no readable config.json ({error}): give the folder of a transformers model."
        ) from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"{folder} has no .safetensors files; .bin files can run code and are not read: convert them with transformers' save_pretrained."
        )
    try:
        config = our_config(theirs)
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} says nothing of {error}: copy it again.") from error
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except Exception as error:  # safetensors' own error is no OSError
            raise UserError(f"{file} cannot be read ({error}): copy it again.") from error
    model, tokenizer = GPT(config), our_tokenizer(folder, config.vocab_size)
    try:
        model.load_state_dict(to_ours(config, weights))
    except RuntimeError as error:
        told = str(error).splitlines()[-1].strip()
        raise UserError(f"the weights in {folder} do not fit its config.json ({told}): copy both again.") from error
    provenance = {
        "run": folder.name,
        "step": 0,
        "val_loss": None,
        "val_bpb": None,
        "documents": documents(folder),
        "data": f"imported from {folder.name}",
        "data_hash": "",
        **chat_template(folder),
    }
    return checkpoint.content_of(model, tokenizer, provenance)


def documents(folder: Path) -> bool:
    """Whether the model's texts began with an end-of-text token. A folder that does not say so is taken for the usual kind."""
    ours = folder / OURS
    return not ours.exists() or json.loads(ours.read_text(encoding="utf-8")).get("documents", True)


def chat_template(folder: Path) -> dict[str, str]:
    """The jinja template by which a chat is put to the model, where the folder has one: the server renders chats with it."""
    try:
        found: Any = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except OSError:
        found = settings_of(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several of them by name: one to talk with, others for tools and for documents
        found = next((each.get("template") for each in found if isinstance(each, dict) and each.get("name") == "default"), None)
    return {"chat_template": found} if isinstance(found, str) else {}


def load_start(path: str) -> dict[str, Any]:
    """What `--init_from` names: a checkpoint, a run's folder, or a transformers folder."""
    folder = Path(path).expanduser()
    if (folder / "config.json").exists():
        return {"format": checkpoint.FORMAT, **read_folder(folder)}
    return checkpoint.load(checkpoint.resolve(path))


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A place inside a folder to write to. What was written there moves up into the folder once all of it is well.

    Raises:
        UserError: when the folder is not empty, or cannot be written; then nothing of ours is left.
    """
    from safetensors import SafetensorError

    fresh = not folder.exists()
    if not fresh and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose another folder with --out.")
    draft = folder / f".{os.getpid()}.tmp"
    try:
        draft.mkdir(parents=True)
        yield draft
        for file in sorted(draft.iterdir(), key=lambda file: file.stat().st_size):  # the weights last
            os.replace(file, folder / file.name)
        fresh = False
    except (OSError, SafetensorError) as error:
        near = next(parent for parent in (draft, *draft.parents) if parent.is_dir())
        raise UserError(
            f"{folder} could not be written ({checkpoint.reason(error, near)}): make room, or choose another --out."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if fresh:
            with contextlib.suppress(OSError):
                folder.rmdir()


def write_folder(path: Path | str, out: Path) -> str:
    """Exports a checkpoint to a transformers folder, and compares the logits of what was written with ours.

    Returns:
        a sentence with what was compared.

    Raises:
        UserError: when the folder is not empty, or the logits differ; then nothing is left in it.
    """
    from safetensors.torch import save_file

    model, tokenizer, provenance = load_text_model(path)
    begun = bool(provenance.get("documents"))
    with new_folder(out) as folder:
        save_file(to_theirs(model), folder / "model.safetensors", metadata={"format": "pt"})
        shape = {**their_config(model.config, tokenizer.eot), "eos_token_id": tokenizer.ends[0]}
        (folder / "config.json").write_text(json.dumps(shape, indent=2), encoding="utf-8")
        their_tokenizer(tokenizer, begun).save(str(folder / "tokenizer.json"))
        (folder / OURS).write_text(json.dumps({**tokenizer.to_dict(), "documents": begun}), encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **tokenizer.template_tokens,
            "model_max_length": model.config.block_size,
            "clean_up_tokenization_spaces": False,
        }
        if template := provenance.get("chat_template"):
            settings["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
        ends = list(tokenizer.ends) if len(tokenizer.ends) > 1 else tokenizer.eot
        (folder / "generation_config.json").write_text(
            json.dumps({"bos_token_id": tokenizer.eot, "eos_token_id": ends}), encoding="utf-8"
        )
        (folder / "README.md").write_text(card(model, provenance), encoding="utf-8")
        return compare_logits(model, folder)


def load_text_model(path: Path | str) -> tuple[GPT, Tokenizer, dict]:
    """What `checkpoint.load_model` gives, of a model that other programs know.

    Raises:
        UserError: for a model that sees or hears, or has embeddings for runs of tokens.
    """
    content = checkpoint.load(checkpoint.resolve(path))
    if content["config"]["kind"] != GPT.kind:
        raise UserError(
            f"{path} holds a model that takes {content['config'].get('modalities', 'more than text')}: no other program knows its encoders. "
            "Export a model of text, or serve this one with make serve."
        )
    if content["config"].get("ngrams"):
        raise UserError(
            f"{path} holds a model that was trained with --ngrams {content['config']['ngrams']}: no other program knows such embeddings. "
            "Train with --ngrams 0 to export, or serve this one with make serve."
        )
    return checkpoint.load_model(path)


def compare_logits(model: GPT, folder: Path) -> str:
    """The exported model's logits beside ours."""
    idx = torch.randint(
        model.config.vocab_size, (2, min(64, model.config.block_size)), generator=torch.Generator().manual_seed(0)
    )
    ours = model(idx).detach()
    if not ours.isfinite().all():
        raise UserError("the model's logits are not finite: nothing was written. Export an earlier checkpoint, such as a numbered one of its run.")
    reader, peer = reads(folder)
    difference = float((ours - peer(idx).detach()).abs().max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"the exported model's logits differ from ours by {difference:g}: nothing was written. Please report this checkpoint."
        )
    return f"checked with {reader}: {idx.numel()} positions, largest difference of a logit {difference:.1e}"


def reads(folder: Path) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Who reads an exported folder, and what makes logits of ids there: transformers where it can load it, else our own importer."""
    try:
        from transformers import AutoModelForCausalLM

        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return "transformers", lambda idx: theirs(idx).logits
    except ImportError:
        why = "install transformers to compare with it"
    except Exception as error:  # an older one does not know the architecture, or `dtype`: errors of many kinds
        said = str(error).partition("\n")[0] or type(error).__name__
        why = f"the installed transformers cannot load it, update it to compare with it; it says: {said}"
    content = read_folder(folder)
    again = build(content["config"])
    again.load_state_dict(content["model"])
    return f"our own importer ({why})", again.eval()


def card(model: nn.Module, provenance: dict) -> str:
    """A README.md for the folder: what the model is and where it comes from."""
    lines = [f"- {name}: {value}" for name, value in asdict(model.config).items()]
    told = {name: provenance.get(name) for name in ("run", "step", "data", "val_loss", "val_bpb", "code")}
    return "\n".join(
        ["# A GPT trained from scratch", "", *(f"- {k}: {v}" for k, v in told.items()), "", "Shape:", "", *lines, ""]
    )
