"""Optimizers against slow and obvious references; schedules at points where their value is known."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from config import ModelConfig, TrainConfig
from model import GPT, Linear
from training import optim
from training.optim import Average, Muon, make_optimizers, muon_share, orthogonal, rate

ROOT = Path(__file__).resolve().parent.parent
TINY = ModelConfig(architecture="modern", vocab_size=64, n_layer=2, n_head=2, n_embd=16, block_size=8)


# ---- the rate


def schedule(name: str, **changes) -> TrainConfig:
    return TrainConfig(schedule=name, **{"warmup": 0.1, "decay": 0.25, "final_rate": 0.2, **changes})


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_the_rate_rises_evenly_to_its_peak_and_ends_at_the_final_rate(name):
    config = schedule(name)
    assert rate(0.05, config) == pytest.approx(0.5)
    assert rate(0.1, config) == pytest.approx(1)
    assert rate(1.0, config) == pytest.approx(0.2)
    assert rate(0.0, config) > 0  # the first step is not wasted


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("cosine", 0.55, 0.2 + 0.8 * 0.5),
        ("cosine", 0.325, 0.2 + 0.8 * (0.5 + 0.5 * math.cos(math.pi / 4))),
        ("linear", 0.55, 0.2 + 0.8 * 0.5),
        ("linear", 0.775, 0.2 + 0.8 * 0.25),
        ("wsd", 0.7, 1.0),
        ("wsd", 0.875, 0.2 + 0.8 * 0.5),
    ],
)
def test_shapes_at_known_points(name, at, value):
    assert rate(at, schedule(name)) == pytest.approx(value)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_after_the_warm_up_the_rate_never_rises(name):
    rates = [rate(0.1 + 0.9 * k / 500, schedule(name)) for k in range(501)]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("extreme", [{"warmup": 0.0}, {"warmup": 1.0}, {"decay": 0.0}, {"decay": 1.0}])
def test_extreme_shares_stay_between_nothing_and_the_peak(name, extreme):
    assert all(0 <= rate(k / 50, schedule(name, **extreme)) <= 1 for k in range(51))


# ---- who is trained how


def groups(kind: str, config: TrainConfig) -> dict[str, dict]:
    """Each parameter's name with its group and optimizer."""
    model = GPT(TINY)
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: {**group, "by": type(optimizer).__name__}
        for optimizer in make_optimizers(model, config, kind, "float32")
        for group in optimizer.param_groups
        for param in group["params"]
    }


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_trained_once_and_only_matrices_decay(kind):
    found = groups(kind, TrainConfig(weight_decay=0.3))
    model = GPT(TINY)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, param in model.named_parameters():
        assert found[name]["weight_decay"] == (0.3 if param.ndim == 2 else 0.0), name


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else():
    found = groups("muon", TrainConfig())
    by = {name for name, group in found.items() if group["by"] == "Muon"}
    assert by == {name for name in found if name.startswith("blocks.") and "norm" not in name}


def test_set_rate_scales_each_group_from_its_own_peak():
    optimizers = make_optimizers(GPT(TINY), TrainConfig(learning_rate=0.1, muon_learning_rate=0.5), "muon", "float32")
    for _ in range(2):
        optim.set_rate(optimizers, 0.5)
    rates = {type(o).__name__: o.param_groups[0]["lr"] for o in optimizers}
    assert rates == {"AdamW": 0.05, "Muon": 0.25}


# ---- Muon


def slow_orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Jordan's iteration for one matrix, as it is written in his post, in double precision."""
    x = matrix.double()
    x = x / (x.norm() + 1e-7)
    turned = x.size(0) > x.size(1)
    x = x.T if turned else x
    for _ in range(5):
        a = x @ x.T
        b = -4.7750 * a + 2.0315 * a @ a
        x = 3.4445 * x + b @ x
    return x.T if turned else x


class SlowMuon:
    """One matrix at a time: Nesterov momentum, orthogonalised, scaled."""

    def __init__(self, matrices: list[torch.Tensor], lr: float, momentum: float, weight_decay: float):
        self.matrices, self.lr, self.momentum, self.decay = matrices, lr, momentum, weight_decay
        self.moving = [torch.zeros_like(matrix) for matrix in matrices]

    def step(self, grads: list[torch.Tensor]) -> None:
        for k, grad in enumerate(grads):
            self.moving[k] = self.momentum * self.moving[k] + (1 - self.momentum) * grad
            update = slow_orthogonal((1 - self.momentum) * grad + self.momentum * self.moving[k])
            rows, columns = grad.shape
            scale = self.lr * max(1, rows / columns) ** 0.5
            self.matrices[k] = self.matrices[k] * (1 - self.lr * self.decay) - scale * update.float()


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_is_torchs(fused):
    start, found = torch.randn(3, 4), []
    for kind in (torch.optim.AdamW, optim.AdamW):
        torch.manual_seed(0)
        param = nn.Parameter(start.clone())
        optimizer = kind([param], lr=0.1, fused=fused)
        for _ in range(3):
            param.grad = torch.randn(3, 4)
            optimizer.step()
        further = kind([param], lr=1.0, fused=fused)
        further.load_state_dict(optimizer.state_dict())
        further.step()
        further.zero_grad()
        assert param.grad is None
        assert torch.is_grad_enabled()
        found.append(param.detach())
    assert torch.equal(*found)


def test_a_step_does_not_import_torchs_compiler():
    code = """
import sys, torch
from config import ModelConfig, TrainConfig
from model import GPT
from training.optim import make_optimizers
config = TrainConfig(learning_rate=0.1)
model = GPT(ModelConfig(architecture="modern", vocab_size=64, n_layer=1, n_head=2, n_embd=16, block_size=8))
idx = torch.zeros(1, 8, dtype=torch.long)
for optimizer in make_optimizers(model, config, "muon", "float32"):
    model(idx, idx).backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_muon_follows_a_slow_reference():
    torch.manual_seed(0)
    shapes = [(8, 8), (24, 8), (8, 32), (8, 8)]
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    slow = SlowMuon([param.detach().clone() for param in params], 0.02, 0.95, 0.1)
    fast = Muon(params, lr=0.02, momentum=0.95, weight_decay=0.1)
    for _ in range(5):
        grads = [torch.randn(shape) for shape in shapes]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        fast.step()
        slow.step(grads)
    for param, want in zip(params, slow.matrices, strict=True):
        torch.testing.assert_close(param.detach(), want, atol=1e-5, rtol=1e-4)


def test_parts_are_treated_one_by_one():
    torch.manual_seed(0)
    together = Linear(8, 8, 4, 4, bias=False)
    apart = [nn.Parameter(part.detach().clone()) for part in together.weight.split((8, 4, 4))]
    grad = torch.randn(16, 8)
    together.weight.grad = grad.clone()
    for param, part in zip(apart, grad.split((8, 4, 4)), strict=True):
        param.grad = part.clone()
    Muon([together.weight], lr=0.1).step()
    Muon(apart, lr=0.1).step()
    torch.testing.assert_close(together.weight.detach(), torch.cat([param.detach() for param in apart]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 64), (2, 64, 16)])
def test_orthogonal_brings_singular_values_near_one(shape, dtype):
    """A matrix of this size has no singular value below a thousandth of its norm, with chance above 99.9 %."""
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape), dtype))
    large = values > 0.3 if shape[1] == shape[2] else values > 0  # a square one may have a singular value near 0
    assert ((values[large] - 1).abs() < 0.35).all()
    assert large.float().mean() > 0.9


def test_a_matrix_without_gradient_stays():
    param = nn.Parameter(torch.ones(4, 4))
    Muon([param], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(param.detach(), torch.ones(4, 4))


def test_muon_share_falls_with_the_batch_and_matches_a_count():
    shares = [muon_share(TINY, tokens) for tokens in (128, 1024, 8192, 2**20)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(8 * shares[1])
    # one square d x d matrix costs 5 * 6 d^3 a step against 6 d^2 tokens of training: 5 d / tokens
    d, tokens = 64, 4096
    config = ModelConfig(vocab_size=8, n_layer=1, n_head=1, n_embd=d, block_size=8)
    assert 0.6 < muon_share(config, tokens) / (5 * d / tokens) < 1.0


# ---- the moving average


def test_the_average_has_a_known_answer():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        average, want = Average(model, 0.5), 0.0
        for step, value in enumerate((1.0, 5.0, -3.0, 2.0, 2.0, 8.0, 1.0, 0.0, 4.0, 9.0), 1):
            model.weight.fill_(value)
            average.update()
            decay = min(0.5, (1 + step) / (10 + step))
            want = decay * want + (1 - decay) * value
    assert average.shadow[0].item() == pytest.approx(want, rel=1e-6)


def test_swapping_twice_changes_nothing():
    model = nn.Linear(3, 3)
    average = Average(model, 0.9)
    with torch.no_grad():
        model.weight.add_(1)
    weight, shadow = model.weight.detach().clone(), average.shadow[0].clone()
    average.swap()
    assert torch.equal(model.weight, shadow) and torch.equal(average.shadow[0], weight)
    average.swap()
    assert torch.equal(model.weight, weight) and torch.equal(average.shadow[0], shadow)
