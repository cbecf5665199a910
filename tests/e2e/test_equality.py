"""The same three updates on one rank and on two, with ZeRO-2 and ZeRO-3, with and without a dynamic batch.

Tolerance of the loss: 1e-6, a few float32 roundings of a mean over some 400 tokens. Of the weights: the difference is
at most 1e-3 of the update (both as Euclidean norms over all parameters); measured is 2e-5 to 7e-5. Elementwise it
can be more: Adam divides a gradient by its own size, so that rounding of a gradient near 0 shows in full.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import traceback
from pathlib import Path

import pytest
import torch
from marks import RARELY, SLOW
from run_processes import ASYNCHRONOUS
from safetensors.torch import load_file

from openrlhf_ktae.backend.cpu import CpuBackend
from openrlhf_ktae.base.free_port import free_port
from openrlhf_ktae.processes import forks
from openrlhf_ktae.trainer.ray.classes import CPU_MODULES

MODEL = "examples/quickstart/model"
ROLLOUTS, STEPS = 16, 3
LOSS, UPDATE, BF16_LOSS = 1e-6, 1e-3, 2e-3
COMMON = (
    f"--pretrain {MODEL} --prompt_data x.jsonl --label_key l --vllm_num_engines 1 --advantage_estimator ktae "
    f"--n_samples_per_prompt 8 --rollout_batch_size 2 --train_batch_size {ROLLOUTS} --init_kl_coef 0 "
    "--colocate_all_models --max_len 64 --backend cpu --param_dtype fp32 "
    "--actor.lr_scheduler constant --actor.adam.lr 1e-3"
)
SMALL_BATCHES = "--micro_train_batch_size 4"
DYNAMIC = "--use_dynamic_batch --train_max_tokens_per_gpu 128"
LORA = "--ds.lora.rank 8"
TENSOR_PARALLEL = "--zero_stage 1 --param_dtype bf16 " + SMALL_BATCHES


def rank_of(folder, spec, *place):
    """Be one rank, in a fork."""
    os.chdir(folder)
    with open(f"{spec['out']}.log", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            runpy.run_path("benchmarks/update_only.py")["main"](spec, *place)
        except BaseException:
            traceback.print_exc()
            raise


@pytest.fixture(scope="module")
def server(root):
    """Start a server whose forks have imported the libraries, as the ranks of a run on a CPU have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        forks.start([CpuBackend.preloads, *CPU_MODULES], {})
    yield
    forks.stop()


@pytest.fixture(scope="module")
def update(root, server, tmp_path_factory):
    """Take the steps with `words` on `ranks` processes; return losses and weights."""
    known = {}

    def run(ranks: int, words: str, masked: int = 0):
        if (ranks, words, masked) in known:
            return known[ranks, words, masked]
        out = tmp_path_factory.mktemp("update") / "result"
        options = [*COMMON.split(), *words.split(), "--actor.num_gpus_per_node", str(ranks)]
        spec = {"model": MODEL, "options": options, "steps": STEPS, "rollouts": ROLLOUTS, "length": 48}
        spec |= {"vocabulary": 190, "masked": masked, "out": str(out), "weights": True}
        port = str(free_port())
        processes = [forks.ForkedProcess(target=rank_of, args=(root, spec, rank, ranks, port)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
        codes = [process.exitcode for process in processes]  # None if it hangs
        for process in processes:
            process.kill()
        assert not any(code != 0 for code in codes), Path(f"{out}.log").read_text()[-2000:]
        known[ranks, words, masked] = json.loads(Path(f"{out}.json").read_text())["loss"], torch.load(f"{out}.pt")
        return known[ranks, words, masked]

    return run


def difference(weights, others, root):
    """Return the norm of the difference, relative to the norm of the update."""
    start = load_file(root / MODEL / "model.safetensors")
    apart = sum(float((weights[name] - others[name]).double().square().sum()) for name in weights)
    update = sum(float((weights[name] - start[name].float()).double().square().sum()) for name in start)
    return (apart / update) ** 0.5


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (2, f"--zero_stage 3 {SMALL_BATCHES}"),
        pytest.param(1, f"--zero_stage 3 {SMALL_BATCHES}", marks=SLOW),
        pytest.param(2, f"--zero_stage 2 {SMALL_BATCHES}", marks=SLOW),
        pytest.param(2, f"--zero_stage 3 {DYNAMIC}", marks=SLOW),
    ],
)
def test_equal_to_one_rank_with_zero_2(update, root, ranks, words):
    losses, weights = update(1, f"--zero_stage 2 {SMALL_BATCHES}")
    other_losses, other_weights = update(ranks, words)
    assert other_losses == pytest.approx(losses, rel=LOSS, abs=LOSS)
    assert difference(weights, other_weights, root) < UPDATE


@RARELY
def test_merged_weights_of_adapters(update, root):
    """With ZeRO-3 on two ranks, W, A and B are all sharded."""
    losses, weights = update(1, f"--zero_stage 2 {SMALL_BATCHES} {LORA}")
    other_losses, other_weights = update(2, f"--zero_stage 3 {SMALL_BATCHES} {LORA}")
    assert other_losses == pytest.approx(losses, rel=LOSS, abs=LOSS)
    assert difference(weights, other_weights, root) < UPDATE


@SLOW
def test_the_measure_detects_a_different_update(update, root):
    """Counterfactual, and why a dynamic batch is refused with ZeRO-1 and 2: they lose gradients."""
    _, weights = update(1, f"--zero_stage 2 {SMALL_BATCHES}")
    losses, other = update(1, f"--zero_stage 2 {DYNAMIC}")
    assert losses[0] == pytest.approx(update(1, f"--zero_stage 2 {SMALL_BATCHES}")[0][0], rel=LOSS)
    assert difference(weights, other, root) > 0.3


@SLOW
def test_micro_batches_without_an_action_token(update, root):
    """A micro-batch with only truncated or failed rollouts: the host divides by its number of action tokens."""
    losses, weights = update(1, "--zero_stage 3 --micro_train_batch_size 1", masked=5)
    others, other_weights = update(1, f"--zero_stage 3 {SMALL_BATCHES}", masked=5)
    assert others == pytest.approx(losses, rel=LOSS, abs=LOSS)
    assert difference(weights, other_weights, root) < UPDATE


@SLOW
def test_tensor_parallel_by_two(update):
    """DeepSpeed supports only bf16 here (8 bits of mantissa), so losses agree to 2e-3."""
    losses, _ = update(1, TENSOR_PARALLEL)
    parallel, _ = update(2, f"{TENSOR_PARALLEL} --ds_tensor_parallel_size 2")
    assert parallel == pytest.approx(losses, abs=BF16_LOSS)


@pytest.fixture(scope="module")
def told(train, root, tmp_path_factory):
    """Train three updates on 64 rollouts that do not depend on the model; return losses and weights."""

    def run(*words: str):
        folder = tmp_path_factory.mktemp("told")
        rows = (root / "examples/quickstart/data/train.jsonl").read_text().splitlines()[:8]
        (folder / "eight.jsonl").write_text("\n".join(rows))
        agent = f"--train.agent_func_path {root}/tests/e2e/agents/told.py --data.prompt_dataset {folder}/eight.jsonl"
        done = train(
            folder / "run", *agent.split(), *f"--train.num_episodes {STEPS} --run.eval_edges false".split(), *words
        )
        assert done.code == 0, done.output
        return [step["policy_loss"] for step in done.steps], load_file(folder / "run/model/model.safetensors")

    return run


@pytest.fixture(scope="module")
def synchronous(told):
    return told()


@RARELY
@pytest.mark.parametrize("words", [ASYNCHRONOUS, "--actor.recompute_log_probs"])
def test_other_ways_to_the_same_update(told, synchronous, root, words):
    """The asynchronous trainer, and old log-probabilities from a separate pass."""
    losses, weights = synchronous
    assert len(losses) == STEPS
    start = load_file(root / MODEL / "model.safetensors")
    assert not any(torch.equal(weights[name], start[name]) for name in start)
    others, other_weights = told(*words.split())
    assert others == pytest.approx(losses, abs=LOSS)
    assert difference(weights, other_weights, root) < UPDATE
