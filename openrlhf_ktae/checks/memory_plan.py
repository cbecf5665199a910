"""The plan of a run: a table of its needs, and the reasons why it cannot work."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

from openrlhf_ktae.backend.base import devices_needed
from openrlhf_ktae.base.batches import data_ranks, rollout_unit
from openrlhf_ktae.checks.lora import lora_conflicts
from openrlhf_ktae.checks.sizes import batch_problems, parallel_problems
from openrlhf_ktae.data.names import entries
from openrlhf_ktae.data.prompt_files import TEXT_SUFFIXES, UnreadableDataset, is_local, look, text_rows
from openrlhf_ktae.memory import phases as memory
from openrlhf_ktae.memory.devices import CPU, GIB
from openrlhf_ktae.memory.model_shape import ModelShape, model_shape

SHARED = 0.6
"""`--vllm.gpu_memory_utilization` of the recipes when engines and trainer share devices."""
HOST_SHARE = 0.95
"""The host's default of that option."""
NOTED = 0.9
"""At or above this share, a plan on shared devices gets a note."""
FIRST_GOLDS = 16
"""Number of golds that are read to check the label column."""
Needs = Callable[[SimpleNamespace], float]
"""Bytes that a run with these options needs."""


@dataclass
class Plan:
    """Rows of the table, a sentence for each risk (`notes`) and for each reason why it cannot work (`problems`)."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Return the figure that most often fails: the memory of an update."""
        return next((f"training {value.split(':')[0]}" for name, value in self.rows if name == "training"), "no memory")

    def table(self) -> str:
        """Return the rows, aligned."""
        width = max((len(name) for name, _ in self.rows), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows)


def make_plan(
    args: SimpleNamespace,
    device: str,
    device_memory: float | None,
    nodes: int | None = None,
    per_node: int | None = None,
    host_memory: float | None = None,
) -> Plan:
    """Return the plan of `args` on devices with `device_memory` bytes each (None: memory is not checked).

    `host_memory` is the CPU memory of a GPU node in bytes (None: not checked). `nodes` and `per_node` describe
    the cluster. Without them, it is assumed to have the devices that the options ask for.
    """
    plan = Plan()
    plan.problems += [*parallel_problems(args), *batch_problems(args), *lora_conflicts(args)]
    plan.problems += _devices(args, nodes, per_node)
    _batch_rows(plan, args)
    shape = model_shape(args.actor.model_name_or_path)
    if shape is None:
        plan.rows.append(("memory", "not planned: no local config.json, or not a dense decoder"))
    else:
        plan.problems += _heads(args, shape)
        _memory_rows(plan, args, shape, device, device_memory, host_memory)
    _gold_row(plan, args)
    return plan


def _devices(args: SimpleNamespace, nodes: int | None, per_node: int | None) -> Iterator[str]:
    if nodes is None or per_node is None:
        return
    needed = devices_needed(args)
    if needed > nodes * per_node:
        yield (
            f"--actor.num_nodes {args.actor.num_nodes} --actor.num_gpus_per_node {args.actor.num_gpus_per_node}: the "
            f"run needs {needed} devices, but --nodes {nodes} x --gpus_per_node {per_node} = {nodes * per_node}; use "
            f"--nodes {-(-needed // per_node)}"
        )
    if args.actor.num_gpus_per_node > per_node:
        yield (
            f"--actor.num_gpus_per_node {args.actor.num_gpus_per_node}: a node has {per_node} (--gpus_per_node); use "
            f"--actor.num_gpus_per_node {per_node}"
        )
    if args.vllm.tensor_parallel_size > per_node:
        yield (
            f"--vllm.tensor_parallel_size {args.vllm.tensor_parallel_size}: an engine would span nodes of {per_node}; "
            f"use {per_node} or less"
        )


def _heads(args: SimpleNamespace, shape: ModelShape) -> Iterator[str]:
    """Yield parallel sizes that do not divide the heads or key-value heads."""
    for flag, parts in (
        ("--vllm.tensor_parallel_size", args.vllm.tensor_parallel_size),
        ("--ds.tensor_parallel_size", args.ds.tensor_parallel_size),
    ):
        shared = shape.kv_heads % parts == 0 or parts % shape.kv_heads == 0
        if shape.heads % parts or not shared:
            fits = max(n for n in range(1, parts) if shape.heads % n == 0 and shape.kv_heads % n == 0)
            yield (
                f"{flag} {parts}: the model has {shape.heads} heads and {shape.kv_heads} key-value heads, and must "
                f"divide both; use {fits}"
            )
    stride = args.ds.ring_attn_head_stride
    if args.ds.ring_attn_size > 1 and shape.kv_heads % stride:
        yield f"--ds.ring_attn_head_stride {stride}: must divide the model's {shape.kv_heads} key-value heads; use 1"


def _batch_rows(plan: Plan, args: SimpleNamespace) -> None:
    samples, ranks = args.rollout.n_samples_per_prompt, data_ranks(args)
    rollouts = args.rollout.batch_size * samples
    response = args.rollout.max_new_tokens or args.data.max_len
    world = args.actor.num_nodes * args.actor.num_gpus_per_node
    plan.rows += [
        (
            "devices",
            f"{devices_needed(args)}: {world} train (ZeRO-{args.ds.zero_stage}, {ranks} data ranks x ring "
            f"{args.ds.ring_attn_size} x tensor {args.ds.tensor_parallel_size}), {args.vllm.num_engines} engines x "
            f"tensor {args.vllm.tensor_parallel_size}{', shared' if args.train.colocate_all else ''}",
        ),
        (
            "a step",
            f"{args.rollout.batch_size:,} prompts x {samples} = {rollouts:,} rollouts, at most {rollouts * response:,} "
            f"response tokens; {rollouts // max(1, args.train.batch_size) * args.train.max_epochs} updates of "
            f"{args.train.batch_size:,}",
        ),
    ]
    prompts = _prompts(args)
    if prompts is not None:
        unit = rollout_unit(args) // samples
        steps, left = divmod(prompts, args.rollout.batch_size)
        usable = left - left % unit
        last = f", a last one of {usable:,} prompts" if usable else ""
        waste = f"; {left - usable:,} prompts left out" if left - usable else ""
        filtered = " before filtering" if args.algo.dynamic_filtering_enable else ""
        plan.rows.append(
            (
                "an episode",
                f"{prompts:,} prompts: {steps:,} full steps{last}{waste}{filtered}; {args.train.num_episodes} x",
            )
        )


def _prompts(args: SimpleNamespace) -> int | None:
    """Return the number of prompts in an episode; None if a data set is not a readable local file."""
    count = 0
    for name, _ in entries(args.data.prompt_dataset or ""):
        try:
            table = look(name) if name and is_local(name) else None
        except UnreadableDataset:
            return None
        if table is None:
            return None
        count += table.rows
    return min(count, args.data.max_samples)


def _memory_rows(
    plan: Plan, args: SimpleNamespace, shape: ModelShape, device: str, total: float | None, host_total: float | None
) -> None:
    cuda = device != CPU
    adapters = f"; {memory.trained_parameters(args, shape) / 1e6:.2f} million are trained" if args.ds.lora.rank else ""
    plan.rows.append(("model", f"{shape.parameters / 1e9:.2f} billion parameters, {args.ds.param_dtype}{adapters}"))
    train = memory.training(args, shape, cuda)
    plan.rows.append(("training", _line(train.total, total, train.parts)))
    if cuda:
        plan.rows.append(("generation", _generation(args, shape, total)))
    sync = memory.synchronisation(args, shape, cuda)
    plan.rows.append(("synchronisation", _line(sync.total, total, sync.parts)))
    if cuda:
        _host_rows(plan, args, shape, host_total)
        plan.notes += _share_notes(args, shape, total)
    if total is None:
        return
    phases: dict[str, Needs] = {
        "training": lambda a: memory.training(a, shape, cuda).total + _awake_engine(a, cuda, total),
        "synchronisation": lambda a: memory.synchronisation(a, shape, cuda).total,
    }
    plan.problems += [
        _too_large(phase, needs, args, cuda, total) for phase, needs in phases.items() if needs(args) > total
    ]
    if cuda:
        plan.problems += _engine_problems(args, shape, total)


def _host_rows(plan: Plan, args: SimpleNamespace, shape: ModelShape, total: float | None) -> None:
    """Plan a node's CPU memory. A problem is reported only if even the need before rounding does not fit."""
    needed, rounded = memory.host(args, shape), memory.host(args, shape, memory.power_of_two)
    of = f" of {total / GIB:.1f}" if total else ""
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in needed.parts.items())
    plan.rows.append(
        (
            "host memory",
            f"{needed.total / GIB:.1f}{of} GiB a node of {args.actor.num_gpus_per_node} devices "
            f"({needed.total / 1e9:.0f} GB): {parts}; up to {rounded.total / GIB:.1f} GiB as PyTorch rounds "
            "pinned blocks up to powers of two; processes come on top",
        )
    )
    if total is not None and needed.total > total:
        plan.problems.append(
            f"host memory: needs {needed.total / GIB:.1f} GiB a node, but there are {total / GIB:.1f}; "
            + _way_out(lambda a: memory.host(a, shape).total, args, True, total, "nodes with more memory")
        )


def _awake_engine(args: SimpleNamespace, cuda: bool, total: float) -> float:
    """Return the bytes that an engine holds on the trainer's device during an update; 0 if it sleeps or has its own."""
    awake = cuda and memory.share_devices(args) and not args.vllm.enable_sleep
    return args.vllm.gpu_memory_utilization * total if awake else 0.0


def _line(used: float, total: float | None, parts: dict[str, float]) -> str:
    of = f" of {total / GIB:.1f}" if total else ""
    return f"{used / GIB:.2f}{of} GiB a device: " + ", ".join(f"{n} {b / GIB:.2f}" for n, b in parts.items() if b)


def _generation(args: SimpleNamespace, shape: ModelShape, total: float | None) -> str:
    weights, one = memory.engine_weights(args, shape, cuda=True), memory.kv_of_sequence(args, shape)
    text = f"weights {weights / GIB:.2f} GiB a device, {one / GIB:.3f} GiB per sequence of {args.data.max_len:,} tokens"
    if total is None:
        return text
    cache = args.vllm.gpu_memory_utilization * total - weights - memory.engine_process(args, shape)
    return f"{text}; room for {max(0, int(cache / one))} such sequences"


def _engine_problems(args: SimpleNamespace, shape: ModelShape, total: float) -> Iterator[str]:
    def engine(a: SimpleNamespace) -> float:
        weights, one = memory.engine_weights(a, shape, cuda=True), memory.kv_of_sequence(a, shape)
        return weights + one + memory.engine_process(a, shape)

    share, needed = args.vllm.gpu_memory_utilization, engine(args)
    resident = memory.resident_trainer(args, shape, cuda=True)
    if needed > share * total:
        if needed + resident <= 0.97 * total:
            yield (
                f"--vllm.gpu_memory_utilization {share}: the engine's weights and one sequence need {needed / GIB:.1f} "
                f"GiB of {total / GIB:.1f}; use {needed / total + 0.03:.2f}"
            )
        else:
            yield _too_large(
                "generation", lambda a: engine(a) + memory.resident_trainer(a, shape, True), args, True, total
            )
    elif memory.share_devices(args) and share * total + resident > total:
        yield (
            f"--vllm.gpu_memory_utilization {share}: is {share * total / GIB:.1f} of {total / GIB:.1f} GiB, and the "
            f"trainer keeps {resident / GIB:.1f} GiB while engines generate; "
            f"use {min(SHARED, int((total - resident) / total * 100) / 100):.2f}"
            + ("" if args.ds.enable_sleep else ", or --ds.enable_sleep true")
        )


def _share_notes(args: SimpleNamespace, shape: ModelShape, total: float | None) -> Iterator[str]:
    """Yield a note if engines leave the trainer little memory, as they do by the host's default."""
    share = args.vllm.gpu_memory_utilization
    if not memory.share_devices(args) or share < NOTED:
        return
    default = " (the default)" if share == HOST_SHARE else ""
    left = f"{1 - share:.0%}" if total is None else f"{(1 - share) * total / GIB:.1f} GiB of {total / GIB:.1f}"
    kept = memory.resident_trainer(args, shape, cuda=True) / GIB
    yield (
        f"--vllm.gpu_memory_utilization {share}{default}: leaves {left} to a trainer that keeps {kept:.1f} GiB on "
        f"the same device, and a dead engine can restart only if its whole share is free; use {SHARED}"
    )


def _changes(args: SimpleNamespace, cuda: bool) -> Iterator[tuple[str, Callable[[SimpleNamespace], None]]]:
    """Yield changes, cheapest first."""

    def setting(group: str, **values: object) -> Callable[[SimpleNamespace], None]:
        return lambda changed: vars(getattr(changed, group)).update(values)

    if cuda and args.train.colocate_all and not args.train.async_enable and not args.vllm.enable_sleep:
        yield "--vllm.enable_sleep true", setting("vllm", enable_sleep=True)
    if cuda and args.train.colocate_all and not args.ds.enable_sleep:
        yield "--ds.enable_sleep true", setting("ds", enable_sleep=True)
    if not args.actor.gradient_checkpointing_enable:
        yield "--actor.gradient_checkpointing_enable true", setting("actor", gradient_checkpointing_enable=True)
    longest = -(-args.data.max_len // args.ds.ring_attn_size)
    tokens = args.train.max_tokens_per_gpu
    while args.train.dynamic_batch_enable and tokens > longest:
        tokens = max(longest, tokens * 3 // 4)
        yield f"--train.max_tokens_per_gpu {tokens}", setting("train", max_tokens_per_gpu=tokens)
    micro = args.train.micro_batch_size
    while not args.train.dynamic_batch_enable and micro > 1:
        micro //= 2
        yield f"--train.micro_batch_size {micro}", setting("train", micro_batch_size=micro)
    if args.ds.zero_stage < 3 and args.ds.tensor_parallel_size == 1:
        yield "--ds.zero_stage 3", setting("ds", zero_stage=3)
    tensor = args.vllm.tensor_parallel_size
    world = args.actor.num_nodes * args.actor.num_gpus_per_node
    while tensor * 2 <= args.actor.num_gpus_per_node:
        tensor *= 2
        engines = world // tensor if args.train.colocate_all else args.vllm.num_engines
        change = setting("vllm", tensor_parallel_size=tensor, num_engines=engines)
        yield f"--vllm.tensor_parallel_size {tensor} --vllm.num_engines {engines}", change
    if cuda and not args.ds.adam_offload:
        yield "--ds.adam_offload true", setting("ds", adam_offload=True)
    for factor in (2, 4, 8, 16, 32):
        nodes = args.actor.num_nodes * factor
        yield f"--actor.num_nodes {nodes}", setting("actor", num_nodes=nodes)


def _too_large(phase: str, needs: Needs, args: SimpleNamespace, cuda: bool, total: float) -> str:
    text = f"{phase}: needs {needs(args) / GIB:.1f} GiB a device, but there are {total / GIB:.1f}; "
    return text + _way_out(needs, args, cuda, total, "larger devices")


def _way_out(needs: Needs, args: SimpleNamespace, cuda: bool, total: float, larger: str) -> str:
    """Name the cheapest single change that makes it fit, else the first changes that do so together."""
    together, named = copy.deepcopy(args), {}
    for name, change in _changes(args, cuda):
        alone = copy.deepcopy(args)
        change(alone)
        if needs(alone) <= total:
            return f"use {name}"
    for name, change in _changes(args, cuda):
        change(together)
        named[name.split()[0]] = name
        if needs(together) <= total:
            return f"use {' '.join(named.values())}"
    return f"no setting makes it fit: take a smaller model or {larger}"


def _gold_row(plan: Plan, args: SimpleNamespace) -> None:
    """Read the first golds of a local file as the verifier does, if the verifier judges the run."""
    name, key = entries(args.data.prompt_dataset or "")[0][0], args.data.label_key
    judged = args.verifier.enable and not args.verifier.config.reward_file
    path = Path(name)
    if not judged or not key or not is_local(name) or not path.is_file() or path.suffix not in TEXT_SUFFIXES:
        return
    from openrlhf_ktae.verifier.golds import gold_forms

    try:
        golds = [row.get(key) for row in islice(text_rows(path), FIRST_GOLDS)]
    except UnreadableDataset:  # the checks of a run report it
        return
    unreadable = [str(gold) for gold in golds if not gold_forms(gold)]
    if golds:
        plan.rows.append(("golds", f"{len(golds) - len(unreadable)} of the first {len(golds)} can be read"))
    if 2 * len(unreadable) > len(golds):
        plan.problems.append(
            f"--data.label_key {key}: {len(unreadable)} of the first {len(golds)} golds cannot be read as an answer "
            f"(such as {unreadable[0][:60]!r}); name the column with the right answers"
        )
