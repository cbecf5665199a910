"""Several tiny Qwen2 models of equal shape at once in plain torch, with batched matrix products.

Legend: `S` models, `B` sequences of each, `T` positions (left-padded), `D` width, `V` vocabulary. On one core a tiny
model spends most of its time on call overhead, so S models together take far less than S times one.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import Qwen2Config, Qwen2ForCausalLM

Weights = dict[str, torch.Tensor]
Cache = list[tuple[torch.Tensor, torch.Tensor]]


def stacked(model: Qwen2ForCausalLM, copies: int) -> Weights:
    """Return the model's weights stacked `copies` times, (S, ...) each, with gradients."""
    named = dict(model.named_parameters())
    return {name: w.detach()[None].repeat(copies, *[1] * w.dim()).requires_grad_() for name, w in named.items()}


class Forward:
    """The forward pass of S models."""

    def __init__(self, config: Qwen2Config) -> None:
        self.heads, self.layers, self.eps = config.num_attention_heads, config.num_hidden_layers, config.rms_norm_eps
        size = config.hidden_size // self.heads
        theta = config.rope_parameters["rope_theta"]
        turns = torch.outer(
            torch.arange(config.max_position_embeddings).float(), theta ** (-torch.arange(0, size, 2) / size)
        )
        self.cos, self.sin = (torch.cat([turned, turned], -1) for turned in (turns.cos(), turns.sin()))

    def __call__(
        self, weights: Weights, ids_SBT: torch.Tensor, places_SBT: torch.Tensor, seen: torch.Tensor, cache: Cache | None
    ) -> tuple[torch.Tensor, Cache]:
        """Return the last hidden states (S, B, T, D) and keys and values (S * B, heads, U, size) of each layer.

        `seen` (S * B, 1, T, U) masks the U positions each token attends to, those of `cache` first.
        """
        copies, batch, length = ids_SBT.shape
        embedded = weights["model.embed_tokens.weight"]
        h = embedded[torch.arange(copies)[:, None, None], ids_SBT].reshape(copies, batch * length, -1)
        turn = [table[places_SBT].reshape(copies * batch, 1, length, -1) for table in (self.cos, self.sin)]
        new: Cache = []
        for i in range(self.layers):
            w = {name.split(f"layers.{i}.")[1]: v for name, v in weights.items() if f"layers.{i}." in name}
            x = self._norm(h, w["input_layernorm.weight"])
            q, k, v = (
                self._heads(
                    torch.baddbmm(w[f"self_attn.{n}_proj.bias"][:, None], x, w[f"self_attn.{n}_proj.weight"].mT),
                    batch,
                    length,
                )
                for n in "qkv"
            )
            q, k = (a * turn[0] + _half_turned(a) * turn[1] for a in (q, k))
            if cache is not None:
                k, v = torch.cat([cache[i][0], k], 2), torch.cat([cache[i][1], v], 2)
            new.append((k, v))
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen)
            mixed = mixed.transpose(1, 2).reshape(copies, batch * length, -1)
            h = h + mixed @ w["self_attn.o_proj.weight"].mT
            x = self._norm(h, w["post_attention_layernorm.weight"])
            gate, up = x @ w["mlp.gate_proj.weight"].mT, x @ w["mlp.up_proj.weight"].mT
            h = h + (silu(gate) * up) @ w["mlp.down_proj.weight"].mT
        return self._norm(h, weights["model.norm.weight"]).reshape(copies, batch, length, -1), new

    def _norm(self, h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps) * weight[:, None]

    def _heads(self, x: torch.Tensor, batch: int, length: int) -> torch.Tensor:
        return x.reshape(x.shape[0] * batch, length, self.heads, -1).transpose(1, 2)

    def logits(self, weights: Weights, hidden: torch.Tensor) -> torch.Tensor:
        """Return (S, B, T, V)."""
        copies, batch, length, _ = hidden.shape
        flat = hidden.reshape(copies, batch * length, -1) @ weights["model.embed_tokens.weight"].mT
        return flat.reshape(copies, batch, length, -1)

    def log_probs(self, weights: Weights, ids_SBT: torch.Tensor, pad: int) -> torch.Tensor:
        """Return log-probabilities of the next token at every position except the last, (S, B, T - 1, V)."""
        ids = ids_SBT[:, :, :-1]
        hidden, _ = self(weights, ids, *_attention(ids, pad), None)
        return self.logits(weights, hidden).log_softmax(-1)

    @torch.no_grad()
    def sample(self, weights: Weights, ids_SBT: torch.Tensor, pad: int, end: int, most: int, seed: int) -> torch.Tensor:
        """Return `ids_SBT` (left-padded) with continuations at temperature 1, up to `end`, then `pad`: (S, B, U)."""
        generator = torch.Generator().manual_seed(seed)
        copies, batch, _ = ids_SBT.shape
        places, seen = _attention(ids_SBT, pad)
        hidden, cache = self(weights, ids_SBT, places, seen, None)
        place, row = places[:, :, -1:], seen[:, :, -1:]
        made, live = [ids_SBT], torch.ones(copies, batch, 1, dtype=torch.bool)
        for _ in range(most):
            logits = self.logits(weights, hidden[:, :, -1:])[:, :, 0]
            below = logits.softmax(-1).cumsum(-1)
            drawn = torch.rand(copies, batch, 1, generator=generator) * below[..., -1:]
            chosen = torch.where(live, torch.searchsorted(below, drawn, right=True).clamp(max=below.shape[-1] - 1), pad)
            made.append(chosen)
            live = live & (chosen != end)
            if not live.any():
                break
            place = (place + 1).clamp(max=len(self.cos) - 1)
            row = torch.cat([row, torch.ones(copies * batch, 1, 1, 1, dtype=torch.bool)], -1)
            hidden, cache = self(weights, chosen, place, row, cache)
        return torch.cat(made, -1)


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _attention(ids_SBT: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions (S, B, T) and the attention mask (S * B, 1, T, T); padding attends to itself."""
    there = ids_SBT != pad
    flat = there.reshape(-1, 1, 1, there.shape[-1])
    length = there.shape[-1]
    seen = flat & torch.ones(length, length, dtype=torch.bool).tril()
    return (there.cumsum(-1) - 1).clamp(min=0), seen | torch.eye(length, dtype=torch.bool)
