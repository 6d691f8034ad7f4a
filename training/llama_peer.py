"""llama.cpp as the other opinion on a GGUF file: in a process of its own, since it is C++ and may crash.

`ask` is for everybody; the rest runs in that process: `python -m training.llama_peer FILE ANSWER < request`. It needs neither torch
nor our model.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from config import ROOT, UserError

REFUSED = 42  # exit code: llama.cpp does not take the file. Those below 4 are also Python's own, and those of an abort on Windows
PATIENCE = 600  # seconds


class NoAnswer(Exception):
    """llama.cpp is not there, or it broke down: that says nothing of the file."""


@dataclass
class Answer:
    """What llama.cpp makes of a file.

    Attributes:
        version: of llama-cpp-python.
        ids: the tokens of each text that was asked about, begun as llama.cpp begins a prompt.
        again: the bytes that those tokens are written as.
        read: each prompt, and what was written after it, as ids.
        logits: (tokens read, vocabulary) float32 of each.
    """

    version: str
    ids: list[list[int]]
    again: list[bytes]
    read: list[list[int]]
    logits: list[np.ndarray]


def ask(file: Path, texts: list[str], prompts: list[list[int]], steps: int) -> Answer:
    """Lets llama.cpp cut some texts into tokens, and go on from some prompts with the likeliest token, `steps` times.

    Raises:
        NoAnswer: when it is not installed, crashes, or takes too long.
        UserError: when it refuses the file.
    """
    if not importlib.util.find_spec("llama_cpp"):
        raise NoAnswer("is not installed. To compare: pip install llama-cpp-python (which compiles for a quarter of an hour)")
    request = json.dumps({"texts": texts, "prompts": prompts, "steps": steps})
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.npz"
        call = [sys.executable, "-m", "training.llama_peer", str(file.resolve()), str(answer)]
        try:
            done = subprocess.run(
                call, cwd=ROOT, input=request, capture_output=True, text=True, errors="replace", timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"did not finish within {PATIENCE} seconds") from None
        if done.returncode == REFUSED:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it does not say why"]
            told = [line for line in said if "error" in line.lower()] or said
            raise UserError(
                f"llama.cpp does not take the file ({told[-1].strip()}): nothing was written. "
                "Update llama-cpp-python, or report this checkpoint."
            )
        if done.returncode:
            last = (done.stderr.splitlines() or [""])[-1]
            raise NoAnswer(f"broke down ({signal.Signals(-done.returncode).name if done.returncode < 0 else last})")
        with np.load(answer) as arrays:
            logits = [arrays[f"logits{n}"] for n in range(len(prompts))]
    told = json.loads(done.stdout.splitlines()[-1])
    return Answer(told["version"], told["ids"], [bytes.fromhex(text) for text in told["again"]], told["read"], logits)


# ---- in the other process


def main() -> None:
    file, answer = sys.argv[1:]
    request = json.load(sys.stdin)
    import llama_cpp

    plain_buffers(llama_cpp.llama_cpp)
    size = max(map(len, request["prompts"])) + request["steps"]
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32, "n_gpu_layers": 0}
    try:
        model = llama_cpp.Llama(file, n_ctx=size, n_batch=size, n_ubatch=size, logits_all=True, **exact)
    except ValueError as error:  # what llama.cpp says of it is on stderr
        sys.exit(REFUSED if "load model" in str(error) else f"{error}")
    ids = [model.tokenize(text.encode(), add_bos=True, special=False) for text in request["texts"]]  # if the file says so
    again = [b"".join(piece(llama_cpp, model, i) for i in row).hex() for row in ids]
    read = [go_on(model, prompt, request["steps"]) for prompt in request["prompts"]]
    np.savez(answer, **{f"logits{n}": logits for n, (_, logits) in enumerate(read)})
    told = {"version": llama_cpp.__version__, "ids": ids, "again": again, "read": [ids for ids, _ in read]}
    print(json.dumps(told))


def plain_buffers(library: Any) -> None:
    """Has the weights read as they lie in the file. By default they are packed anew for this processor's matrix units, and
    one build of llama.cpp crashes there; what is asked here is whether the file is right."""
    usual = library.llama_model_default_params

    def plain() -> Any:
        params = usual()
        params.use_extra_bufts = False
        return params

    library.llama_model_default_params = plain


def piece(library: Any, model: Any, i: int) -> bytes:
    """A token as programs write it. (llama.cpp's function for whole texts drops the blank before a comma.)"""
    buffer = ctypes.create_string_buffer(1024)
    size = library.llama_token_to_piece(library.llama_model_get_vocab(model.model), i, buffer, len(buffer), 0, False)
    return buffer.raw[: max(0, size)]


def go_on(model: Any, prompt: list[int], steps: int) -> tuple[list[int], np.ndarray]:
    """The prompt with the likeliest tokens after it, and the logits at each of them."""
    model.reset()
    model.eval(prompt)
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model.scores[len(ids) - 1].argmax()))
        model.eval(ids[-1:])
    return ids, model.scores[: len(ids)].copy()


if __name__ == "__main__":
    main()
