"""Which tokens get credit? Mean K by kind of token in recorded quickstart rollouts, whose right sums are known.

    .venv/bin/python -m openrlhf_ktae.cli.train_ppo_ray --config configs/compare/grpo_ktae_calibrated.yaml \\
        --run.dir runs/recorded --ktae.record_rollouts 5
    .venv/bin/python benchmarks/credit_by_kind.py runs/recorded

A trace is wrong from its first wrong sum on. `maybe`, `guess` and `skip` make the model careless, `carefully` makes it
careful; `ok`, `well` and `hmm` have no effect (examples/quickstart/README.md). Only groups with both labels count.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_ktae.ktae.config import KTAEConfig
from openrlhf_ktae.record.recorded import find, read_groups
from openrlhf_ktae.report.rescoring import Arm, key_token_values, tensors

ARMS = [
    Arm("paper", KTAEConfig(variant="paper")),
    Arm("reference", KTAEConfig(variant="reference")),
    Arm("calibrated", KTAEConfig(variant="calibrated")),
    Arm("centred", KTAEConfig(variant="paper", centre=True)),
    Arm("by failure", KTAEConfig(variant="paper", by_failure=True)),
    Arm("shuffled", KTAEConfig(variant="paper"), shuffled=True),
]
WORDS = {"carefully": "carefully", "maybe": "maybe", "guess": "guess, skip", "skip": "guess, skip"}
WORDS |= dict.fromkeys(("ok", "well", "hmm"), "ok, well, hmm")
SUMS = ["right sum", "first wrong sum", "sum after a wrong one", "answer, right", "answer, wrong", "rest"]
KINDS = [*dict.fromkeys(WORDS.values()), *SUMS]


def running_sums(prompt: str) -> list[int]:
    """Return the right result of each step of `compute 12 + 7 - 5 :`."""
    first, *others = [int(sign + number) for sign, number in re.findall(r"([+-]?)\s*(\d+)", prompt)]
    return [first + int(change) for change in np.cumsum(others)]


def kinds(texts: list[str], right: list[int], correct: bool) -> Iterator[str]:
    """Yield the kind of each token of one rollout."""
    step, wrong, before = 0, False, ""
    for text in map(str.strip, texts):
        if text in WORDS:
            yield WORDS[text]
        elif before == "gives" and text.isdigit():
            this_wrong = step >= len(right) or int(text) != right[step]
            yield "sum after a wrong one" if wrong else "first wrong sum" if this_wrong else "right sum"
            step, wrong = step + 1, wrong or this_wrong
        elif before.startswith("\\boxed"):
            yield "answer, right" if correct else "answer, wrong"
        else:
            yield "rest"
        before = text


def main() -> None:
    """Print mean K by kind and arm, the share of |K|, and how often calibrated K finds anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    groups: Counter[int] = Counter()
    found: Counter[int] = Counter()
    for group in read_groups(find(parser.parse_args().runs)):
        arrays = tensors(group)
        if not arrays.mixed:
            continue
        k: dict[str, Any] = {arm.name: key_token_values(arrays, arm) for arm in ARMS}
        correct = [row["score"] > arrays.threshold for row in group.rows]
        smaller = min(sum(correct), len(correct) - sum(correct))
        groups[smaller] += 1
        found[smaller] += bool(np.abs(k["calibrated"]).max())
        for i, row in enumerate(group.rows):
            for t, kind in enumerate(kinds(row["token_texts"], running_sums(group.prompt), correct[i])):
                values["GRPO"][kind].append(row["advantages_without_k"][t])
                for name, k_GT in k.items():
                    values[name][kind].append(k_GT[i, t])
    total = {name: sum(np.abs(v).sum() for v in of_arm.values()) for name, of_arm in values.items()}
    print(f"{'mean, share of mass':24}{'tokens':>8}" + "".join(f"{name:>16}" for name in values))
    for kind in KINDS:
        cells = [f"{np.mean(v[kind]):+.3f} {np.abs(v[kind]).sum() / total[n]:5.0%}" for n, v in values.items()]
        print(f"{kind:24}{len(values['GRPO'][kind]):8}" + "".join(f"{cell:>16}" for cell in cells))
    for smaller, count in sorted(groups.items()):
        print(f"groups with {smaller} rollouts on the smaller side: {count}, calibrated K in {found[smaller]}")


if __name__ == "__main__":
    main()
