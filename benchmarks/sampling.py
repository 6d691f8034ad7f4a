"""How long the choice of the next token takes, of one text and of sixteen at once, beside transformers' logits processors.

    python -m benchmarks.sampling [--runs 30]

GPT-2's vocabulary; logits as peaked as a trained model's, and as flat as a new one's, for which a nucleus holds half of the vocabulary.
Both sides get the same settings for each row and take turns. Theirs draws with torch's own numbers, ours with one for each text.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import finish, median, table
from config import SamplingConfig
from inference.sampling import Sampler
from training import process

VOCABULARY = 50257
SPREAD = {"peaked": 7.0, "flat": 3.0}  # the standard deviation of the logits
WAYS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "top-p 0.95": {"temperature": 0.8, "top_p": 0.95},
    "both": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    args = parser.parse_args()
    process.tune_process(torch.device("cpu"))
    found, rows = {}, []
    for batch in (1, 16):
        for shape, spread in SPREAD.items():
            logits = spread * torch.randn(batch, VOCABULARY, generator=torch.Generator().manual_seed(0))
            for way, values in WAYS.items():
                sides = {"ours": ours(batch, values), "transformers": theirs(values)}
                times = {side: [] for side in sides}
                for run in range(args.runs + 3):
                    for side, choose in sides.items():
                        t0 = time.perf_counter()
                        choose(logits)
                        if run >= 3:  # the first ones warm up
                            times[side].append(1000 * (time.perf_counter() - t0))
                mine, peer = (median(times[side]) for side in sides)
                found[f"{batch} {shape} {way}"] = {"ours": mine, "transformers": peer}
                rows.append([f"{batch}, {shape}", way, f"{mine:.2f} ms", f"{peer:.2f} ms", f"{peer / mine:.1f}×"])
    table(["texts, logits", "how", "ours", "transformers", "as fast"], rows)
    finish("sampling", milliseconds=found)


def ours(batch: int, values: dict) -> Callable[[Tensor], Tensor]:
    sampler = Sampler([SamplingConfig(**values)] * batch)
    return torch.inference_mode()(lambda logits: sampler.choose(logits, [0.5] * batch, [[]] * batch, [0] * batch))


def theirs(values: dict) -> Callable[[Tensor], Tensor]:
    """As `generate` puts them together: temperature, top-k, top-p, min-p, then a draw."""
    from transformers.generation import logits_process as parts

    if values["temperature"] == 0:
        return torch.inference_mode()(lambda logits: logits.argmax(-1))
    chain = parts.LogitsProcessorList([parts.TemperatureLogitsWarper(values["temperature"])])
    chain += [parts.TopKLogitsWarper(values["top_k"])] if "top_k" in values else []
    chain += [parts.TopPLogitsWarper(values["top_p"])] if "top_p" in values else []
    chain += [parts.MinPLogitsWarper(values["min_p"])] if "min_p" in values else []
    return torch.inference_mode()(lambda logits: torch.multinomial(chain(None, logits).softmax(-1), 1))


if __name__ == "__main__":
    main()
