"""One GRPO step of SmolLM2-135M in fp32 on a CPU: this package (Ray, ZeRO-3, vLLM) against TRL's in-process trainer.

    make quickstart-llm                                          # makes the model folder
    python -m venv /tmp/trl && /tmp/trl/bin/pip install torch==2.13.0 trl==1.16.0
    .venv/bin/python benchmarks/step_vs_trl.py --trl-python /tmp/trl/bin/python

Both sides have the same model, prompts, reward function, optimiser, learning rate and number of rollouts: 8 prompts x 8
rollouts, 48 new tokens each (the prompts ask for longer stories), one update a step, no KL. Our micro-batches are of 8,
to need less memory, TRL's of 16. The sides take turns,
`--rounds` times; the first `--warm-up` steps of a process are not counted. Seconds are medians over steps and rounds.
`--size quickstart` uses the quickstart's tiny model and 32 rollouts x 16 tokens instead.

The last lines give our phases as shares of the machine's peak. The model's operations are 2 x parameters x tokens for a
forward pass (so 2 for generation and 6 for an update, over prompts and responses; attention is not counted). The peak
is torch.mm of two fp32 matrices of 4,096 x 4,096 on the same threads, measured between rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
THINGS = ("a boat", "a fox", "the moon", "a king", "a lamp", "the sea", "a clock", "a tree", "a road", "a cat")
PHASES = ("generation", "experience", "update", "weights")
SIZES = {  # model, prompts per step, rollouts per prompt, new tokens, our micro-batch, TRL's micro-batch
    "smollm2": ("runs/smollm2-135m-instruct", 8, 8, 48, 8, 16),
    "quickstart": ("examples/quickstart/model", 4, 8, 16, 32, 32),
}
REWARD = """
def verdict(text):
    return float(len(text.split()) % 2 == 0)

def reward_func(queries, prompts, labels, **kwargs):
    scores = [verdict(query[len(prompt):]) for query, prompt in zip(queries, prompts)]
    return {"rewards": scores, "scores": scores, "extra_logs": {}}
"""


def prompts(size: str, count: int) -> list[str]:
    """Return prompts whose answers exceed the token limit."""
    if size == "quickstart":
        rows = (ROOT / "examples/quickstart/data/train.jsonl").read_text().splitlines()[:count]
        return [json.loads(row)["input"] for row in rows]
    asked = [f"Tell me a long story about {THINGS[i % len(THINGS)]} and {i + 2} friends." for i in range(count)]
    return [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in asked]


def run_ours(size: str, steps: int, folder: Path, estimator: str) -> list[dict[str, float]]:
    """Train `steps` steps with the users' command; return each step's seconds by phase, and its lengths."""
    model, batch, samples, tokens, micro, _ = SIZES[size]
    data, reward = folder / "data.jsonl", folder / "reward.py"
    data.write_text("".join(json.dumps({"input": p, "label": "1"}) + "\n" for p in prompts(size, batch * steps)))
    reward.write_text(REWARD)
    options = {
        "actor.model_name_or_path": model,
        "data.prompt_dataset": data,
        "data.max_samples": batch * steps,
        "data.max_len": 192 if size == "smollm2" else 64,
        "reward.remote_url": reward,
        "rollout.batch_size": batch,
        "rollout.n_samples_per_prompt": samples,
        "rollout.max_new_tokens": tokens,
        "rollout.micro_batch_size": micro,
        "train.batch_size": batch * samples,
        "train.micro_batch_size": micro,
        "algo.advantage.estimator": estimator,
        "run.eval_edges": "false",
        "run.dir": folder / "run",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    config = {"smollm2": "quickstart-llm", "quickstart": "quickstart"}[size]
    command = [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray", "--config", f"configs/grpo_ktae/{config}.yaml"]
    started = time.time()
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    names = ("timing/generation", "timing/make_experience", "timing/ppo_train", "timing/broadcast")
    seconds = []
    for row in (row for row in rows if row["kind"] == "step"):
        phases = dict(zip(PHASES, (row[name] for name in names), strict=True))
        lengths = {"tokens": row["response_length"], "all tokens": row["total_length"] * batch * samples}
        seconds.append({**phases, "step": row["timing/step_total"], **lengths})
    seconds[0]["start"] = next(row["time"] for row in rows if row["kind"] == "step") - started
    return seconds


def run_trl(size: str, steps: int, folder: Path, python: str) -> list[dict[str, float]]:
    """Train the same with TRL in another environment, by running this file with `--side trl`."""
    output = folder / "trl.json"
    words = ["--side", "trl", "--size", size, "--steps", str(steps), "--output", str(output)]
    started = time.time()
    done = subprocess.run([python, __file__, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    seconds = json.loads(output.read_text())
    seconds[0]["start"] = seconds[0].pop("ended") - started
    return seconds


def trl_side(size: str, steps: int, output: Path) -> None:
    """Train in TRL's environment; write each step's seconds by phase to `output`."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, batch, samples, tokens, _, micro = SIZES[size]
    namespace: dict = {}
    exec(REWARD, namespace)
    times: list[dict[str, float]] = []

    class Timed(GRPOTrainer):
        """Times generation, and generation with scoring; the rest of a step is the update."""

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = super()._generate(*args, **kwargs)
            times[-1]["generation"] = time.perf_counter() - started
            return result

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = super()._generate_and_score_completions(*args, **kwargs)
            times[-1]["experience"] = time.perf_counter() - started - times[-1]["generation"]
            times[-1]["tokens"] = float(result["completion_mask"].sum(1).float().mean())
            return result

    class Clock(TrainerCallback):
        """Starts and stops a step's clock."""

        def on_step_begin(self, *args: Any, **kwargs: Any) -> Any:
            times.append({"began": time.perf_counter()})

        def on_step_end(self, *args: Any, **kwargs: Any) -> Any:
            now = times[-1]
            now["step"] = time.perf_counter() - now.pop("began")
            now["update"] = now["step"] - now["generation"] - now["experience"]
            now["weights"], now["ended"] = 0.0, time.time()

    config = GRPOConfig(
        output_dir=str(output.parent / "trl"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch * samples // micro,
        num_generations=samples,
        max_completion_length=tokens,
        max_steps=steps,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        beta=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": torch.float32},
        optim="adamw_torch_fused",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Timed(
        model=str(ROOT / model),
        args=config,
        reward_funcs=lambda completions, **_: [namespace["verdict"](text) for text in completions],
        train_dataset=Dataset.from_dict({"prompt": prompts(size, batch * steps)}),
        callbacks=[Clock()],
    )
    trainer.train()
    output.write_text(json.dumps(times))


def main() -> None:
    """Run the sides in turns; print medians and each round's ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="interpreter of an environment with trl==1.16.0")
    parser.add_argument("--size", choices=SIZES, default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--estimator", default="ktae", help="estimator of this package's side")
    parser.add_argument("--side", choices=["both", "trl"], default="both", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "trl":
        trl_side(args.size, args.steps, args.output)
        return
    if not args.trl_python:
        parser.error("--trl-python: give the interpreter of an environment with trl==1.16.0")
    measured: dict[str, list[list[dict[str, float]]]] = {"ours": [], "trl": []}
    peak = 0.0
    for _ in range(args.rounds):
        peak = max(peak, matrix_product())
        with tempfile.TemporaryDirectory() as folder:
            measured["ours"].append(run_ours(args.size, args.steps, Path(folder), args.estimator))
            measured["trl"].append(run_trl(args.size, args.steps, Path(folder), args.trl_python))
    report(measured, args.warm_up)
    counted = [step for steps in measured["ours"] for step in steps[args.warm_up :]]
    report_shares(counted, peak, parameters(ROOT / SIZES[args.size][0]))


def matrix_product() -> float:
    """Return operations per second of the best of five fp32 matrix products on all threads."""
    import torch

    a, b = torch.rand(2, 4096, 4096)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    return 2 * 4096**3 / min(seconds)


def parameters(model: Path) -> int:
    """Return the number of a model's parameters."""
    from openrlhf_ktae.memory.model_shape import model_shape

    shape = model_shape(str(model))
    assert shape is not None
    return shape.parameters


def report_shares(steps: list[dict[str, float]], peak: float, numbers: int) -> None:
    """Print each phase's operations per second and share of the peak."""
    print(f"\na matrix product: {peak / 1e9:.0f} GFLOP/s; {numbers / 1e6:.1f} million parameters")
    for phase, operations in (("generation", 2), ("update", 6)):
        speed = statistics.median(operations * numbers * step["all tokens"] / step[phase] for step in steps)
        print(f"{phase:12} {speed / 1e9:.0f} GFLOP/s, {speed / peak:.0%} of it")


def report(measured: dict[str, list[list[dict[str, float]]]], warm_up: int) -> None:
    """Print a table of medians, and each round's ratio."""
    print(f"{'':12}" + "".join(f"{name:>12}" for name in (*PHASES, "step", "tokens", "start")))
    for side, rounds in measured.items():
        counted = [step for steps in rounds for step in steps[warm_up:]]
        cells = [statistics.median(step[name] for step in counted) for name in (*PHASES, "step", "tokens")]
        cells.append(statistics.median(steps[0]["start"] for steps in rounds))
        print(f"{side:12}" + "".join(f"{cell:12.3f}" for cell in cells))
    ratios = [
        statistics.median(s["step"] for s in ours[warm_up:]) / statistics.median(s["step"] for s in trl[warm_up:])
        for ours, trl in zip(measured["ours"], measured["trl"], strict=True)
    ]
    print("ours / trl, step, by round: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
