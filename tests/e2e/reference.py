"""Ten deterministic steps of the quickstart with DAPO and KTAE, stored to six digits and compared on every commit.

`make reference` stores new ones: after a change that is meant to move the figures (say so in the commit), or for a
processor family without an entry. Kernels of different instruction sets sum in different orders, so the last bits
depend on the family. On a family without an entry only the first step is compared, to 0.1 %: later steps sample other
tokens.
"""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrlhf_ktae.selftest.trial import STRAIGHT, Trial

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).parent / "data" / "reference_trajectory.json"
FIGURES = ("policy_loss", "reward", "ktae/mean_abs_k", "response_length", "actor_grad_norm")
STEPS, DIGITS, FIRST_STEP_TOLERANCE = 10, 6, 1e-3
PROMPTS = 48  # per episode, of two, in batches of 8; some are filtered, and surplus groups carry over
VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}
LEVELS = ("avx512f", "avx2")
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # more threads sum in another order

Trajectory = dict[str, list[float]]


def trial_of(folder: Path) -> Trial:
    """Return the trial whose uninterrupted run gives the trajectory."""
    return Trial(["--config", "configs/dapo_ktae/quickstart.yaml"], folder, PROMPTS, 2)


def trajectory(steps: Sequence[dict[str, Any]]) -> Trajectory:
    """Return `FIGURES` of the first `STEPS` steps, rounded to `DIGITS` significant digits."""
    return {name: [float(f"{step[name]:.{DIGITS}g}") for step in steps[:STEPS]] for name in FIGURES}


def processor_family(cpuinfo: str) -> str:
    """Return vendor and instruction set, such as `amd-avx512f`, from the text of /proc/cpuinfo."""
    known = dict(line.replace("\t", "").split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    vendor, flags = known.get("vendor_id", "").strip(), known.get("flags", "").split()
    level = next((level for level in LEVELS if level in flags), platform.machine())
    return f"{VENDORS.get(vendor, vendor or 'other')}-{level}"


def difference(found: Trajectory, stored: dict[str, Trajectory], family: str) -> str | None:
    """Return the first difference from the stored trajectory, or None; warn if the family has no entry."""
    known = family in stored
    if not known:
        warnings.warn(f"no reference for {family}: the first step is compared to 0.1 % (make reference)", stacklevel=2)
    expected = stored[family] if known else next(iter(stored.values()))
    for step in range(STEPS if known else 1):
        for name in FIGURES:
            here, there = found[name][step], expected[name][step]
            if not (here == there if known else math.isclose(here, there, rel_tol=FIRST_STEP_TOLERANCE)):
                return f"step {step + 1}: {name} is {here}, {there} in {STORED.name} (make reference stores it again)"
    return None


def main() -> None:
    """Make the run and store its trajectory under this processor's family."""
    os.chdir(ROOT)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(ENVIRONMENT)
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    family = processor_family(Path("/proc/cpuinfo").read_text())
    with tempfile.TemporaryDirectory() as folder:
        trial = trial_of(Path(folder))
        trial.finish(STRAIGHT)
        stored[family] = trajectory(trial.steps(STRAIGHT))
    STORED.write_text(
        json.dumps(stored, indent=1).replace("\n   ", " ").replace("\n  ]", "]").replace("[ ", "[") + "\n"
    )
    print(f"{STORED}: {STEPS} steps of {family}")


if __name__ == "__main__":
    main()
