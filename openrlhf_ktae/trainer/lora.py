"""Departure from the host: with LoRA, engines and saved models get merged weights; the base weights never change.

The host sends parameters under the trained module's names. With LoRA these are PEFT's names, unknown to engines.
PEFT's own layer computes W + scale * B A, one weight at a time, while its parts are gathered. The result equals
`merge_and_unload` on the saved adapter. LoRA: arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from openrlhf.models import Actor
from openrlhf.utils.deepspeed import DeepspeedStrategy
from peft import PeftModel
from peft.tuners.lora import Embedding, Linear, LoraLayer

ADAPTER = "adapter"
"""Subfolder for the adapter. If it were next to the merged model, transformers would load the base instead."""
_BASE = "base_layer."


class MergedWeight(torch.Tensor):
    """The weight of a layer plus its adapter; `data` computes the sum on each access.

    DeepSpeed and the host treat it as a parameter: if ZeRO-3 has sharded it, gathering it gathers its `parts`.
    """

    parts: list[torch.nn.Parameter]
    _layer: Any

    @classmethod
    def of(cls, layer: Any) -> MergedWeight:
        """Return the weight of one of PEFT's layers."""
        weight: torch.nn.Parameter = layer.get_base_layer().weight
        # For vision-language models the host sends only trainable parameters, so mark the sum as trainable.
        one: MergedWeight = torch.Tensor._make_subclass(cls, weight.detach(), True)
        one._layer = layer
        one.parts = [weight, *(p for name, p in layer.named_parameters() if not name.startswith(_BASE))]
        for name in ("ds_id", "ds_shape"):
            if hasattr(weight, name):
                setattr(one, name, getattr(weight, name))
        return one

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        """Return W + scale * B A, of W's shape and dtype; all `parts` must be gathered."""
        with torch.no_grad():
            base: torch.Tensor = self.parts[0].data
            weight = base
            for adapter in self._layer.active_adapters:
                weight = (weight + self._layer.get_delta_weight(adapter)).to(base.dtype)
            return weight

    def all_gather(self, param_list: Iterable[Any], **how: Any) -> Any:
        """Gather the parts of all weights; `deepspeed.zero.GatheredParameters` calls this on its first parameter."""
        parts: list[Any] = parts_of(param_list)
        return parts[0].all_gather(param_list=parts, **how)

    def partition(self, param_list: Iterable[Any], **how: Any) -> Any:
        """Shard the parts again."""
        parts: list[Any] = parts_of(param_list)
        return parts[0].partition(param_list=parts, **how)


def parts_of(weights: Iterable[Any]) -> list[Any]:
    """Return the parameters that must be gathered before `weights` can be read."""
    return [part for weight in weights for part in getattr(weight, "parts", [weight])]


def model_weights(module: torch.nn.Module) -> dict[str, Any]:
    """Return the weights of a model under their names without adapters: parameters, or `MergedWeight`s.

    Raises NotImplementedError if an adapter is on another layer than a linear one or an embedding, as on fused experts.
    """
    if not isinstance(module, PeftModel):
        return dict(module.named_parameters())
    model: Any = module.get_base_model()
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    for name, layer in layers.items():
        if not isinstance(layer, (Linear, Embedding)):
            raise NotImplementedError(f"--ds.lora.target_modules: the adapter of {name} ({type(layer)}) is not merged")
    found = {}
    for name, parameter in model.named_parameters():
        owner, inner, rest = name.partition(f".{_BASE}")
        if inner and owner in layers:
            found[f"{owner}.{rest}"] = MergedWeight.of(layers[owner]) if rest == "weight" else parameter
        elif not any(name.startswith(f"{layer}.") for layer in layers):
            found[name] = parameter
    return found


class MergedModule:
    """A model with adapters, presented as the plain merged model: names of weights, and saving."""

    def __init__(self, module: PeftModel) -> None:
        self._model: Any = module.get_base_model()
        self._weights = model_weights(module)
        self.config = self._model.config

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield the weights to send to engines, by name."""
        yield from self._weights.items()

    def saved(self) -> Iterator[tuple[str, Any]]:
        """Yield the tensors to save: parameters, and the buffers that transformers saves."""
        yield from self._weights.items()
        names = self._model.state_dict().keys()
        yield from ((name, one) for name, one in self._model.named_buffers() if name in names)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return merged weights and buffers. With ZeRO-3 weights are sharded, and the host reads only their names."""
        return {name: one if hasattr(one, "ds_id") else one.data for name, one in self.saved()}

    def save_pretrained(self, folder: str, **how: Any) -> None:
        """Save as transformers saves the plain model; `state_dict` must be given."""
        self._model.save_pretrained(folder, **how)


class MergedEngine:
    """Stands in for the DeepSpeed engine when the host saves: `MergedModule`, with its weights gathered on rank 0."""

    def __init__(self, engine: Any) -> None:
        self.module = MergedModule(engine.module)

    def _consolidated_16bit_state_dict(self) -> dict[str, torch.Tensor] | None:
        return gathered(self.module.saved())


class KTAEDeepspeedStrategy(DeepspeedStrategy):
    """The host's strategy; a model with adapters is saved merged, with its adapter in a subfolder."""

    def save_model(self, model: Any, tokenizer: Any, output_dir: str, **kwargs: Any) -> None:
        """Save as the host does; every rank takes part in gathering its shards."""
        engine = model.model if isinstance(model, Actor) else model
        if not isinstance(engine.module, PeftModel):
            super().save_model(model, tokenizer, output_dir, **kwargs)
            return
        super().save_model(MergedEngine(engine), tokenizer, output_dir, **kwargs)
        adapter = gathered((name, one) for name, one in engine.module.named_parameters() if one.requires_grad)
        if adapter is not None:
            folder = str(Path(output_dir) / ADAPTER)
            engine.module.save_pretrained(folder, state_dict=adapter, save_embedding_layers=False)


def gathered(weights: Iterable[tuple[str, Any]]) -> dict[str, torch.Tensor] | None:
    """Return the gathered `weights` in CPU memory; None on ranks above 0, which must call it too."""
    found = {}
    first = torch.distributed.get_rank() == 0
    for name, weight in weights:
        with deepspeed.zero.GatheredParameters(parts_of([weight])):
            if first:
                found[name] = weight.data.detach().cpu().clone()
    return found if first else None
