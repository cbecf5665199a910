"""LoRA (`--ds.lora.*`): options that do not work with adapters, and modules that cannot have one."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.base.model_config import config_of
from openrlhf_ktae.base.text import joined

DEFAULTS = {"alpha": 16, "target_modules": "all-linear", "dropout": 0}
"""The host's defaults."""
MATRIX = 2  # dimensions


def lora_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield the options that conflict with adapters, or else the problems of the target modules."""
    found = list(lora_conflicts(args))
    yield from found or _module_problems(args)


def lora_conflicts(args: SimpleNamespace) -> Iterator[str]:
    """Yield the options that contradict each other, without reading the model."""
    lora = args.ds.lora
    if args.ds.load_in_4bit:
        yield (
            "--ds.load_in_4bit true: engines and saved models need full weights, and 4-bit weights are neither "
            "merged nor sent; leave it out (--ds.lora.rank trains a few parameters of a 16-bit model)"
        )
    if lora.rank == 0:
        for name, default in DEFAULTS.items():
            value = getattr(lora, name)
            if value != default:
                given = f"--ds.lora.{name} {joined(value)}"
                yield f"{given}: does nothing without --ds.lora.rank; give one, or leave it out"
        return
    without = f"leave it out, or --ds.lora.rank {lora.rank}"
    if args.ds.tensor_parallel_size > 1:
        yield (
            f"--ds.tensor_parallel_size {args.ds.tensor_parallel_size}: DeepSpeed's tensor parallelism shards layers, "
            f"but not the adapters around them; use --ds.zero_stage 3 with more devices, or {without}"
        )
    if args.train.enable_ema:
        yield (
            "--train.enable_ema true: the EMA model has no adapters, so the host would average mismatched "
            f"parameters; {without}"
        )
    if args.ds.use_universal_ckpt:
        yield f"--ds.use_universal_ckpt true: DeepSpeed converts trained parameters only; {without}"
    if args.algo.advantage.estimator == "gae":
        yield (
            "--advantage_estimator gae: the critic's new value head would stay frozen; give another "
            f"estimator, or leave out --ds.lora.rank {lora.rank}"
        )
    if args.actor.freeze_visual_encoder:
        yield f"--actor.freeze_visual_encoder true: adapters would be added to the encoder and trained; {without}"


def _module_problems(args: SimpleNamespace) -> Iterator[str]:
    """Yield named modules that cannot have an adapter; without names PEFT adapts all linear layers."""
    targets, model = args.ds.lora.target_modules, args.actor.model_name_or_path
    shapes = _weights(model) if args.ds.lora.rank else {}
    if isinstance(targets, str) or not shapes:
        return
    option = f"--ds.lora.target_modules {joined(targets)}"
    way_out = "give names of linear layers such as q_proj v_proj, or leave it out for all of them"
    config = config_of(model)
    if not targets:
        yield f"{option.strip()}: names no modules; {way_out}"
    for target in targets:
        found = {name: shape for name, shape in shapes.items() if f".{name}".endswith(f".{target}.weight")}
        ends = target.endswith("lm_head") or any(shape[0] == config.get("vocab_size") for shape in found.values())
        if config.get("tie_word_embeddings") and ends:
            yield (
                f"{option}: {model} shares one matrix between embeddings and output layer (tie_word_embeddings), and "
                f"an adapter would change only one of them; {way_out}"
            )
        elif not found:
            yield f"{option}: {model} has no module {target}; {way_out}"
        elif any(len(shape) != MATRIX or ".experts." in name for name, shape in found.items()):
            yield f"{option}: {target} is not a linear layer (transformers fuses a model's experts); {way_out}"


def _weights(model: str) -> dict[str, list[int]]:
    """Return name -> shape of a model's weights, from the file headers; empty if files are not local or unreadable."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, list[int]] = {}
    try:
        for path in sorted(Path(model).glob("*.safetensors")):
            with safe_open(path, "np") as file:
                found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return {}  # `model_problems` reports it
    return found
