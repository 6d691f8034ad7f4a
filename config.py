"""Every setting of the toolkit, once: the dataclasses below are the defaults, the `--help`, the flags and the docs.

Read it from top to bottom and you know what can be turned. A field becomes the flag of the same name
(`n_layer` is `--n_layer`, and `--n-layer` works too); a preset is a row of overrides in `PRESETS`.
Standard library only: this is the ground floor, and `--help` should not wait for torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).resolve().parent  # default folders hang here; paths a user types hang on the working directory
DATA = Path(os.environ.get("LLM_DATA_DIR") or ROOT / "data")  # corpora, token shards, this machine's measurements


class UserError(Exception):
    """Something the person at the keyboard can mend. Front doors print it without a traceback.

    The message says what was wrong, with the value, and which flag or command mends it.
    """

    exit_code = 2


DEEPEST = 48  # blocks that --depth goes to


def setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with the words that `--help` and the docs show for it."""
    return field(default=default, metadata={"help": text, "choices": choices})


def secret(default: Any, text: str) -> Any:
    """A setting whose value is never shown."""
    return field(default=default, metadata={"help": text, "choices": ()}, repr=False)


@dataclass
class ModelConfig:
    """The shape of a GPT. Everything needed to build one, and nothing about how it is trained."""

    architecture: str = setting(
        "classic", "classic is GPT-2's block, modern is Qwen3's dense block", ("classic", "modern")
    )
    vocab_size: int = setting(50257, "number of tokens; 0 lets the tokenizer or the size of the corpus decide")
    n_layer: int = setting(6, "blocks")
    n_head: int = setting(6, "attention heads for the queries")
    n_kv_head: int = setting(0, "heads for keys and values (modern only); 0 means as many as n_head")
    n_embd: int = setting(384, "width of the residual stream")
    head_dim: int = setting(0, "width of one head (modern only); 0 means n_embd / n_head")
    n_inner: int = setting(
        0, "hidden width of the MLP; 0 means 4 n_embd (classic), 8/3 n_embd to a multiple of 64 (modern)"
    )
    block_size: int = setting(512, "the context: how many tokens the model sees at once")
    dropout: float = setting(0.0, "share of activations dropped in training, 0 to 1")
    word_dropout: float = setting(0.0, "share of tokens hidden in training from what goes on with them, 0 to 1")
    ngrams: int = setting(0, "longest run of tokens with an embedding of its own, 2 to 8; 0 is none. For texts read a few times")
    ngram_rows: int = setting(16384, "rows of the table that all such runs share, by their hashes")
    tied_head: bool = setting(True, "the output head shares the token embedding's matrix")
    rope_theta: float = setting(10000.0, "base of the rotary positions (modern only)")
    norm_eps: float = setting(0.0, "epsilon of the norms; 0 means 1e-5 (classic), 1e-6 (modern)")
    embedding_std: float = setting(
        0.02, "deviation of the token embedding at the start; more of it keeps words apart that stand in the same places"
    )

    def __post_init__(self) -> None:
        """Fills what was left at 0, and refuses shapes that cannot be built.

        Raises:
            UserError: naming the field, its value and the mend.
        """
        limits = {
            "vocab_size": (0, 2**24), "n_layer": (1, 1000), "n_head": (1, 2**12), "n_kv_head": (0, 2**12), "n_embd": (1, 2**17),
            "head_dim": (0, 2**12), "n_inner": (0, 2**20), "block_size": (1, 2**24), "rope_theta": (1, 1e12), "norm_eps": (0, 1),
            "embedding_std": (0, 10), "ngrams": (0, 8), "ngram_rows": (1, 2**26),
        }  # fmt: skip
        check_limits(self, limits)
        if self.architecture not in ("classic", "modern"):
            raise UserError(f"architecture is {self.architecture!r}; choose --architecture classic or modern.")
        modern = self.architecture == "modern"
        if not self.head_dim and self.n_embd % self.n_head:
            raise UserError(
                f"n_embd {self.n_embd} cannot be cut into n_head {self.n_head} equal heads: "
                f"pass --n_embd {self.n_embd // self.n_head * self.n_head + self.n_head} or another --n_head."
            )
        self.n_kv_head = self.n_kv_head or self.n_head
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.norm_eps = self.norm_eps or (1e-6 if modern else 1e-5)
        if not self.n_inner:
            self.n_inner = -(-8 * self.n_embd // (3 * 64)) * 64 if modern else 4 * self.n_embd
        if self.n_head % self.n_kv_head:
            raise UserError(
                f"n_head {self.n_head} is no multiple of n_kv_head {self.n_kv_head}: choose --n_kv_head among its divisors."
            )
        if modern and self.head_dim % 2:
            raise UserError(
                f"head_dim is {self.head_dim}; rotary positions need it even: change --n_embd, --n_head or --head_dim."
            )
        if not modern and (self.n_kv_head != self.n_head or self.head_dim * self.n_head != self.n_embd):
            raise UserError("n_kv_head and head_dim belong to --architecture modern; leave them at 0 for classic.")
        if self.ngrams == 1:
            raise UserError("ngrams is 1, but single tokens have their embeddings already: pass --ngrams 2 or more, or 0 for none.")
        for name in ("dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a share from 0 up to, but not including, 1.")


@dataclass
class MediaModelConfig(ModelConfig):
    """The shape of a GPT that sees and hears as well: the GPT's own, and its encoders'."""

    # eyes and ears
    modalities: str = setting("", "what the model takes in beside text: image, audio, or image,audio; empty is text alone")
    image_size: int = setting(32, "side of the square that a picture is scaled to, in pixels: 16, 32, 64, ... 512")
    audio_rate: int = setting(8000, "samples a second that a sound is brought to")
    audio_seconds: float = setting(4.0, "longest sound")
    encoder_layers: int = setting(2, "blocks of each encoder")

    def __post_init__(self) -> None:
        """Refuses what no encoder can be made for, as `ModelConfig` does."""
        super().__post_init__()
        check_limits(
            self,
            {"image_size": (16, 512), "audio_rate": (2000, 48000), "audio_seconds": (0.1, 60), "encoder_layers": (1, 100)},
        )
        if strangers := set(self.kinds) - {"image", "audio"}:
            raise UserError(f"modalities has {min(strangers)!r}; pass --modalities image, audio or image,audio.")
        if self.image_size & (self.image_size - 1):
            raise UserError(f"image_size is {self.image_size}; pass --image_size 16, 32, 64, 128, 256 or 512.")
        if self.ngrams:
            raise UserError(f"ngrams is {self.ngrams}, which is for text alone: pass --ngrams 0 with --modalities {self.modalities}.")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The modalities, one by one."""
        return tuple(filter(None, (kind.strip() for kind in self.modalities.split(","))))


@dataclass
class TrainConfig:
    """How a model is trained: data, optimizer, schedule, safety, logs."""

    preset: str = setting("", "a row of settings to start from; see --list_presets")
    # data
    data: str = setting(
        "auto",
        "auto, stories, wikitext-2, wikitext-103, a .txt .jsonl .parquet file, a folder or glob of them, hf:OWNER/NAME[:CONFIG], or a folder of token shards",
    )
    dataset_name: str = setting("Salesforce/wikitext", "the Hub dataset that --data auto means")
    dataset_config: str = setting("wikitext-2-raw-v1", "its configuration")
    text_field: str = setting("text", "the field of .jsonl, .parquet and Hub rows that holds the text")
    tokenizer: str = setting(
        "gpt2", "gpt2 (tiktoken), bpe (trained on the corpus), char, byte", ("gpt2", "bpe", "char", "byte")
    )
    val_fraction: float = setting(
        0.1, "share of the text kept for validation (at most 4 MiB), where the data has no split of its own"
    )
    n_stories: int = setting(100_000, "how many stories the embedded corpus has")
    # pictures and sounds (with --modalities)
    mix: str = setting(
        "", "how often rows of each part of the data are drawn, such as captions=2,speech=1,my/rows.jsonl=3; others keep their share"
    )
    image_field: str = setting("image", "the field of plain rows that holds the picture")
    audio_field: str = setting("audio", "the field of plain rows that holds the sound")
    strict: bool = setting(False, "stop at the first row that cannot be used, instead of leaving it out")
    augment: float = setting(
        1.0, "how far a person's own pictures and sounds are bent and shifted in training; 0 is not at all"
    )
    freeze: str = setting("", "parts that are not trained: image, audio, gpt, or several of them, comma-separated")
    # size
    depth: int = setting(
        0, "one dial for size, batch and rates: so many blocks, 64 times that wide (modern); without it --time chooses, where nothing else does"
    )
    # steps and batches
    batch_size: int = setting(16, "sequences per optimizer step, over all ranks and micro-steps")
    micro_batch_size: int = setting(0, "sequences per forward and backward on one rank; 0 finds what fits")
    max_iters: int = setting(10000, "optimizer steps")
    time: str = setting("", "a budget such as 90s, 10m or 2h for the whole run; replaces max_iters")
    # optimizer
    optimizer: str = setting(
        "adamw",
        "adamw, muon (for the matrices of the blocks, AdamW for the rest), or auto: muon where it pays",
        ("adamw", "muon", "auto"),
    )
    learning_rate: float = setting(3e-4, "AdamW's peak rate")
    muon_learning_rate: float = setting(0.02, "Muon's peak rate")
    schedule: str = setting(
        "cosine", "shape of the rate after the warm-up; wsd is warm-up, stable, decay", ("cosine", "linear", "wsd")
    )
    warmup: float = setting(0.02, "share of the run in which the rate rises")
    decay: float = setting(0.3, "share of the run in which wsd's rate falls")
    final_rate: float = setting(0.1, "the rate at the end, as a share of the peak")
    weight_decay: float = setting(0.1, "decay of matrices; never of biases and norms")
    beta1: float = setting(0.9, "AdamW's memory of the gradient")
    beta2: float = setting(0.95, "AdamW's memory of its square")
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 is off")
    ema: float = setting(
        0.0, "exponential moving average of the weights, such as 0.999; evaluated and saved in their place; 0 is off"
    )
    # evaluation and saving
    eval_interval: int = setting(
        500, "steps between evaluations; each saves last.pt, and best_model.pt if it is the best"
    )
    eval_tokens: int = setting(
        0, "validation tokens scored during the run, evenly spaced; 0 is all; the final evaluation scores all, or what a tenth of --time allows"
    )
    patience: int = setting(0, "stop after this many evaluations without a new best; 0 is off")
    save_interval: int = setting(0, "steps between numbered checkpoints step_N.pt; 0 is none")
    keep: int = setting(3, "how many numbered checkpoints stay")
    sample_tokens: int = setting(100, "tokens of the sample written at each evaluation; 0 is none")
    # the machine
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = setting(
        "auto",
        "arithmetic of the forward and backward; auto probes the machine",
        ("auto", "float32", "bfloat16", "float16"),
    )
    compile: str = setting(
        "auto", "torch.compile: auto uses it where it pays back within the run", ("auto", "on", "off")
    )
    attention: str = setting(
        "auto", "torch's implementation of attention; auto takes the fastest by trying each", ("auto", "flash", "cudnn", "efficient", "math")
    )
    checkpoint_activations: bool = setting(
        False, "recompute the blocks' activations in the backward: less memory, a third more arithmetic"
    )
    fsdp: bool = setting(
        False, "the ranks share one model in shards (FSDP2), for a model that does not fit one GPU; see docs/CLUSTERS.md"
    )
    threads: int = setting(0, "CPU threads; 0 is one per core")
    seed: int = setting(1337, "everything random follows from it")
    # files
    out_dir: str = setting("checkpoints", "folder of the runs")
    log_dir: str = setting("logs", "folder of the logs")
    run: str = setting("", "name of the run; by default preset and date")
    resume: bool = setting(False, "go on from last.pt of --run, or of the newest run")
    verify_resume: bool = setting(
        False, "replay the run's last interval from the checkpoint before, and compare every bit"
    )
    init_from: str = setting(
        "", "start from the weights and the tokenizer of this checkpoint, or of a transformers folder"
    )
    progress: bool = setting(True, "show the progress bar")

    def __post_init__(self) -> None:
        """Refuses what cannot be run.

        Raises:
            UserError: naming the field, its value and the mend.
        """
        most = 10**12
        limits = {
            "batch_size": (1, 2**20), "max_iters": (1, most), "eval_interval": (1, most), "keep": (1, most),
            "micro_batch_size": (0, 2**20), "n_stories": (20, 10**9), "eval_tokens": (0, most), "patience": (0, most),
            "save_interval": (0, most), "sample_tokens": (0, 10**6), "threads": (0, 2**12), "seed": (0, 2**63 - 1),
            "weight_decay": (0, 100), "grad_clip": (0, most), "depth": (0, DEEPEST), "augment": (0, 2),
        }  # fmt: skip
        check_limits(self, limits)
        for name in ("learning_rate", "muon_learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(
                    f"{name} is {getattr(self, name)}; it must be a positive number, such as --{name} {getattr(TrainConfig, name)}."
                )
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a share from 0 up to, but not including, 1.")
        for name in ("val_fraction", "warmup", "decay", "final_rate", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a share, from 0 to 1.")
        if not self.data:
            raise UserError("data is empty; pass --data with a file, a folder or a name, such as --data stories.")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise UserError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}: choose one of its divisors."
            )
        if self.run and (not re.fullmatch(r"[\w][\w.@+-]*", self.run)):
            raise UserError(
                f"run is {self.run!r}; a run's name is letters, digits and . _ - + @, such as --run first-try."
            )
        if self.time:
            seconds(self.time)


@dataclass
class SamplingConfig:
    """How the next token is chosen, and when a text ends. The command line and the server share it."""

    max_new_tokens: int = setting(200, "tokens to write at most")
    temperature: float = setting(0.8, "below 1 is safer, above 1 wilder, 0 always takes the likeliest token")
    top_k: int = setting(0, "sample among the k likeliest tokens, and those equal to the last of them; 0 is all")
    top_p: float = setting(1.0, "sample among the likeliest tokens that hold this much probability together")
    min_p: float = setting(0.0, "drop tokens less likely than this share of the likeliest")
    repetition_penalty: float = setting(1.0, "above 1 makes tokens that were already used less likely")
    presence_penalty: float = setting(0.0, "taken off the logits of tokens that were written, once; -2 to 2")
    frequency_penalty: float = setting(0.0, "taken off the logits of tokens that were written, each time; -2 to 2")
    stop: tuple[str, ...] = setting((), "end before this text; may be given several times")

    def __post_init__(self) -> None:
        """Refuses settings that no sampler can follow.

        Raises:
            UserError: naming the field, its value and its range.
        """
        ranges = {
            "max_new_tokens": (0, 10**9),
            "temperature": (0, 100),
            "top_k": (0, 10**9),
            "top_p": (0, 1),
            "min_p": (0, 1),
            "repetition_penalty": (0.01, 100),
            "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2),
        }
        check_limits(self, ranges)


@dataclass
class GenerateConfig(SamplingConfig):
    """What `generate.py` writes, and from which checkpoint."""

    checkpoint: str = setting("checkpoints/best_model.pt", "the checkpoint to load, or a run's folder")
    prompt: str = setting("", "the text to go on from")
    prompt_file: str = setting("", "read the prompt from this file; - is standard input")
    image: tuple[str, ...] = setting((), "a picture to ask about; may be given several times")
    audio: tuple[str, ...] = setting((), "a sound to ask about, or that asks; may be given several times")
    seed: int = setting(1337, "the same seed gives the same text")
    num_samples: int = setting(1, "how many texts to write")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = setting("float32", "arithmetic of the model", ("float32", "bfloat16", "float16"))

    def __post_init__(self) -> None:
        """Refuses what cannot be written, as `SamplingConfig` does."""
        super().__post_init__()
        check_limits(self, {"num_samples": (1, 10**6), "seed": (0, 2**63 - 1)})


@dataclass
class ServeConfig:
    """How the server runs. Each field but host and port is read from the variable of its name: `slots` is `LLM_SLOTS`."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 is every address of this machine")
    port: int = setting(8000, "port to listen on; 0 takes a free one")
    # the model
    checkpoint: str = setting("checkpoints/best_model.pt", "the checkpoint to serve, or a run's folder")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = setting(
        "auto", "arithmetic of the model; auto is the fastest on this machine", ("auto", "float32", "bfloat16")
    )
    quantize: str = setting("", "int8 reads the weights as one byte each while one or two texts are written; empty leaves them as they are", ("", "int8"))
    follow: bool = setting(
        False, "yes: serve each new best checkpoint as soon as it is there; the ones before still answer to their names"
    )
    slots: int = setting(0, "texts that are written at once; 0 is as many as the memory has room for")
    # who may ask
    api_keys: tuple[str, ...] = secret(
        (), "keys, comma-separated; with them, X-API-Key or Authorization: Bearer is required"
    )
    users: str = secret("", "name:password,name:password; a passlib hash may stand in a password's place")
    users_file: str = setting("", "a file with one name:password a line")
    jwt_secret: str = secret("", "what users' tokens are signed with, 32 bytes or more: openssl rand -hex 32")
    jwt_expire_minutes: int = setting(60, "how long a token lives")
    admin_key: str = secret("", "the key for POST /v1/admin/reload")
    random_key: bool = setting(False, "yes: where neither keys nor users are set, make a key for this run and print it")
    allow_open: bool = setting(False, "yes: answer without authentication on a public address")
    trusted_proxies: tuple[str, ...] = setting((), "addresses of reverse proxies whose X-Forwarded-For is believed")
    cors_origins: tuple[str, ...] = setting(
        (), "web pages that may call from a browser, such as https://example.org; * is all"
    )
    docs: bool = setting(False, "on: /docs and /openapi.json describe the API")
    # how much
    rate_limit_rpm: int = setting(60, "requests a minute of one caller; 0 is no limit")
    max_waiting: int = setting(64, "requests that may wait for a slot; more get 429")
    max_waiting_tokens: int = setting(65536, "tokens of their prompts; more get 429")
    max_new_tokens: int = setting(4096, "the most that one request may ask for")
    max_body_bytes: int = setting(2**20, "largest body of a request; a larger one gets 413")
    max_media_bytes: int = setting(
        2**24, "so much more for pictures and sounds, in base64, from known callers, where the model takes any"
    )
    body_timeout: float = setting(30.0, "seconds a body may take to arrive; a slower one gets 408")
    request_timeout: float = setting(600.0, "seconds after which a text is ended, waiting included")
    drain_seconds: float = setting(30.0, "seconds that running requests have to finish when the server is stopped")
    # sessions
    session_db: str = setting("sessions.db", "the SQLite file of the sessions")
    session_days: float = setting(30.0, "days after its last use that a session is deleted; 0 is never")
    session_turns: int = setting(100, "newest turns of a session that are kept")
    # what is told
    log_dir: str = setting("", "folder of the logs of training, which /training shows; empty is logs/ beside the toolkit")
    log_level: str = setting("INFO", "how much is logged", ("DEBUG", "INFO", "WARNING", "ERROR"))
    metrics_token: str = secret("", "what Prometheus sends as its bearer token to read /metrics from another machine")
    metrics_token_file: str = setting("", "a file that holds this token, in its place")
    metrics_port: int = setting(0, "serve /metrics on this port instead; 0 is the server's own")

    def __post_init__(self) -> None:
        """Refuses what cannot be served.

        Raises:
            UserError: naming the variable, its value and the mend; a secret is never repeated.
        """
        most = 10**9
        limits = {
            "port": (0, 65535), "slots": (0, 2**12), "jwt_expire_minutes": (1, 525_600), "rate_limit_rpm": (0, 10**6),
            "max_waiting": (0, most), "max_waiting_tokens": (1, most), "max_new_tokens": (1, most),
            "max_body_bytes": (1024, 2**30), "max_media_bytes": (0, 2**30), "body_timeout": (0.01, 86400), "request_timeout": (0.01, 86400),
            "drain_seconds": (0, 86400), "session_days": (0, 36500), "session_turns": (1, 10**6), "metrics_port": (0, 65535),
        }  # fmt: skip
        for name, (least, top) in limits.items():
            if not least <= getattr(self, name) <= top:
                raise UserError(f"{where(name)} is {getattr(self, name)}; it must be from {least} to {top}.")
        self.log_level = self.log_level.upper()
        if self.metrics_token_file:
            self.metrics_token = self.read_metrics_token()
        for item in dataclasses.fields(self):
            choices, value = item.metadata["choices"], getattr(self, item.name)
            if choices and value not in choices:
                offered = " or ".join(choice or "empty" for choice in choices)
                raise UserError(f"{where(item.name)} is {value!r}; it must be {offered}.")
        for number, key in enumerate((*self.api_keys, *filter(None, (self.admin_key, self.metrics_token))), 1):
            if not re.fullmatch(r"[!-~]+", key):
                raise UserError(
                    f"key {number} of LLM_API_KEYS, LLM_ADMIN_KEY and LLM_METRICS_TOKEN holds a space or a sign that no header carries: "
                    "use letters, digits and ASCII signs."
                )
        for origin in self.cors_origins:
            if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/]+", origin):
                raise UserError(f"LLM_CORS_ORIGINS has {origin!r}; write scheme and host, such as https://example.org.")
        for proxy in self.trusted_proxies:
            try:
                if proxy != "*":
                    ipaddress.ip_network(proxy)
            except ValueError as error:
                raise UserError(
                    f"LLM_TRUSTED_PROXIES has {proxy!r} ({error}); write an address or a network, such as 172.17.0.0/16."
                ) from error

    def read_metrics_token(self) -> str:
        """The token that stands in a file, which Prometheus can read as well.

        Raises:
            UserError: when there is no such file, it is empty, or there is a token beside it.
        """
        if self.metrics_token:
            raise UserError("LLM_METRICS_TOKEN and LLM_METRICS_TOKEN_FILE are both set: unset one of them.")
        try:
            token = Path(self.metrics_token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise UserError(f"LLM_METRICS_TOKEN_FILE is {self.metrics_token_file!r}, which cannot be read ({reason}).") from error
        if not token:
            raise UserError(f"LLM_METRICS_TOKEN_FILE is {self.metrics_token_file!r}, which is empty: openssl rand -hex 32 makes a token.")
        return token

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **flags: Any) -> ServeConfig:
        """Settings from the environment, and over them what was typed. An empty variable is as good as none.

        Raises:
            UserError: naming the variable; also for one that is nearly called like one of ours.
        """
        types, values = get_type_hints(cls), {}
        ours = [item.name for item in dataclasses.fields(cls) if item.name not in ("host", "port")]
        for name in ours:
            if text := environ.get(variable(name), "").strip():
                values[name] = parse(variable(name), text, types[name])
        for name in environ:
            near = difflib.get_close_matches(name, map(variable, ours), 1, 0.9)
            if name.startswith("LLM_") and near and near[0] != name:
                raise UserError(f"{name} is no variable of the server; did you mean {near[0]}?")
        return cls(**{**values, **flags})


def variable(name: str) -> str:
    """The environment variable of a field."""
    return f"LLM_{name.upper()}"


def where(name: str) -> str:
    """How a person sets a field of the server."""
    return f"--{name}" if name in ("host", "port") else variable(name)


def parse(name: str, text: str, kind: Any) -> Any:
    """A variable's text as a value of the field's type.

    Raises:
        UserError: naming the variable, its text and what it must be.
    """
    if kind is bool:
        yes, no = ("yes", "on", "true", "1"), ("no", "off", "false", "0")
        if text.lower() not in yes + no:
            raise UserError(f"{name} is {text!r}; it must be yes or no.")
        return text.lower() in yes
    if kind == tuple[str, ...]:
        parts = tuple(part.strip() for part in text.split(",") if part.strip())
        if not parts:
            raise UserError(f"{name} is set, but there is nothing between its commas: fill it, or unset it.")
        return parts
    try:
        return kind(text)
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} is {text!r}; it must be {words}.") from None


def check_limits(config: Any, limits: dict[str, tuple[float, float]]) -> None:
    """Refuses numbers that nothing can be built or run with; NaN lies between no limits."""
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        if not least <= value <= most:
            raise UserError(f"{name} is {value}; it must be from {least} to {most}: pass another --{name}.")


def seconds(text: str) -> float:
    """The length of a budget such as `90s`, `10m`, `1.5h`, or a plain number of seconds.

    Raises:
        UserError: if the text is no such length.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise UserError(f"time is {text!r}; write it as --time 90s, --time 10m or --time 2h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


SIZES = {  # what the classic and the modern preset of a size share
    "small": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 512, "batch_size": 16},
    "medium": {
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "block_size": 1024,
        "batch_size": 480,
        "max_iters": 20000,
        "learning_rate": 6e-4,
    },
    "large": {
        "n_layer": 24,
        "n_head": 16,
        "n_embd": 1024,
        "block_size": 1024,
        "batch_size": 512,
        "max_iters": 40000,
        "learning_rate": 3e-4,
    },
}
MODERN = {"architecture": "modern", "optimizer": "auto", "schedule": "wsd"}

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "architecture": "modern", "n_layer": 2, "n_head": 2, "n_embd": 128, "block_size": 256,
        "data": "stories", "tokenizer": "bpe", "vocab_size": 2048, "n_stories": 30000, "batch_size": 8, "time": "115s",
        "embedding_std": 0.25, "optimizer": "muon", "learning_rate": 1e-2, "muon_learning_rate": 0.02,
        "schedule": "linear", "final_rate": 0.0, "weight_decay": 0.01,
    },
    "small": SIZES["small"],
    "medium": SIZES["medium"],
    "large": SIZES["large"],
    "shakespeare": {
        "architecture": "modern", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64,
        "tokenizer": "char", "batch_size": 12, "max_iters": 2000, "eval_interval": 500,
        "optimizer": "muon", "learning_rate": 1e-2, "schedule": "linear", "final_rate": 0.0, "weight_decay": 0.0,
    },
    "multimodal": {
        "modalities": "image,audio", "data": "multimodal",
        "architecture": "modern", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 160,
        "tokenizer": "bpe", "vocab_size": 2048, "n_stories": 8000, "batch_size": 64, "time": "10m",
        "embedding_std": 0.25, "optimizer": "muon", "learning_rate": 3e-3, "muon_learning_rate": 0.02,
        "schedule": "linear", "final_rate": 0.0, "weight_decay": 0.01,
    },
    **{f"{name}-modern": {**size, **MODERN} for name, size in SIZES.items()},
}  # fmt: skip


def add_flags(parser: argparse.ArgumentParser, *configs: type) -> None:
    """Adds a flag for each field of some dataclasses; one that is not given leaves no trace in the result."""
    for config in configs:
        group = parser.add_argument_group(re.sub(r"(?<!^)(?=[A-Z])", " ", config.__name__).lower())
        types = get_type_hints(config)
        for item in dataclasses.fields(config):
            names = list(dict.fromkeys((f"--{item.name}", f"--{item.name.replace('_', '-')}")))
            shown = ", ".join(item.default) if isinstance(item.default, tuple) else item.default
            text = item.metadata["help"] + (f" [{shown}]" if shown not in ("", None) else "")
            kind = types[item.name]
            how: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
            if kind is bool:
                how["action"] = argparse.BooleanOptionalAction
            elif kind == tuple[str, ...]:
                how |= {"action": "append", "metavar": item.name.upper()}
            else:
                how |= {"type": kind, "metavar": item.name.upper() if kind is str else kind.__name__.upper()}
                if item.metadata["choices"]:
                    how |= {"choices": item.metadata["choices"], "metavar": None}
            group.add_argument(*names, **how)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors offer the flag that was probably meant."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> None:
        flags = [name for action in self._actions for name in action.option_strings]
        for word in re.findall(r"(?<=unrecognized arguments: )--?[\w-]+", message):
            near = difflib.get_close_matches(word, flags, 1, 0.6)
            message += f"; did you mean {near[0]}?" if near else "; --help lists the flags."
        self.exit(2, f"{self.prog}: {message}\n")


def settings(given: dict[str, Any]) -> dict[str, Any]:
    """A preset's values, and over them what was typed. Steps that were typed go before a preset's time as well.

    Raises:
        UserError: for a preset that does not exist.
    """
    name = given.get("preset", "")
    if name and name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1, 0.5)
        raise UserError(
            f"there is no preset {name!r}{f'; did you mean {near[0]}?' if near else ''} --list_presets shows them: {', '.join(PRESETS)}."
        )
    counted = {"time": ""} if "max_iters" in given else {}
    return {**PRESETS.get(name, {}), **counted, **given}


def take(config: type, values: dict[str, Any]) -> Any:
    """A dataclass from those of the values that are its fields."""
    names = {item.name for item in dataclasses.fields(config)}
    return config(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if name in names}
    )
