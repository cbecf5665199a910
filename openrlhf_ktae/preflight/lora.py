"""What cannot be trained with adapters (`--ds.lora.*`): options that exclude them, and modules that cannot have one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from openrlhf_ktae.preflight.model_folder import config_of

DEFAULTS = {"alpha": 16, "target_modules": "all-linear", "dropout": 0}
"""Of the host."""


def lora_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield what excludes adapters, and what is wrong with their modules: PEFT is asked, with a model without data."""
    found = list(lora_conflicts(args))
    yield from found or _module_problems(args)


def lora_conflicts(args: SimpleNamespace) -> Iterator[str]:
    """Yield the options that contradict each other; nothing is imported."""
    lora = args.ds.lora
    if args.ds.load_in_4bit:
        yield (
            "--ds.load_in_4bit true: engines and saved models need whole weights, and 4-bit ones are not merged or sent "
            "here; leave it out (--ds.lora.rank trains a few parameters of a 16-bit model)"
        )
    if lora.rank == 0:
        for name, default in DEFAULTS.items():
            value = getattr(lora, name)
            if value != default:
                yield f"--ds.lora.{name} {_text(value)}: does nothing without --ds.lora.rank; give one, or leave it out"
        return
    without = f"leave it out, or --ds.lora.rank {lora.rank}"
    if args.ds.tensor_parallel_size > 1:
        yield (
            f"--ds.tensor_parallel_size {args.ds.tensor_parallel_size}: DeepSpeed's tensor parallelism divides layers, "
            f"not the adapters around them; use --ds.zero_stage 3 with more devices, or {without}"
        )
    if args.train.enable_ema:
        yield (
            "--train.enable_ema true: the averaged model has no adapters, so the host would average other parameters "
            f"with each other; {without}"
        )
    if args.ds.use_universal_ckpt:
        yield f"--ds.use_universal_ckpt true: DeepSpeed's conversion knows trained parameters alone; {without}"
    if args.algo.advantage.estimator == "gae":
        yield (
            "--advantage_estimator gae: the critic's new value head would stay frozen below its adapters; give another "
            f"estimator, or leave out --ds.lora.rank {lora.rank}"
        )
    if args.actor.freeze_visual_encoder:
        yield f"--actor.freeze_visual_encoder true: adapters would be put into it and trained; {without}"


def _module_problems(args: SimpleNamespace) -> Iterator[str]:
    lora, model = args.ds.lora, args.actor.model_name_or_path
    if lora.rank == 0 or not config_of(model):
        return
    option = f"--ds.lora.target_modules {_text(lora.target_modules)}"
    way_out = "give names of linear layers such as q_proj v_proj, or leave it out for all of them"
    made = _empty_model(model, args.model.trust_remote_code)
    if made is None:
        return
    from peft import LoraConfig, TaskType, get_peft_model
    from peft.tuners.lora import Embedding, Linear, LoraLayer

    try:
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=lora.rank, target_modules=lora.target_modules)
        adapted = get_peft_model(made, config, low_cpu_mem_usage=True).get_base_model()
    except ValueError as error:
        yield f"{option}: {' '.join(str(error).split())[:200]}; {way_out}"
        return
    layers = {name: layer for name, layer in adapted.named_modules() if isinstance(layer, LoraLayer)}
    strange = [name for name, layer in layers.items() if not isinstance(layer, (Linear, Embedding))]
    if strange:
        yield f"{option}: {strange[0]} is no linear layer, whose weights engines could take merged; {way_out}"
    ends = (adapted.get_input_embeddings(), adapted.get_output_embeddings())
    if adapted.config.tie_word_embeddings and any(isinstance(end, LoraLayer) for end in ends):
        yield (
            f"{option}: {model} has one matrix for its embeddings and its last layer (tie_word_embeddings), and an "
            f"adapter would change one of the two; {way_out}"
        )


def _empty_model(name: str, trusted: bool) -> Any:
    """Return the model without data; None where it is not a causal language model that transformers knows."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trusted)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
    except (ValueError, OSError):
        return None


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
