"""The shape of a decoder model, read from its `config.json`, and its parameter counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.model_config import read_config

# config.json of the models in configs/, for planning without access to the Hub.
_QWEN = {"model_type": "qwen2"}
KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-Math-1.5B": {
        **_QWEN,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-Math-7B": {
        **_QWEN,
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-32B": {
        **_QWEN,
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "intermediate_size": 27648,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-72B": {
        **_QWEN,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "intermediate_size": 29568,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder with a gated MLP (Qwen2, Llama)."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    biased: bool
    """Whether the query, key and value projections have a bias, as in Qwen2."""

    @property
    def of_layer(self) -> int:
        """Parameters of one layer."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_size * self.hidden
        bias = (self.heads + 2 * self.kv_heads) * self.head_size if self.biased else 0
        return attention + bias + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * self.of_layer + embeddings + self.hidden

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest module that ZeRO-3 gathers at once."""
        return max(self.vocabulary * self.hidden, self.of_layer)

    def adapted(self, targets: str | Collection[str]) -> list[tuple[int, int]]:
        """Return (inputs, outputs) of each matrix with an adapter; `all-linear` excludes embeddings and head."""
        heads, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        of_layer = {
            "q_proj": (self.hidden, heads),
            "k_proj": (self.hidden, kv),
            "v_proj": (self.hidden, kv),
            "o_proj": (heads, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }
        ends = dict.fromkeys(("embed_tokens", "lm_head"), (self.hidden, self.vocabulary))
        named = list(of_layer) if isinstance(targets, str) else [name.rsplit(".", 1)[-1] for name in targets]
        layers = [of_layer[name] for name in named if name in of_layer]
        return self.layers * layers + [ends[name] for name in named if name in ends]

    def adapter_parameters(self, rank: int, targets: str | Collection[str]) -> int:
        """Return the number of LoRA adapter parameters, `rank` x (inputs + outputs) per matrix (arXiv 2106.09685)."""
        return sum(rank * (inputs + outputs) for inputs, outputs in self.adapted(targets))

    @property
    def tensors(self) -> tuple[tuple[int, int], ...]:
        """Large tensors of an engine as (count, elements in each): vLLM fuses q, k, v, and gate and up."""
        qkv, out = (self.heads + 2 * self.kv_heads) * self.head_size, self.heads * self.head_size
        of_layer = (qkv * self.hidden, out * self.hidden, 2 * self.intermediate * self.hidden)
        return (
            *((self.layers, numbers) for numbers in (*of_layer, self.intermediate * self.hidden)),
            (1 if self.tied else 2, self.vocabulary * self.hidden),
        )

    @property
    def kv_of_token(self) -> int:
        """Elements in keys and values of one token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size


def model_shape(name: str | None) -> ModelShape | None:
    """Return the shape of a model folder, of a model in the local Hub cache, or of one in `KNOWN`; None otherwise."""
    config = _config(name or "")
    return None if config is None else shape_of(config)


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape described by a `config.json`; None for other architectures (experts, missing sizes)."""
    try:
        heads = int(config["num_attention_heads"])
        if config.get("num_experts") or config.get("num_local_experts"):
            return None
        return ModelShape(
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            biased=config.get("model_type") == "qwen2" or bool(config.get("attention_bias")),
        )
    except (KeyError, ValueError, TypeError, ZeroDivisionError):  # another architecture, or sizes are missing
        return None


def _config(name: str) -> Mapping[str, Any] | None:
    path = Path(name) / "config.json"
    if not path.is_file() and name in KNOWN:
        return KNOWN[name]
    try:
        return read_config(name) or None
    except (ValueError, OSError):
        return None
