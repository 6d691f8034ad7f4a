"""What several test files share: the real data where there is some, a home of its own for every test, tiny models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

if os.environ.get("PYTEST_XDIST_WORKER"):  # one core for each worker; the processes that tests start inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

import data
import sources
import tokenizer as tokenizers
from config import ModelConfig, TrainConfig
from model import GPT

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data."""
    folder = os.environ.get("LLM_TEST_DATA")
    if not folder:
        pytest.skip("LLM_TEST_DATA names no folder of real data")
    return Path(folder)


@pytest.fixture(scope="session")
def gpt2_folder(shared_data, tmp_path_factory) -> Path:
    """A copy of GPT-2's vocabulary for TIKTOKEN_CACHE_DIR: tiktoken deletes files that it dislikes."""
    return Path(shutil.copytree(shared_data / "gpt2-bpe", tmp_path_factory.mktemp("tiktoken") / "gpt2-bpe"))


@pytest.fixture(scope="session")
def gpt2(gpt2_folder) -> tokenizers.BPETokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_folder))
        return tokenizers.load_gpt2()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty data folder in place of the checkout's."""
    folder = tmp_path / "data"
    for module in (data, sources):
        monkeypatch.setattr(module, "DATA", folder)
    return folder


@pytest.fixture(scope="session")
def source_of() -> Callable[..., sources.Source]:
    """Makes a corpus of documents: `source_of("one", "two", val=["three"])`."""

    def make(*documents: str, val: Iterable[str] = (), key: str = "") -> sources.Source:
        held = list(val)
        return sources.Source(
            name="made up",
            key=key or repr((documents, held)),
            n_bytes=sum(len(text.encode(errors="replace")) for text in documents),
            train=lambda: ((text, True) for text in documents),
            val=(lambda: ((text, True) for text in held)) if held else None,
        )

    return make


@pytest.fixture
def corpus_of(home, source_of) -> Callable[..., data.Corpus]:
    """Tokenises documents into the test's own folder: bytes, unless a setting says otherwise."""

    def make(*documents: str, val: Iterable[str] = (), **values) -> data.Corpus:
        config = TrainConfig(**{"tokenizer": "byte", **values})
        return data.prepare(config, source_of(*documents, val=val), 0, progress=False)

    return make


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., GPT]:
    """Makes a tiny model whose logits differ a good deal from token to token."""

    def make(vocab_size: int = 257, architecture: str = "modern", seed: int = 0, **shape) -> GPT:
        torch.manual_seed(seed)
        sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32}
        model = GPT(ModelConfig(architecture=architecture, vocab_size=vocab_size, **{**sizes, **shape}))
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
        return model.eval()

    return make


@pytest.fixture(autouse=True)
def one_thread():
    """Tests measure behaviour, not speed, and share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def denormals():
    """A run in this process turns denormals off for its speed; the next test has them back."""
    yield
    torch.set_flush_denormal(False)
