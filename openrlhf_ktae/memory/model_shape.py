"""The shape of a decoder model, read from its `config.json`, and its parameter counts."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.model_config import read_config

_SIZES = (
    "hidden_size num_hidden_layers intermediate_size num_attention_heads num_key_value_heads vocab_size "
    "tie_word_embeddings"
).split()
_QWEN = {
    "Qwen/Qwen2.5-Math-1.5B": (1536, 28, 8960, 12, 2, 151_936, True),
    "Qwen/Qwen2.5-Math-7B": (3584, 28, 18_944, 28, 4, 152_064, False),
    "Qwen/Qwen2.5-32B": (5120, 64, 27_648, 40, 8, 152_064, False),
    "Qwen/Qwen2.5-72B": (8192, 80, 29_568, 64, 8, 152_064, False),
}
KNOWN: dict[str, dict[str, Any]] = {
    name: {"model_type": "qwen2", **dict(zip(_SIZES, sizes, strict=True))} for name, sizes in _QWEN.items()
}
"""Values of config.json for the models in configs/, for planning without access to the Hub."""


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
        """Return (inputs, outputs) of each matrix with an adapter. `all-linear` excludes embeddings and head."""
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
        """Large tensors of an engine as (count, elements of each). vLLM fuses q, k and v, and gate and up."""
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
    name = name or ""
    if name in KNOWN and not (Path(name) / "config.json").is_file():
        return shape_of(KNOWN[name])
    try:
        return shape_of(read_config(name))
    except (ValueError, OSError):
        return None


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
