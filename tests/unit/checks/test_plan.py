"""The planner: model shapes, memory, and refusals with the smallest change that makes a run possible."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.checks.memory_plan import make_plan
from openrlhf_ktae.cli.options import parse_command_line
from openrlhf_ktae.cli.plan import main
from openrlhf_ktae.memory import phases as memory
from openrlhf_ktae.memory.devices import GPUS, host_memory
from openrlhf_ktae.memory.model_shape import KNOWN, model_shape, shape_of

ROOT = Path(__file__).resolve().parents[3]
BIG = [f"{arm}/{size}" for arm in ("grpo", "dapo_ktae") for size in [name.split("/")[1].lower() for name in KNOWN]]


def options(name, *words):
    return parse_command_line(["--config", str(ROOT / f"configs/{name}.yaml"), *words])


def plan(name, *words, gpu="h100-80g", **cluster):
    return make_plan(options(name, *words), gpu, GPUS[gpu], **cluster)


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_match_transformers(name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{"model_type": "qwen2", **KNOWN[name]})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape_of(KNOWN[name]).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_quickstart_model_is_read_from_its_folder():
    from safetensors import safe_open

    with safe_open(ROOT / "examples/quickstart/model/model.safetensors", "pt") as weights:
        count = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert model_shape(str(ROOT / "examples/quickstart/model")).parameters == count


@pytest.mark.parametrize("name", ["nobody/nothing", "", None])
def test_an_unknown_model_has_no_shape(name):
    assert model_shape(name) is None


def test_states_match_deepspeeds_estimators():
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    for name in KNOWN:
        shape = shape_of(KNOWN[name])
        for nodes, per_node in ((1, 8), (4, 8)):
            sizes = (shape.parameters, shape.largest_layer)
            _, zero3, _ = (*estimate_zero3_model_states_mem_needs(*sizes, per_node, nodes, False, False)[:2], None)
            _, zero2 = estimate_zero2_model_states_mem_needs(shape.parameters, per_node, nodes, False)
            ranks = nodes * per_node
            assert memory.model_states(*sizes, 3, ranks, 2) == pytest.approx(zero3, rel=1e-6)
            assert memory.model_states(*sizes, 2, ranks, 2) == pytest.approx(zero2, rel=1e-6)
            _, offloaded = estimate_zero3_model_states_mem_needs(*sizes, per_node, nodes, True, False)[:2]
            assert memory.model_states(*sizes, 3, ranks, 2, offload=True) == pytest.approx(offloaded, rel=1e-6)


ROWS = ["devices", "a step", "model", "training", "generation", "synchronisation", "host memory"]


@pytest.mark.parametrize("name", BIG)
def test_every_recipe_fits_its_machine(name):
    made = plan(name)
    assert made.problems == []
    assert made.notes == []
    assert [row for row, _ in made.rows] == ROWS


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["lm_head", "down_proj"]])
def test_adapters_are_counted_as_peft_makes_them(targets):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    known = KNOWN["Qwen/Qwen2.5-Math-7B"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**known))
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules=targets))
    trained, _ = adapted.get_nb_trainable_parameters()
    assert shape_of(known).adapter_parameters(16, targets) == trained


def test_with_adapters_only_they_have_gradients_and_states():
    """7.6 billion parameters in bf16 on one 80 GB device, far too small for full training."""
    one = "--actor.num_gpus_per_node 1 --vllm.num_engines 1 --train.max_tokens_per_gpu 4096".split()
    assert any("training: needs" in problem for problem in plan(PAPER_7B, *one).problems)
    args = options(PAPER_7B, *one, "--ds.lora.rank", "16")
    shape = model_shape(args.actor.model_name_or_path)
    states = memory.training(args, shape, cuda=True).parts["parameters, gradients, optimizer"]
    trained = memory.trained_parameters(args, shape)
    assert states == 2 * shape.parameters + 18 * trained + 4 * shape.largest_layer
    made = make_plan(args, "h100-80g", GPUS["h100-80g"])
    assert not made.problems
    assert "40.37 million are trained" in dict(made.rows)["model"]


PAPER_7B = "grpo/qwen2.5-math-7b"
IMPOSSIBLE = [
    ("--vllm.tensor_parallel_size 8 --vllm.num_engines 1", "28 heads and 4 key-value heads", "use 4"),
    ("--vllm.num_engines 4", "--vllm.num_engines 4", "must equal"),
    ("--ds.tensor_parallel_size 2", "--ds.tensor_parallel_size 2", "--ds.zero_stage 2"),
    ("--train.batch_size 3000", "--train.batch_size 3000", "use 16384 or a divisor"),
    ("--train.max_tokens_per_gpu 65536", "training: needs", "use --train.max_tokens_per_gpu 27648"),
    ("--actor.num_gpus_per_node 2 --vllm.num_engines 2", "training: needs", "use --train.max_tokens_per_gpu 5184"),
    ("--actor.num_gpus_per_node 1 --vllm.num_engines 1", "training: needs", "--ds.adam_offload true"),
    ("--vllm.gpu_memory_utilization 0.15", "--vllm.gpu_memory_utilization 0.15", "use 0.23"),
    ("--vllm.gpu_memory_utilization 0.99", "--vllm.gpu_memory_utilization 0.99", "use 0.60"),
    ("--ds.enable_sleep false --vllm.gpu_memory_utilization 0.9", "keeps", "--ds.enable_sleep true"),
    ("--vllm.enable_sleep false", "training: needs", "use --vllm.enable_sleep true"),
]


@pytest.mark.parametrize(("words", "reason", "way_out"), IMPOSSIBLE)
def test_an_impossible_plan_is_refused_with_the_smallest_change(words, reason, way_out):
    problems = plan(PAPER_7B, *words.split()).problems
    assert any(reason in problem and way_out in problem for problem in problems), problems


def test_the_change_it_names_makes_the_plan_possible():
    assert plan(PAPER_7B, "--train.max_tokens_per_gpu", "65536").problems
    assert not plan(PAPER_7B, "--train.max_tokens_per_gpu", "27648").problems


def test_a_small_cluster_is_refused():
    (problem,) = plan("grpo/qwen2.5-32b", nodes=2, per_node=8).problems
    assert "needs 32 devices" in problem
    assert "use --nodes 4" in problem


@pytest.mark.parametrize("flag", ["vllm.enable_sleep", "ds.enable_sleep"])
def test_sleep_contradicts_async_by_both_names(flag):
    words = ["--train.async_enable", "--vllm.enable_sleep", "false", "--ds.enable_sleep", "false", f"--{flag}", "true"]
    with pytest.raises(BadOption, match=f"--{flag} true: contradicts --train.async_enable true"):
        options(PAPER_7B, *words)


def test_the_end_of_the_data_and_the_golds(tmp_path):
    rows = [{"input": "compute 1 + 1 :", "label": "2"} for _ in range(45)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = plan("dapo/quickstart", "--data.prompt_dataset", str(tmp_path / "d.jsonl"))
    values = dict(made.rows)
    assert "45 prompts: 5 full steps, a last one of 4 prompts; 1 prompts left out" in values["an episode"]
    assert values["golds"] == "16 of the first 16 can be read"


def test_golds_that_cannot_be_read_are_refused(tmp_path):
    rows = [{"input": "x", "label": ""} for _ in range(30)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (problem,) = plan("grpo/quickstart", "--data.prompt_dataset", str(tmp_path / "d.jsonl")).problems
    assert "--data.label_key label: 16 of the first 16 golds cannot be read" in problem


@pytest.mark.parametrize("content", ['input,label\nx,"2"2\n', "input,label\nx\n", "input,label\n\xff"])
def test_golds_of_a_broken_file_are_left_to_the_checks(content, tmp_path):
    (tmp_path / "d.csv").write_bytes(content.encode("latin-1"))
    made = plan("grpo/quickstart", "--data.prompt_dataset", str(tmp_path / "d.csv"))
    assert not made.problems
    assert "golds" not in dict(made.rows)


def test_golds_are_not_checked_with_a_reward_file(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"input": "x", "label": ""}))
    words = ["--data.prompt_dataset", str(tmp_path / "d.jsonl"), "--reward.remote_url", str(tmp_path / "reward.py")]
    assert not plan("grpo/quickstart", *words).problems


def test_the_command_prints_one_table_and_its_exit_code_says_whether_it_fits(capsys):
    config = ["--config", str(ROOT / "configs/dapo_ktae/qwen2.5-72b.yaml"), "--gpu", "h100-80g"]
    assert main([*config, "--nodes", "16", "--gpus_per_node", "8"]) == 0
    table = capsys.readouterr().out
    names = [line.split("  ")[0] for line in table.splitlines()]
    assert names == ROWS
    assert main([*config, "--nodes", "8", "--gpus-per-node", "8"]) == 2, "the older spelling"
    assert "use --nodes 16" in capsys.readouterr().err


def test_host_memory_of_a_node():
    """7.62 billion parameters: 16-bit weights of 8 engines, 14 bytes per parameter of the trainer, one export."""
    args, parameters = options(PAPER_7B), 7_615_616_512
    needed = memory.host(args, model_shape(args.actor.model_name_or_path))
    assert needed.parts["weights of sleeping engines"] == pytest.approx(8 * 2 * parameters, rel=1e-3)
    assert needed.parts["Adam's states, 32-bit parameters, gradients"] == pytest.approx(14 * parameters)
    assert needed.total / 1e9 == pytest.approx(245, rel=0.01)
    assert "227.0 GiB a node of 8 devices (244 GB)" in dict(plan(PAPER_7B).rows)["host memory"]
    two_nodes = "--actor.num_nodes 2 --ref.num_nodes 2 --vllm.num_engines 16".split()
    more = memory.host(options(PAPER_7B, *two_nodes), model_shape(args.actor.model_name_or_path))
    assert more.parts["weights of sleeping engines"] == needed.parts["weights of sleeping engines"]
    assert more.parts["Adam's states, 32-bit parameters, gradients"] == pytest.approx(7 * parameters)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--vllm.enable_sleep false --ds.enable_sleep false", []),
        ("--ds.enable_sleep false --ds.adam_offload true", ["weights of sleeping engines", "Adam's states"]),
        ("--train.enable_ema", ["weights of sleeping engines", "Adam's states", "moving average"]),
        ("--algo.kl.init_coef 0.01 --ref.offload", ["weights of sleeping engines", "Adam's states", "reference model"]),
    ],
)
def test_each_option_that_fills_the_host_is_counted(words, parts):
    args = options(PAPER_7B, *words.split())
    *names, last = memory.host(args, model_shape(args.actor.model_name_or_path)).parts
    assert [name[: len(part)] for name, part in zip(names, parts, strict=True)] == parts
    assert last.startswith("whole model")


def test_a_reference_model_on_the_actors_devices_is_counted():
    apart = ["--algo.kl.init_coef", "0.01", "--train.colocate_all", "false"]
    shape = model_shape(options(PAPER_7B).actor.model_name_or_path)
    shared, own = (
        memory.training(options(PAPER_7B, *apart, "--train.colocate_actor_ref", value), shape, True).parts
        for value in ("true", "false")
    )
    assert shared["reference model"] > own["reference model"] == 0


def test_a_node_with_too_little_memory_is_refused_with_the_way_out():
    args = options(PAPER_7B)
    assert make_plan(args, "h100-80g", GPUS["h100-80g"], host_memory=256 * 2**30).problems == []
    (problem,) = make_plan(args, "h100-80g", GPUS["h100-80g"], host_memory=200 * 2**30).problems
    assert "host memory: needs 227.0 GiB a node, but there are 200.0" in problem
    way_out = "--vllm.tensor_parallel_size 2 --vllm.num_engines 4"
    assert f"use {way_out}" in problem
    changed = options(PAPER_7B, *way_out.split())
    assert make_plan(changed, "h100-80g", GPUS["h100-80g"], host_memory=200 * 2**30).problems == []


@pytest.mark.parametrize(("size", "block"), [(1, 1), (2**20, 2**20), (2**20 + 1, 2**21), (3.81e9, 2**32)])
def test_pinned_blocks_are_powers_of_two(size, block):
    assert memory.power_of_two(size) == block


def test_an_engines_tensors_add_up_to_its_parameters():
    for name in KNOWN:
        shape = shape_of(KNOWN[name])
        numbers = sum(count * size for count, size in shape.tensors)
        assert 0.999 * shape.parameters < numbers <= shape.parameters


@pytest.mark.parametrize(
    ("words", "noted"),
    [
        ("--vllm.gpu_memory_utilization 0.95", True),
        ("--vllm.gpu_memory_utilization 0.6", False),
        ("--vllm.gpu_memory_utilization 0.95 --train.colocate_all false --train.colocate_actor_ref true", False),
    ],
)
def test_a_share_that_leaves_little_to_the_trainer_is_noted(words, noted, capsys):
    config = ["--config", str(ROOT / f"configs/{PAPER_7B}.yaml"), "--gpu", "h100-80g"]
    assert main([*config, *words.split()]) == 0
    said = capsys.readouterr().err
    assert ("note: --vllm.gpu_memory_utilization 0.95 (the default): leaves 4.0 GiB of 79.1" in said) == noted


def test_graphs_and_communicators_take_memory():
    shape = model_shape("Qwen/Qwen2.5-Math-7B")
    plain, eager = options(PAPER_7B), options(PAPER_7B, "--vllm.enforce_eager")
    graphs = memory.engine_process(plain, shape) - memory.engine_process(eager, shape)
    assert graphs == memory.CUDA_GRAPH_SIZES * shape.layers * memory.CUDA_GRAPH_OF_LAYER
    ring = options("grpo/qwen2.5-32b")
    assert memory.trainer_process(ring) - memory.trainer_process(plain) == memory.NCCL_COMMUNICATOR
    one = options(PAPER_7B, "--actor.num_gpus_per_node", "1", "--vllm.num_engines", "1")
    assert memory.trainer_process(one) == memory.CUDA_CONTEXT


def test_the_memory_of_a_container_is_its_limit(tmp_path):
    inside = tmp_path / "slurm" / "job_7"
    inside.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/slurm/job_7\n")
    (inside / "memory.max").write_text("max\n")
    assert host_memory(tmp_path, tmp_path / "cgroup") > 2**20
    (inside.parent / "memory.max").write_text("1048576\n")
    assert host_memory(tmp_path, tmp_path / "cgroup") == 2**20
    assert host_memory(tmp_path, tmp_path / "nothing") > 2**20


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ("", None),
        ("--gpus_per_node 8", None),
        ("--gpus_per_node 4", "a node has 4 (--gpus_per_node)"),
        ("--nodes 2", None),
        ("--nodes 1", "--nodes 1 x --gpus_per_node 8 = 8; use --nodes 2"),
    ],
)
def test_an_undescribed_cluster_has_the_requested_size(cluster, problem, capsys):
    config = ["--config", str(ROOT / f"configs/{PAPER_7B}.yaml"), "--gpu", "h100-80g"]
    apart = ["--train.colocate_all", "false", "--train.colocate_actor_ref", "true"]
    code = main([*config, *apart, *cluster.split()])
    errors = capsys.readouterr().err
    assert code == (2 if problem else 0), errors
    assert (problem or "") in errors


def test_planning_is_fast():
    """Goal: at most 0.5 s of a start. Takes the fastest of three, since the machine may be busy."""
    args = options("grpo_ktae/quickstart")
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        make_plan(args, "cpu", 8 * 2**30)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5


MEASURED = json.loads((Path(__file__).parent / "measured_peaks.json").read_text())


@pytest.fixture(scope="module")
def peaks():
    spec = importlib.util.spec_from_file_location("memory_peaks", ROOT / "benchmarks/memory_peaks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: "{model}-{stage}-{ranks}-{bucket}".format(**row))
def test_planned_memory_is_within_15_percent_of_the_peak(row, peaks):
    """Peaks measured with benchmarks/memory_peaks.py on 2 CPU cores, 2026-11-25 (large buckets) and 2026-11-26."""
    shape, stage, ranks = shape_of(peaks.config(row["model"])), row["stage"], row["ranks"]
    args = parse_command_line(peaks.options(row["model"], stage, ranks))
    plan = memory.training(args, shape, cuda=False)
    states = memory.fp32_states(shape.parameters, stage, ranks, bucket=getattr(memory, row["bucket"]))
    part = "parameters, gradients, optimizer"
    assert memory.training(args, shape, cuda=row["bucket"] == "BUCKET").parts[part] == states
    planned = plan.total - plan.parts[part] + states
    assert planned == pytest.approx(row["peak"], rel=0.15)


LORA_PEAKS = {
    **{("28M", 3): 565944320, ("28M", 2): 554196992, ("80M", 3): 1218695168, ("80M", 2): 953257984},
    ("135M", 3): 1808871424,
}


@pytest.mark.parametrize(("model", "stage"), LORA_PEAKS)
def test_planned_memory_of_adapters_is_within_15_percent_of_the_peak(model, stage, peaks):
    """Peaks measured as above on one rank with `--ds.lora.rank 16`, 2026-11-28."""
    args = parse_command_line([*peaks.options(model, stage, 1), "--ds.lora.rank", "16"])
    planned = memory.training(args, shape_of(peaks.config(model)), cuda=False).total
    assert planned == pytest.approx(LORA_PEAKS[model, stage], rel=0.15)
