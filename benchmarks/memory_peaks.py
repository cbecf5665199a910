"""The planned memory of an update against measured peaks: four models, ZeRO-1/2/3, one and two ranks, fp32 on CPUs.

    python benchmarks/memory_peaks.py tests/unit/checks/measured_peaks.json [MODEL ...]      # of SHAPES; all by default

A test compares the planner with the peaks in that file. The file also has older peaks with DeepSpeed's own buckets
(`BUCKET`), which the planner assumes for fp32 on GPUs. `docs/planner.md` has the table.

A peak is the largest resident memory of rank 0 during the second update, minus that before the model was loaded.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.free_port import free_port

ROOT = Path(__file__).resolve().parents[1]
# hidden, layers, feed-forward, heads, key-value heads, vocabulary; the last is SmolLM2-135M's
SHAPES = {
    "8M": (256, 8, 688, 8, 4, 8192),
    "28M": (384, 12, 1024, 12, 4, 16384),
    "80M": (512, 20, 1408, 8, 8, 32000),
    "135M": (576, 30, 1536, 9, 3, 49152),
}
ROLLOUTS, MICRO_BATCH, LENGTH = 8, 2, 128
OPTIONS = (
    "--prompt_data x.jsonl --label_key l --vllm_num_engines 1 --advantage_estimator ktae --n_samples_per_prompt 8 "
    f"--rollout_batch_size 1 --train_batch_size {ROLLOUTS} --micro_train_batch_size {MICRO_BATCH} --init_kl_coef 0 "
    f"--param_dtype fp32 --actor.lr_scheduler constant --colocate_all_models --max_len {LENGTH} --backend cpu"
)


def config(name: str) -> dict[str, Any]:
    """Return `config.json` of a Qwen2 model of the named shape."""
    names = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip((*names, "vocab_size"), SHAPES[name], strict=True))
    return {"model_type": "qwen2", "tie_word_embeddings": True, "max_position_embeddings": 1024, **sizes}


def make_model(name: str, folder: Path) -> None:
    """Save a model with random weights and the quickstart's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config(name))).save_pretrained(folder)
    for file in (ROOT / "examples/quickstart/model").glob("tokenizer*"):
        shutil.copy(file, folder)


def options(model: str, stage: int, ranks: int) -> list[str]:
    """Return the command-line options of the measured run."""
    return [*OPTIONS.split(), "--pretrain", model, "--zero_stage", str(stage), "--actor.num_gpus_per_node", str(ranks)]


def measure(model: Path, stage: int, ranks: int, out: Path) -> int:
    """Return the peak of rank 0 in bytes."""
    spec = {"model": str(model), "options": options(str(model), stage, ranks), "steps": 2, "rollouts": ROLLOUTS}
    path = Path(f"{out}.spec.json")
    path.write_text(json.dumps({**spec, "length": LENGTH, "vocabulary": 190, "out": str(out)}))
    port = str(free_port())
    command = [sys.executable, str(ROOT / "benchmarks/update_only.py"), str(path)]
    processes = [subprocess.Popen([*command, str(rank), str(ranks), port]) for rank in range(ranks)]
    if any([process.wait() for process in processes]):
        raise RuntimeError(f"the update of {model.name} failed")
    return json.loads(Path(f"{out}.json").read_text())["peak"][-1]


def measured_here(row: dict[str, Any], names: list[str]) -> bool:
    """Return whether this run measures the row again."""
    return row["bucket"] == "CPU_BUCKET" and row["model"] in names


def main(out: Path, names: list[str]) -> None:
    """Measure, write a row per run, and print a table."""
    from openrlhf_ktae.cli.options import parse_command_line
    from openrlhf_ktae.memory import phases as memory
    from openrlhf_ktae.memory.model_shape import shape_of

    rows = [row for row in json.loads(out.read_text()) if not measured_here(row, names)] if out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            make_model(name, Path(folder) / name)
            for stage in (1, 2, 3):
                for ranks in (1, 2):
                    peak = measure(Path(folder) / name, stage, ranks, Path(folder) / "run")
                    args = parse_command_line(options(name, stage, ranks))
                    planned = memory.training(args, shape_of(config(name)), cuda=False).total  # type: ignore[arg-type]
                    rows.append({"model": name, "stage": stage, "ranks": ranks, "peak": peak, "bucket": "CPU_BUCKET"})
                    print(f"{name:>5} ZeRO-{stage} {ranks} ranks  {peak / 1e6:7.0f} MB  planned {planned / peak:.2f}")
                    out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SHAPES))
