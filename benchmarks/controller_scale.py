"""The cost of the single controller, without engines and ranks, by batch size: time and memory of each phase.

    python benchmarks/controller_scale.py [--prompts 64,256,1024,4096] [--json FILE]

The trainer, samples generator, experience maker, recorder and Ray are real. The 32 engines and 128 ranks are handles of
two small stand-in actors, which answer with data of the paper's shapes: 16 rollouts per prompt, responses of 300 to
1,100 tokens. Each size runs two steps in its own process. Seconds are those of the second step, memory is the larger
rise of the two. Stand-ins use the same cores, which would distort wall time, so a phase counts the processor time of
all threads of the controller's process. Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from zipf_batches import LONGEST, ROLLOUTS, SHORTEST, VOCABULARY

ROOT = Path(__file__).resolve().parents[1]
SIZES = (64, 256, 1_024, 4_096)
PAPER = 1_024
STEP_SECONDS = 278.0
"""A step of the paper's batch on GPUs; the goal is that the controller takes at most a hundredth of it."""
SHARE, EXPONENT, ADVANTAGE_SECONDS, KERNEL_RATIO = 0.01, 1.05, 1.0, 20.0
ENGINES, RANKS, ACTORS = 32, 128, 2
MICRO_BATCH = 8
PROMPT_SHORTEST, PROMPT_LONGEST = 80, 260
ONE_SIDED = 0.2
"""Share of groups whose rollouts are all right or all wrong, which dynamic sampling replaces."""
MAX_LEN = 4_096
STREAM = 1_000_000
"""Length of the token stream from which stand-ins take their answers."""
RESULT = "RESULT "


def main() -> int:
    """Run each size in its own process; print phases, exponents and goals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", default=",".join(map(str, SIZES)), help="prompts of a batch, comma-separated")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--dynamic-batch", action="store_true", help="with --train.dynamic_batch_enable")
    parser.add_argument("--record-groups", type=int, default=PAPER, help="groups recorded by the rollout record")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="print the slowest functions")
    options = parser.parse_args()
    if options.one:
        print(RESULT + json.dumps(one_size(options.one, options)))
        return 0
    rows = [in_a_process(size) for size in map(int, options.prompts.split(","))]
    print(table(rows))
    goals = held(rows)
    for name, value, limit in goals:
        print(f"{name:<74} {value:>9.3g}  <= {limit:<6g} {'held' if value <= limit else 'MISSED'}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0 if all(value <= limit for _, value, limit in goals) else 1


def in_a_process(size: int) -> dict[str, Any]:
    """Measure one size in a fresh process; return the figures."""
    words = [sys.executable, __file__, "--one", str(size), *sys.argv[1:]]
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    quiet = {"PYTHONPATH": path, "TQDM_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **quiet})
    lines = run.stdout.splitlines()
    if "--profile" in words:
        print("\n".join(line for line in lines if not line.startswith(RESULT)))
    return json.loads(next(line for line in lines if line.startswith(RESULT))[len(RESULT) :])


class Phases:
    """Wall and processor seconds and the rise of memory, by phase; a phase's seconds exclude the phases within it."""

    def __init__(self) -> None:
        self.rise: dict[str, int] = {}
        self._open: list[list[float]] = []
        self.begin()

    def begin(self) -> None:
        """Count seconds from 0 again; the largest rise of memory is kept."""
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, memory: bool = True) -> Iterator[None]:
        """Measure the block; `memory` suits only phases that happen once a step."""
        before = clear_peak() if memory else 0
        inner = [0.0, 0.0]
        self._open.append(inner)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            self._open.pop()
            for total, mine, within in ((self.wall, wall, inner[0]), (self.cpu, cpu, inner[1])):
                total[name] = total.get(name, 0.0) + mine - within
            if self._open:
                self._open[-1][0] += wall
                self._open[-1][1] += cpu
            if memory:
                self.rise[name] = max(self.rise.get(name, 0), peak() - before)

    def watch(self, owner: Any, method: str, name: str, memory: bool = True) -> None:
        """Measure every call of the method `method` of `owner` as phase `name`."""
        call = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name, memory):
                return call(*args, **kwargs)

        setattr(owner, method, watched)


def status(name: str) -> int:
    """Return a figure of this process's memory in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def clear_peak() -> int:
    """Reset the memory peak; return current memory, without pages shared with Ray's object store."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS") - status("RssShmem")


def peak() -> int:
    """Return the peak since `clear_peak`, without pages shared with Ray's object store."""
    return status("VmHWM") - status("RssShmem")


def one_size(prompts: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run two steps with batches of `prompts` prompts; return the figures of `step`."""
    from openrlhf_ktae.backend.cluster import HOST_ENVIRONMENT
    from openrlhf_ktae.backend.cpu_patches import activate

    activate()
    import logging

    import ray

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # as Ray does in an actor that asks for no cores
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=ACTORS, runtime_env={"env_vars": dict(HOST_ENVIRONMENT)}, **quiet)
    with tempfile.TemporaryDirectory() as folder:
        phases = Phases()
        trainer = made_trainer(prompts, Path(folder), options, phases)
        profiler = None
        if options.profile:
            import cProfile

            profiler = cProfile.Profile(time.process_time)
        result = step(trainer, prompts, Path(folder), phases, profiler)
        if profiler:
            import pstats

            pstats.Stats(profiler).sort_stats("tottime").print_stats(35)
    ray.shutdown()
    return result


def step(trainer: Any, prompts: int, folder: Path, phases: Phases, profiler: Any) -> dict[str, Any]:
    """Generate, train and save twice; return the second round's seconds, the largest rises of memory, and sizes."""
    from openrlhf_ktae.trainer.ppo_utils.data_position import POSITION, plain_position

    generator = trainer.samples_generator
    samples: list[Any] = []
    for number in range(2):
        samples = trainer.last_experiences = []
        gc.collect()
        phases.begin()
        if profiler and number:
            profiler.enable()
        with phases.phase("samples received"):
            samples, *_ = generator.generate_samples(**trainer.generate_kwargs)
        with phases.phase("step, other"):
            trainer.train_step(samples, number)
        with phases.phase("checkpoint: state of the controller"):
            position = plain_position(trainer.prompts_dataloader.state_dict()[POSITION])
            torch.save({"trainer": trainer.training_state(), POSITION: position}, folder / "state")
        if profiler:
            profiler.disable()
    tokens = sum(int(sample.total_length) for sample in samples)
    return {
        "prompts": prompts,
        "rollouts": len(samples),
        "tokens": tokens,
        "wall": phases.wall,
        "cpu": phases.cpu,
        "rise": phases.rise,
        "kernel": kernel_seconds(trainer, samples),
        "copy": copy_seconds(trainer.last_experiences),
        "batch_bytes": tensors_bytes(trainer.last_experiences),
        "surplus": generator.left_over + len(generator._sample_buffer),
        "peak": status("VmHWM"),
    }


def kernel_seconds(trainer: Any, samples: list[Any]) -> float:
    """Return the least processor seconds, of three tries, of computing K for the batch as one table."""
    from openrlhf_ktae.ktae import compute_key_token_values

    maker = trainer.experience_maker
    width = max(sample.sequences.size(1) for sample in samples)
    ids_BT = torch.zeros((len(samples), width - 1), dtype=torch.int64)
    mask_BT = torch.zeros((len(samples), width - 1), dtype=torch.bool)
    for row, sample in enumerate(samples):
        ids_BT[row, : sample.sequences.size(1) - 1] = sample.sequences[0, 1:]
        mask_BT[row, : sample.action_mask.size(1)] = sample.action_mask[0].bool()
    scores_B = torch.cat([sample.scores for sample in samples])
    groups_B = torch.arange(len(samples)) // ROLLOUTS
    least = float("inf")
    for _ in range(3):
        started = time.process_time()
        compute_key_token_values(ids_BT, mask_BT, scores_B, groups_B, maker.options.config)
        least = min(least, time.process_time() - started)
    return least


def copy_seconds(experiences: list[Any]) -> float:
    """Return the least processor seconds, of three tries, of copying all 2-D tensors of experiences.

    If they grow faster than the number of tokens, the machine's memory is the cause."""
    tables = [v for e in experiences for v in vars(e).values() if isinstance(v, torch.Tensor) and v.dim() == 2]
    least = float("inf")
    for _ in range(3):
        started = time.process_time()
        copies = [table.clone() for table in tables]
        least = min(least, time.process_time() - started)
        del copies
    return least


def tensors_bytes(experiences: list[Any]) -> int:
    """Return the bytes of all tensors in experiences."""
    values = (value for e in experiences for value in vars(e).values())
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


def arguments(prompts: int, folder: Path, options: argparse.Namespace) -> SimpleNamespace:
    """Return the options of a run on 128 GPUs with the paper's algorithm."""
    from openrlhf_ktae.cli.options import parse_command_line

    return parse_command_line(
        [
            *("--pretrain", "m", "--prompt_data", "d.jsonl", "--data.label_key", "label"),
            *("--advantage_estimator", "ktae", "--n_samples_per_prompt", str(ROLLOUTS), "--init_kl_coef", "0"),
            *("--rollout_batch_size", str(prompts), "--train_batch_size", str(prompts * ROLLOUTS)),
            *("--actor.num_nodes", str(RANKS // 8), "--actor.num_gpus_per_node", "8"),
            *("--vllm_num_engines", str(ENGINES), "--rollout.micro_batch_size", str(MICRO_BATCH)),
            *("--train.micro_batch_size", "8", "--max_len", str(MAX_LEN), "--dynamic_filtering"),
            *("--actor.recompute_log_probs", "--run.dir", str(folder), "--ktae.record_rollouts", "1"),
            *("--ktae.record_groups", str(options.record_groups), "--ktae.record_max_mb", "100000"),
            *(("--train.dynamic_batch_enable",) if options.dynamic_batch else ()),
        ]
    )


def made_trainer(prompts: int, folder: Path, options: argparse.Namespace, phases: Phases) -> Any:
    """Return the trainer with stand-ins for its engines and ranks; `phases` measures its parts."""
    from openrlhf.trainer.ray.launcher import RayActorGroup

    from openrlhf_ktae.record.metrics import RunRecord
    from openrlhf_ktae.trainer.ppo_trainer import KTAEPPOTrainer
    from openrlhf_ktae.trainer.ppo_utils.data_position import PositionedLoader
    from openrlhf_ktae.trainer.ppo_utils.experience_maker import KTAEExperienceMaker
    from openrlhf_ktae.trainer.ppo_utils.host_speed import tune_process
    from openrlhf_ktae.trainer.ppo_utils.samples_generator import KTAESamplesGenerator

    args = arguments(prompts, folder, options)
    strategy = SimpleNamespace(args=args)
    tokenizer = large_tokenizer()
    standins = made_standins()
    group = RayActorGroup.__new__(RayActorGroup)
    group._actor_handlers = [standins[i % ACTORS] for i in range(RANKS)]
    group.duplicate_actors = 1
    engines = [standins[i % ACTORS] for i in range(ENGINES)]
    kl = SimpleNamespace(value=0.0, update=lambda *_: None)
    trainer = KTAEPPOTrainer.__new__(KTAEPPOTrainer)
    trainer.strategy, trainer.args, trainer.tokenizer, trainer.kl_ctl = strategy, args, tokenizer, kl
    trainer.actor_model_group, trainer.vllm_engines = group, engines
    trainer.critic_model_group = trainer.reward_model_group = trainer.reference_model_group = None
    trainer.wandb_logger = trainer.tensorboard_logger = trainer.eval_dataloader = None
    trainer.generate_kwargs = {"max_len": MAX_LEN, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": None}
    trainer.record = RunRecord(folder)
    generator = KTAESamplesGenerator(strategy, Prompts(), None, tokenizer, engines)
    trainer.prompts_dataloader = PositionedLoader(generator.prompts_dataloader, generator)
    trainer.samples_generator = generator
    maker = KTAEExperienceMaker(group, None, None, None, kl, strategy, tokenizer)
    trainer.experience_maker = maker
    watch(trainer, generator, maker, phases)
    tune_process()
    return trainer


def watch(trainer: Any, generator: Any, maker: Any, phases: Phases) -> None:
    """Measure the parts of a step."""
    phases.watch(generator, "_dispatch_prompts_to_vllm", "prompts sent to engines", memory=False)
    phases.watch(generator, "_judge", "verdicts, groups, dynamic sampling", memory=False)
    phases.watch(maker, "split_rollout_samples", "micro-batches made")
    phases.watch(maker, "make_experience", "experiences: passes sent and received")
    phases.watch(maker, "compute_advantages_and_returns", "advantages and returns")
    phases.watch(trainer.rollout_recorder, "write", "record of rollouts")
    send = trainer.actor_model_group.async_run_method_batch

    def sent(method_name: str, **batch: Any) -> Any:
        if method_name == "append":
            trainer.last_experiences = batch["experience"]
            with phases.phase("experiences sent to ranks"):
                return send(method_name=method_name, **batch)
        return send(method_name=method_name, **batch)

    trainer.actor_model_group.async_run_method_batch = sent


class Prompts:
    """An endless stand-in for the host's loader of prompts."""

    def __iter__(self) -> Iterator[Any]:
        rng = np.random.default_rng(1)
        for number in range(10**9):
            words = rng.integers(0, 1000, 60).tolist()
            yield ["math"], [f"Problem {number}: " + " ".join(map(str, words))], [str(number)], [None]

    def __len__(self) -> int:
        return 10**6

    def state_dict(self) -> dict[str, Any]:
        """Return a placeholder state."""
        return {}


def large_tokenizer() -> Any:
    """Return a tokenizer as large as those of the paper's models; engines get it, and the record gets texts from it."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    letters = [chr(ord("\u4e00") + i) for i in range(256)]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for left in [*letters, *(a + b for a in letters for b in letters)]:
        for right in letters:
            if len(vocabulary) < VOCABULARY - 1 and left + right not in vocabulary:
                vocabulary[left + right] = len(vocabulary)
                merges.append((left, right))
    vocabulary["<end>"] = VOCABULARY - 1
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


def made_standins() -> list[Any]:
    """Return the actors that stand for engines and ranks."""
    import ray

    from openrlhf_ktae.trainer.ppo_utils.messages import Answers
    from openrlhf_ktae.trainer.ray.tensors import send_tensors_plainly

    @ray.remote(num_cpus=0)
    class StandIn:
        def __init__(self, seed: int) -> None:
            self.rng = np.random.default_rng(seed)
            frequencies = 1.0 / np.arange(1, VOCABULARY)
            ranks = self.rng.choice(VOCABULARY - 1, STREAM, p=frequencies / frequencies.sum())
            self.stream = self.rng.permutation(VOCABULARY - 1)[ranks]

        async def get_num_unfinished_requests(self) -> int:
            return 0

        async def responses_to(self, call: dict[str, Any]) -> list[dict[str, Any]]:
            prompt, label, num_samples, rng = call["prompt"], call["label"], call["num_samples"], self.rng
            before = self._ids(int(rng.integers(PROMPT_SHORTEST, PROMPT_LONGEST)))
            scores = (rng.random(num_samples) < 0.5).astype(float)
            scores[:2] = 1.0, 0.0
            if rng.random() < ONE_SIDED:
                scores[:] = scores[2]
            answers = []
            for score in scores.tolist():
                ids = self._ids(int(rng.integers(SHORTEST, LONGEST + 1)))
                ids[-1] = VOCABULARY - 1
                answers.append(
                    {
                        "prompt": prompt,
                        "label": label,
                        "images": None,
                        "mm_train_inputs": None,
                        "observation_tokens": np.concatenate([before, ids]),
                        "action_ranges": [(len(before), len(before) + len(ids))],
                        "rollout_log_probs": np.concatenate([np.zeros(len(before)), np.full(len(ids), -0.5)]),
                        "truncated": False,
                        "reward": score,
                        "scores": score,
                        "extra_logs": {"verifier_unknown": 0.0, "answer_found": 1.0},
                    }
                )
            return Answers(answers)

        def _ids(self, count: int) -> Any:
            start = int(self.rng.integers(0, STREAM - count))
            return self.stream[start : start + count].copy()

        async def execute_batch(self, method: str, data: dict[str, Any], start: int, end: int) -> list[Any]:
            if method == "append":
                return [None] * (end - start)
            send_tensors_plainly()
            return [torch.full(mask.shape, -0.5) for mask in data["action_mask"]]

        async def answer(self) -> bool:
            return True

        async def fit(self, **_: Any) -> dict[str, float]:
            return {"policy_loss": 0.0}

        async def _nothing(self, *_: Any, **__: Any) -> None:
            return None

        follow_schedule = confirm_weights = broadcast_to_vllm = reload_states = offload_states = empty_cache = _nothing

    return [StandIn.remote(seed) for seed in range(ACTORS)]


def phases_of(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names of the phases in the order of a step."""
    return list(dict.fromkeys(name for row in rows for name in row["cpu"]))


def table(rows: list[dict[str, Any]]) -> str:
    """Return phases by size as Markdown: processor seconds, and the rise of memory at the largest size."""
    head = "| phase | " + " | ".join(f"{row['prompts']:,}" for row in rows) + " | exponent | memory |"
    lines = [head, "|" + "---|" * (len(rows) + 3)]
    for name in phases_of(rows):
        seconds = [row["cpu"].get(name, 0.0) for row in rows]
        rise = rows[-1]["rise"].get(name)
        memory = "" if rise is None else f"{rise / 2**20:,.0f} MiB"
        lines.append(
            f"| {name} | {' | '.join(f'{s:.3f}' for s in seconds)} | {exponent(rows, seconds):.2f} | {memory} |"
        )
    totals = [sum(row["cpu"].values()) for row in rows]
    lines.append(f"| all | {' | '.join(f'{s:.2f}' for s in totals)} | {exponent(rows, totals):.2f} | |")
    for name, value in (
        ("wall time of advantages and returns, s", lambda row: f"{row['wall']['advantages and returns']:.3f}"),
        ("advantages and returns, ns a token", lambda row: nanoseconds(row, row["cpu"]["advantages and returns"])),
        ("a plain copy of the batch's tables, ns a token", lambda row: nanoseconds(row, row["copy"])),
        ("K alone, s", lambda row: f"{row['kernel']:.3f}"),
        ("million tokens", lambda row: f"{row['tokens'] / 1e6:.2f}"),
        ("batch sent to ranks, MiB", lambda row: f"{row['batch_bytes'] / 2**20:,.0f}"),
        ("rollouts kept for the next step", lambda row: f"{row['surplus']:,}"),
        ("peak of the process, MiB", lambda row: f"{row['peak'] / 2**20:,.0f}"),
    ):
        lines.append(f"| {name} | {' | '.join(map(value, rows))} | | |")
    return "\n".join(lines)


def nanoseconds(row: dict[str, Any], seconds: float) -> str:
    """Return nanoseconds per token, as text."""
    return f"{seconds / row['tokens'] * 1e9:.1f}"


def exponent(rows: list[dict[str, Any]], seconds: list[float]) -> float:
    """Return the slope of log seconds over log tokens; NaN for one size."""
    if len(rows) < 2 or min(seconds) <= 0:
        return float("nan")
    return float(np.polyfit(np.log([row["tokens"] for row in rows]), np.log(seconds), 1)[0])


def held(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Return goals: name, value, limit."""
    goals = []
    totals = [sum(row["cpu"].values()) for row in rows]
    if len(rows) > 1:
        goals.append(("exponent of all phases over tokens", exponent(rows, totals), EXPONENT))
    for row, total in zip(rows, totals, strict=True):
        if row["prompts"] != PAPER:
            continue
        seconds = row["cpu"]["advantages and returns"]
        goals += [
            (f"share of a step of {STEP_SECONDS:g} s", total / STEP_SECONDS, SHARE),
            ("seconds of advantages and returns", seconds, ADVANTAGE_SECONDS),
            ("the same / K alone", seconds / row["kernel"], KERNEL_RATIO),
            ("its rise of memory / batch", row["rise"]["advantages and returns"] / row["batch_bytes"], 1.0),
        ]
    return goals


if __name__ == "__main__":
    sys.exit(main())
