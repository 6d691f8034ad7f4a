"""The GPT. If you read one file, read this one: everything else feeds it, trains it, or asks it for text.

Two architectures share the class. `classic` is GPT-2's block: learned positions, LayerNorm, GELU, biases.
`modern` is Qwen3's dense block: rotary positions, RMSNorm, SwiGLU, normalised queries and keys, and several
query heads for each key head. Both keep the weights in a form that transformers can load (`training/export.py`).

Shapes: B sequences, T tokens, S tokens seen so far (S = T without a cache), C = n_embd, V = vocab_size; Hq heads for queries and
Hk for keys and values, of D = head_dim each (H where either may stand).
"""

from __future__ import annotations

import contextlib
import functools
import math
import platform
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import ModelConfig, UserError

IGNORE = -100  # a target that is not scored
NONE = -1  # in place of the tokens before the first
NGRAM_SCALE = 0.1  # of the embeddings of runs, which AdamW moves as fast as those of tokens, though each comes more rarely
HASH_FACTOR, HASH_PRIME = 1_000_003, 2**31 - 1
PAD_TO = 64  # the vocabulary's rows are padded to a multiple of this: matrix units like round sizes


class KVCache:
    """The keys and values of what was read so far, so that the next token costs one token's work.

    `k` and `v` hold (n_layer, B, n_kv_head, max_len, D), `ids` the tokens, (B, max_len); `length` counts them. The model asks a cache for no more
    than the methods below, `length` and the dtype of `k`; `inference/kv_cache.py` has another one, in which every row has a length of its own.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (config.n_layer, batch, config.n_kv_head, max_len or config.block_size, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.ids = torch.zeros(batch, shape[3], device=device, dtype=torch.long)
        self.length = 0

    def places(self, T: int) -> slice | Tensor:
        """The positions of the next T tokens: a slice, or a tensor (B, T)."""
        return slice(self.length, self.length + T)

    def mask(self, T: int) -> Tensor | None:
        """What each of the next T tokens may look at, or None where plain causal attention says it."""
        return causal_mask(self.length, T, self.k.device) if self.length and T > 1 else None

    def follow(self, idx: Tensor, before: int) -> Tensor:
        """Writes the next ids (B, T), returns them behind as many of those before them, (B, before + T), NONE where a text begins."""
        end = self.length + idx.size(1)
        self.ids[:, self.length : end] = idx
        first = max(0, self.length - before)
        return F.pad(self.ids[:, first:end], (before - (self.length - first), 0), value=NONE)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one layer's new keys and values (B, H, T, D), returns all of that layer's so far (B, H, S, D)."""
        end = self.length + k.size(2)
        self.k[layer, :, :, self.length : end] = k
        self.v[layer, :, :, self.length : end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def advance(self, T: int) -> None:
        """Counts T more tokens, once every layer has written theirs."""
        self.length += T


class Linear(nn.Linear):
    """A matrix that may be several side by side: `parts` are the rows of each, which Muon treats one by one."""

    def __init__(self, n_in: int, *parts: int, bias: bool):
        super().__init__(n_in, sum(parts), bias=bias)
        self.weight.parts = parts


class RMSNorm(nn.RMSNorm):
    """Scales each vector to length sqrt(C) (Zhang & Sennrich 2019), in the dtype it comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) scaled by its own size and by a weight, of shape (C,) or of more of x's last dimensions."""
    if torch.is_grad_enabled() and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return RMSNormOnCPU.apply(x, weight, eps)
    if weight.ndim == 1:
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)  # one kernel on a GPU
    return F.rms_norm(x, x.shape[-1:], eps=eps) * weight.to(x.dtype)


class RMSNormOnCPU(torch.autograd.Function):
    """`rms_norm` with a gradient by hand, for training on a CPU, where torch makes it of many small steps and its gradient of more.

    With r = 1 / sqrt(mean(x²) + eps) and u = x r the output is w u, the gradient of x is r (w g - u mean(u w g)), and that of w is the
    sum of g u over all vectors.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        r = length.square_().div_(x.size(-1)).add_(eps).rsqrt_()  # (..., 1), in float32 always
        u = (x * r).to(x.dtype)
        ctx.save_for_backward(u, r, weight)
        return u * weight.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, r, weight = ctx.saved_tensors
        grad_u = grad * u
        grad_weight = grad_u.sum(tuple(range(grad_u.ndim - weight.ndim)), dtype=weight.dtype)  # the shape of the weight
        minus_mean = (grad_u * weight.to(u.dtype)).sum(-1, keepdim=True).div_(-u.size(-1))  # (..., 1)
        return torch.addcmul(grad * weight.to(u.dtype), u, minus_mean).mul_(r), grad_weight, None


class Attention(nn.Module):
    """Every token looks back at the tokens before it (Vaswani et al. 2017, section 3.2; heads in groups: Ainslie et al. 2023)."""

    causal = True  # an encoder's tokens look ahead as well

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.dropout = layer, config.dropout
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        classic = config.architecture == "classic"
        rows = (self.n_head * self.head_dim, self.n_kv_head * self.head_dim, self.n_kv_head * self.head_dim)
        self.qkv = Linear(config.n_embd, *rows, bias=classic)
        self.proj = Linear(self.n_head * self.head_dim, config.n_embd, bias=classic)
        if not classic:
            self.q_norm = RMSNorm(self.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.norm_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        B, T, _ = x.shape
        n_qk = self.n_head + self.n_kv_head
        heads = self.qkv(x).view(B, T, n_qk + self.n_kv_head, self.head_dim)  # (B, T, Hq + 2 Hk, D)
        exact = cache is None and slow_in_bfloat16(heads)
        if exact:
            heads = heads.float()
        qk, v = heads.split((n_qk, self.n_kv_head), dim=2)  # (B, T, Hq + Hk, D), (B, T, Hk, D)
        if rotary is not None:
            qk = rotate(self.norm(qk), *rotary)
        qk, v = qk.transpose(1, 2), v.transpose(1, 2)  # (B, Hq + Hk, T, D), (B, Hk, T, D)
        q, k = qk.split((self.n_head, self.n_kv_head), dim=1)  # (B, Hq, T, D), (B, Hk, T, D)
        if cache is not None:
            k, v = cache.extend(self.layer, k.to(cache.k.dtype), v.to(cache.v.dtype))  # (B, Hk, S, D)
            q = q.to(cache.k.dtype)
        how = {
            "attn_mask": mask, "dropout_p": self.dropout if self.training else 0.0, "enable_gqa": self.n_kv_head != self.n_head,
            # One token may look at the whole cache; torch's is_causal would let it see the first place only.
            "is_causal": self.causal and mask is None and T > 1,
        }  # fmt: skip
        with torch.autocast(q.device.type, enabled=False) if exact else contextlib.nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, **how)  # (B, Hq, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, -1).to(x.dtype))  # (B, T, C)

    def norm(self, qk: Tensor) -> Tensor:
        """Queries and keys, each brought to its norm (Henry et al. 2020), at one go: small models wait for calls, not for sums."""
        scale = torch.cat((self.q_norm.weight.expand(self.n_head, -1), self.k_norm.weight.expand(self.n_kv_head, -1)))
        return rms_norm(qk, scale, self.q_norm.eps)  # (B, T, Hq + Hk, D)


class MLP(nn.Module):
    """GPT-2's: widen, GELU, narrow."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = Linear(config.n_embd, config.n_inner, bias=True)
        self.down = Linear(config.n_inner, config.n_embd, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """Qwen3's: one half of the hidden layer gates the other (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = Linear(config.n_embd, config.n_inner, config.n_inner, bias=False)
        self.down = Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention, then an MLP, each added onto the residual stream after a norm (pre-norm)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        norm, mlp = (nn.LayerNorm, MLP) if config.architecture == "classic" else (RMSNorm, SwiGLU)
        self.norm1 = norm(config.n_embd, eps=config.norm_eps)
        self.attn = Attention(config, layer)
        self.norm2 = norm(config.n_embd, eps=config.norm_eps)
        self.mlp = mlp(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), rotary, mask, cache))
        return x + self.drop(self.mlp(self.norm2(x)))

    def output_projections(self) -> tuple[Linear, Linear]:
        """The two matrices that write to the residual stream."""
        return self.attn.proj, self.mlp.down


class GPT(nn.Module):
    """A decoder-only transformer over token ids.

    `model(idx)` gives logits, `model(idx, targets)` the mean loss in nats per token, which is all a train loop needs.
    """

    kind = "gpt"  # what a checkpoint calls it; see `build`

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        rows = -(-config.vocab_size // PAD_TO) * PAD_TO
        self.wte = nn.Embedding(rows, config.n_embd)
        self.head = self.wte if config.tied_head else nn.Linear(config.n_embd, rows, bias=False)
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.architecture == "classic" else None
        self.ngrams = nn.Embedding(config.ngram_rows, config.n_embd) if config.ngrams else None
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = (nn.LayerNorm if self.wpe else RMSNorm)(config.n_embd, eps=config.norm_eps)
        self.checkpoint_activations = False
        self.trunk = self.run_blocks  # what `torch.compile` replaces, for training
        if self.wpe is None:
            cos, sin = rotary_table(config)
            self.register_buffer("cos", cos, persistent=False)  # (block_size, 1, D / 2)
            self.register_buffer("sin", sin, persistent=False)
        self.register_state_dict_post_hook(trim_vocabulary)
        self.register_load_state_dict_pre_hook(pad_vocabulary)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """GPT-2's normal(0, 0.02). What writes to the residual stream starts small (classic) or at zero (modern),
        so that at first every block is the identity and the loss is near ln V (above it in a wide modern model: there
        the token just read has the logit `embedding_std` C).

        A larger `embedding_std` keeps words apart that stand in the same places, such as two names: they are pulled
        the same way at each step, and once they coincide no head can copy one of them rather than the other.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.embedding_std if module is self.wte else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.ngrams is not None:
            nn.init.zeros_(self.ngrams.weight)
        for block in self.blocks:
            for matrix in block.output_projections():
                nn.init.normal_(matrix.weight, std=0.02 / math.sqrt(2 * self.config.n_layer) if self.wpe else 0.0)
        with torch.no_grad():
            for matrix in {self.wte, self.head}:
                matrix.weight[self.config.vocab_size :] = 0

    def take_over(self, weights: dict[str, Tensor]) -> None:
        """Starts from the weights of another model of this shape."""
        self.load_state_dict(weights)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: KVCache | None = None, reduction: str = "mean"
    ) -> Tensor:
        """Token ids in, logits or a loss out.

        Args:
            idx: (B, T) ids. With a cache they follow what is in it.
            targets: (B, T) the ids to predict, `IGNORE` where there is nothing to score.
            cache: keys and values of the tokens before; it is extended in place.
            reduction: `mean` over the scored tokens, or `none` for the loss of each, (B, T).

        Returns:
            logits (B, T, V) without targets, else the loss in nats.

        Raises:
            ValueError: when the context is longer than block_size.
        """
        x = self.hidden(idx, cache)  # (B, T, C)
        V = self.config.vocab_size
        if targets is None:
            return self.logits(x)
        if reduction == "none":
            with torch.no_grad():
                return token_losses(x.flatten(0, 1), self.head.weight[:V], targets.flatten()).view_as(targets)
        scored = (targets != IGNORE).flatten()
        weights = scored / scored.sum().clamp(min=1)  # (B T)
        return head_loss(x.flatten(0, 1), self.head.weight, targets.flatten(), weights, V)

    def hidden(self, idx: Tensor, cache: KVCache | None = None, x: Tensor | None = None) -> Tensor:
        """The residual stream after the last norm, (B, T, C). `x` are embeddings in place of the ids' own, (B, T, C)."""
        start = cache.length if cache else 0
        if start + idx.size(1) > self.config.block_size:
            raise ValueError(f"{start + idx.size(1)} tokens do not fit the block_size of {self.config.block_size}")
        run = self.trunk if self.training else self.run_blocks
        x = run(self.drop_words(self.embed(idx, cache) if x is None else x), cache)
        if cache is not None:
            cache.advance(idx.size(1))
        return x

    def embed(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """The embeddings of tokens, and of the runs of tokens that end at each: (B, T) to (B, T, C).

        What a token means hangs on its neighbours. Looking that up costs next to nothing, where a block would have to be learned that
        finds it out (Huang et al. 2025, arXiv:2501.16975, section 3). There are too many runs for a row each, so those of one hash
        share one.
        """
        x = self.wte(idx)
        if self.ngrams is None:
            return x
        before = self.config.ngrams - 1
        ids = cache.follow(idx, before) if cache else F.pad(idx, (before, 0), value=NONE)  # (B, before + T)
        runs = run_hashes(ids, self.config.ngrams, self.config.ngram_rows)
        return x + NGRAM_SCALE * self.ngrams(torch.stack(tuple(runs))).sum(0)  # looked up at one go: so is their gradient

    def drop_words(self, x: Tensor) -> Tensor:
        """Word dropout (Bowman et al. 2016, arXiv:1511.06349, section 3.1): in training some tokens are zeroed, so that what follows is
        foreseen from the others too, and a text that comes again is learned by heart more slowly. (B, T, C) to (B, T, C).

        The first is always read: where all that a place can look at is nothing, it stays nothing through all blocks, and the norms
        make its gradient a thousand times larger at each.
        """
        if not (self.training and self.config.word_dropout):
            return x
        dropped = torch.rand(x.shape[:2], device=x.device) < self.config.word_dropout  # (B, T)
        dropped[:, 0] = False
        return x.masked_fill(dropped[..., None], 0)

    def logits(self, x: Tensor) -> Tensor:
        """The head alone: (..., C) to (..., V)."""
        return F.linear(x, self.head.weight[: self.config.vocab_size].to(x.dtype))

    def run_blocks(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Positions, the blocks, the last norm: (B, T, C) to (B, T, C)."""
        T = x.size(1)
        places = cache.places(T) if cache else slice(0, T)
        if self.wpe is not None:
            x, rotary = x + self.wpe.weight[places], None
        else:
            rotary = self.cos[places], self.sin[places]  # (T, 1, D / 2), or (B, T, 1, D / 2)
        x = self.drop(x)
        mask = cache.mask(T) if cache else None
        for block in self.blocks:
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, rotary, mask, use_reentrant=False)
            else:
                x = block(x, rotary, mask, cache)
        return self.norm(x)

    def parameter_count(self) -> int:
        """Trainable numbers, without the padding of the vocabulary."""
        total = sum(weight.numel() for weight in self.state_dict().values())
        if self.config.tied_head:
            total -= self.config.vocab_size * self.config.n_embd  # the state dict names that matrix twice
        return total


def run_hashes(ids: Tensor, longest: int, rows: int) -> Iterator[Tensor]:
    """For each length from 2 to `longest` a hash, 0 to `rows` - 1, of the runs that end at each token: (B, longest - 1 + T) to (B, T)."""
    run = ids.unfold(1, longest, 1).flip(-1) + 1  # (B, T, longest): a token, then those before it, 0 for NONE
    key = run[..., 0]
    for before in run[..., 1:].unbind(-1):
        key = (key * HASH_FACTOR + before) % HASH_PRIME
        yield (key * HASH_FACTOR >> 20) % rows


def flops_per_token(config: ModelConfig) -> float:
    """Arithmetic of training on one token, in multiply-adds times two: 6 N + 12 L C T (PaLM, appendix B).

    N counts the matrices that multiply: the blocks and the head, not the look-up tables. Causal attention does half of
    the 12 L C T, but peers count it whole, so that MFU compares.
    """
    kv = config.n_kv_head * config.head_dim
    q = config.n_head * config.head_dim
    mlp = (2 if config.architecture == "classic" else 3) * config.n_embd * config.n_inner
    matrices = config.n_layer * (config.n_embd * (2 * q + 2 * kv) + mlp) + config.n_embd * config.vocab_size
    return 3 * (2 * matrices + 4 * config.n_layer * q * config.block_size)


def rotary_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles (Su et al. 2021, arXiv:2104.09864), each (block_size, 1, D / 2).

    They are numbers even in a model on the meta device, which only has shapes: no checkpoint would bring them.
    """
    how = {"dtype": torch.float32, "device": "cpu"}
    frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, **how) / config.head_dim)
    angles = torch.outer(torch.arange(config.block_size, **how), frequencies)[:, None]  # (T, 1, D / 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[i], x[i + D/2]) by its position's angle: (B, T, H, D) to (B, T, H, D)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def slow_in_bfloat16(heads: Tensor) -> bool:
    """Whether torch attends faster in float32, heads (B, T, H, D): on a CPU, for short rows of narrow heads. Measured, forward and
    backward: on a Xeon with AMX 3.9 times as fast at T = 64 and D = 32, twice at 256 and 32, but half as fast at 512 and 64; on an AMD
    three times at 64 and 32, a tenth faster at 256 and 64, a tenth slower at 512 and 64."""
    return heads.device.type == "cpu" and heads.dtype == torch.bfloat16 and heads.size(1) * heads.size(3) < 20_000


def causal_mask(start: int, T: int, device: torch.device) -> Tensor:
    """True where token start + t may look at token s: (T, start + T)."""
    return torch.ones(T, start + T, dtype=torch.bool, device=device).tril(start)


def head_loss(x: Tensor, head: Tensor, targets: Tensor, weights: Tensor, vocab_size: int) -> Tensor:
    """The weighted sum of cross-entropies, in nats: x (N, C), head (padded V, C), targets (N), weights (N), 0 where a target is IGNORE."""
    return HeadLoss.apply(as_autocast(x), head, targets, weights, vocab_size)


def as_autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast multiplies in, for products that it does not reach: those into a given place, and oneDNN's. Not in
    float16, in which the gradients of single logits vanish before a scaler sees them."""
    kind = x.device.type
    lower = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
    return x.bfloat16() if lower else x


class HeadLoss(torch.autograd.Function):
    """Weighted sum of the cross-entropies of `x @ head.T`, some rows at a time, so that the (N, V) logits never stand in memory whole.

    The gradients are made during the forward pass, while a chunk's logits are at hand: nothing is stored for the backward
    but the two gradients, and the head is multiplied three times instead of four. What Liger's fused loss does on a GPU
    (arXiv:2410.10989, section 3.2), in plain torch.
    """

    @staticmethod
    def forward(ctx, x: Tensor, head: Tensor, targets: Tensor, weights: Tensor, vocab_size: int) -> Tensor:
        """As `head_loss`: products in x's dtype, sums and exponentials in float32."""
        weight = head[:vocab_size].to(x.dtype)
        total = torch.zeros((), device=x.device)
        needs_x, needs_head = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x) if needs_x else None
        grad_head = torch.zeros(head.shape, dtype=torch.float32, device=x.device) if needs_head else None
        for rows in chunks(len(x), vocab_size, x):
            logits = product(x[rows], weight)  # (n, V)
            share = weights[rows]
            index = targets[rows].clamp(min=0)[:, None]
            grad = logits.softmax(-1, dtype=torch.float32)
            log_sum = logits.amax(-1).float() - grad.amax(-1).log()  # the likeliest has exp(0) over the sum
            total += ((log_sum - logits.gather(1, index)[:, 0].float()) * share).sum()
            if not (needs_x or needs_head):
                continue
            grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
            grad *= share[:, None]  # (n, V): d loss / d logits
            grad = grad.to(x.dtype)
            if needs_x:
                with torch.autocast(x.device.type, enabled=False):  # float16 would do for the logits, but not for these
                    grad_x[rows] = product(grad, weight.T)
            if needs_head and x.dtype == torch.float32:
                grad_head[:vocab_size].addmm_(grad.T, x[rows])
            elif needs_head:
                grad_head[:vocab_size] += grad.T @ x[rows]
        ctx.save_for_backward(grad_x, grad_head)
        return total

    @staticmethod
    def backward(ctx, grad_loss: Tensor):
        grad_x, grad_head = ctx.saved_tensors
        return (
            None if grad_x is None else grad_x.mul_(grad_loss),
            None if grad_head is None else grad_head.mul_(grad_loss),
            None,
            None,
            None,
        )


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, C) and weight (V, C) to (n, V)."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled() and onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return x @ weight.T


@functools.cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than MKL, which torch takes and which is made for Intel's processors. On AMD's it does: the
    logits of 166 rows at 194 for 105 GFLOP/s. Told by the maker and not by trying, since a resumed run must compute the same bits."""
    maker = platform.processor()  # says so on Windows
    with contextlib.suppress(OSError):
        maker += Path("/proc/cpuinfo").read_text()
    return torch.backends.mkldnn.is_available() and "AuthenticAMD" in maker


def token_losses(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row: x (N, C), head (V, C), targets (N) to (N), in nats; 0 where the target is IGNORE."""
    x = as_autocast(x)
    head = head.to(x.dtype)
    losses = [
        F.cross_entropy(product(x[rows], head).float(), targets[rows], ignore_index=IGNORE, reduction="none")
        for rows in chunks(len(x), len(head), x)
    ]
    return torch.cat(losses)


def chunks(n: int, vocab_size: int, like: Tensor) -> list[slice]:
    """Cuts n rows so that a piece of logits, on the device and in the dtype of `like`, takes no more than `chunk_bytes`."""
    rows = max(64, chunk_bytes(like.device) // (vocab_size * like.itemsize))
    return [slice(start, start + rows) for start in range(0, n, rows)]


def chunk_bytes(device: torch.device) -> int:
    """32 MiB on a CPU, which its cache may hold; 128 MiB on a GPU."""
    return 2**25 if device.type == "cpu" else 2**27


def trim_vocabulary(model: GPT, state: dict, prefix: str, _metadata: dict) -> None:
    """Leaves the padding rows of the vocabulary out of a state dict: they are ours, not the file's."""
    for name in ("wte.weight", "head.weight"):
        if prefix + name in state:
            state[prefix + name] = state[prefix + name][: model.config.vocab_size]


def pad_vocabulary(model: GPT, state: dict, prefix: str, *_unused) -> None:
    """Gives the padding rows back before a state dict is loaded."""
    for name in ("wte.weight", "head.weight"):
        if prefix + name in state:
            rows = model.wte.weight.size(0) - state[prefix + name].size(0)
            state[prefix + name] = F.pad(state[prefix + name], (0, 0, 0, rows))


MODELS = {GPT.kind: (GPT, ModelConfig)}  # a checkpoint names its kind of model; other packages may enter theirs


def kind_of(config: ModelConfig) -> type[GPT]:
    """The class of the models with such a config."""
    return next(model for model, shape in MODELS.values() if shape is type(config))


def describe(model: GPT) -> dict:
    """What `build` needs to make this model again: plain values only."""
    return {"kind": model.kind, **asdict(model.config)}


def build(description: dict) -> nn.Module:
    """The model that `describe` described, with fresh weights. A setting that an older description does not name has its default.

    Raises:
        UserError: for a kind of model or a setting that this version does not know, and would have to leave out.
    """
    kind = description["kind"]
    if kind not in MODELS:
        raise UserError(f"the checkpoint holds a model of kind {kind!r}, unknown to this version of the toolkit: use the one that wrote it.")
    model, config = MODELS[kind]
    shape = {name: value for name, value in description.items() if name != "kind"}
    if unknown := sorted(set(shape) - {item.name for item in fields(config)}):
        raise UserError(
            f"the checkpoint's model has settings that are unknown to this version of the toolkit ({', '.join(unknown)}): "
            "use the one that wrote it, or a later one."
        )
    return model(config(**shape))
