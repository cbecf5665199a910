"""Speed and memory of KTAE compared with its published cost profile and with a sort of the same tokens.

    python benchmarks/ktae_speed.py [--largest 1e8] [--repetitions 15] [--json FILE]

Compared functions alternate, so that other load on the machine affects both. Times are those of the fastest repetition.
Exits with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from published_profile import Arithmetic, PlainNumbers, Tensors, published_values
from zipf_batches import LONGEST, ROLLOUTS, SHORTEST, VOCABULARY, ZipfBatch, zipf_batch

from openrlhf_ktae.ktae import KTAEConfig, compute_ktae_advantages, warm_up

VARIANTS = ("paper", "reference", "calibrated")
GROUPS = 64
PAPER_GROUPS = 1_024
PUBLISHED_GROUPS = 3
"""Groups that the slow profile processes."""
PUBLISHED_TOKENS, PUBLISHED_SECONDS = 770, 0.364
"""The published code itself took 364 to 500 ms for a group of 16 rollouts of 770 tokens, on another machine."""
ALONE_REPETITIONS = 40
SAME = 1e-5
"""Largest difference between the published profile's values and the variant `reference`."""
TOKENS_A_GROUP = ROLLOUTS * (SHORTEST + LONGEST) // 2
FEWEST = 10_000
MILLI = 1e3
HERE = Path(__file__).resolve().parent

MEMORY_PROBE = """
import sys, numpy as np, torch
from openrlhf_ktae.ktae import compute_ktae_advantages, warm_up
folder, threads = sys.argv[1], int(sys.argv[2])
parts = [torch.from_numpy(np.load(f"{folder}/{n}.npy")) for n in range(5)]
small = [part[:64] for part in parts]
compute_ktae_advantages(*small, num_threads=threads)
def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = status("VmRSS")
out = compute_ktae_advantages(*parts, num_threads=threads)
print(status("VmHWM") - before)
"""

FIRST_CALL_PROBE = """
import time, numpy as np, torch
started = time.perf_counter()
from openrlhf_ktae.ktae import compute_ktae_advantages
ids = torch.tensor(np.random.default_rng(0).integers(0, 500, (32, 200)))
compute_ktae_advantages(ids, torch.ones_like(ids), torch.arange(32) % 2, torch.arange(32) // 16, torch.zeros(32))
print(time.perf_counter() - started)
"""


@dataclass(frozen=True)
class Result:
    """A measured figure and its goal, if it has one."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def held(self) -> bool:
        """Whether the goal, if any, is reached."""
        below = self.at_most is None or self.value <= self.at_most
        return below and (self.at_least is None or self.value >= self.at_least)

    def line(self) -> str:
        """Return a row of the table."""
        goal = "" if self.at_most is None else f"<= {self.at_most:g}"
        goal = goal if self.at_least is None else f">= {self.at_least:g}"
        verdict = ("held" if self.held else "MISSED") if goal else ""
        return f"{self.name:<74} {self.value:>11.4g} {self.unit:<7} {goal:>9} {verdict}"


def main() -> int:
    """Measure and print; return 0 if every goal was reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--largest", type=float, default=1e8, help="tokens of the largest batch (4 GB of memory at 1e8)"
    )
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    results: list[Result] = []
    steps: list[Callable[[], list[Result]]] = [
        lambda: one_core(options.repetitions),
        one_group,
        lambda: paper_batch(options.repetitions),
        lambda: vocabularies(options.repetitions),
        memory,
        first_call,
        lambda: linearity(int(options.largest)),
    ]
    for step in steps:
        for result in step():
            print(result.line(), flush=True)
            results.append(result)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) | {"held": result.held} for result in results], indent=1))
    return 0 if all(result.held for result in results) else 1


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(works: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Return the wall times of several functions, measured in turns."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Return the ratio of the fastest repetitions."""
    return min(times[above]) / min(times[below])


def ktae(batch: ZipfBatch, config: KTAEConfig, threads: int = 1) -> Callable[[], torch.Tensor]:
    """Return a function that calls KTAE on tensors, as a trainer does."""
    tensors = [torch.from_numpy(part) for part in batch]
    return lambda: compute_ktae_advantages(*tensors, config=config, num_threads=threads)


def one_core(repetitions: int) -> list[Result]:
    """Measure milliseconds per group, and ratios to the sort and to the published profile."""
    batch = zipf_batch(GROUPS)
    groups = batch.groups()
    works: dict[str, Callable[[], object]] = {v: ktae(batch, KTAEConfig(variant=v)) for v in VARIANTS}
    works["sort"] = lambda: [np.sort(group) for group in groups]
    times = alternate(works, repetitions)
    slow, plain = (published(batch, works["reference"], using) for using in (Tensors, PlainNumbers))
    results = [Result("tokens a group", batch.tokens / GROUPS, "tokens")]
    for variant in VARIANTS:
        each = min(times[variant]) / GROUPS
        results.append(Result(f"{variant}: a group in a batch of {GROUPS}, one core", each * MILLI, "ms", at_most=0.2))
        results.append(Result(f"{variant}: ratio to numpy.sort", ratio(times, variant, "sort"), "x", at_most=3))
        results.append(Result(f"{variant}: published profile / this", slow / each, "x", at_least=1000))
        results.append(Result(f"{variant}: published profile in plain Python numbers / this", plain / each, "x"))
    results.append(Result("numpy.sort of a group", min(times["sort"]) / GROUPS * MILLI, "ms"))
    results.append(Result("published profile, a group", slow * MILLI, "ms"))
    results.append(Result("published profile in plain Python numbers, a group", plain * MILLI, "ms"))
    return results


def one_group() -> list[Result]:
    """Time one group per call, and one of the size at which the published code was timed."""
    alone = ktae(zipf_batch(1), KTAEConfig())
    timed = ktae(zipf_batch(1, shortest=PUBLISHED_TOKENS, longest=PUBLISHED_TOKENS), KTAEConfig())
    times = {name: alternate({"": work}, ALONE_REPETITIONS)[""] for name, work in (("a", alone), ("b", timed))}
    each, published_size = (min(times[name]) for name in ("a", "b"))
    name = f"{PUBLISHED_SECONDS * MILLI:g} ms (published code, 16 x 770 tokens, elsewhere) / this"
    return [
        Result("paper: one group in a call of its own, one core", each * MILLI, "ms", at_most=0.2),
        Result(name, PUBLISHED_SECONDS / published_size, "x", at_least=1000),
    ]


def published(batch: ZipfBatch, reference: Callable[[], object], using: type[Arithmetic]) -> float:
    """Return the published profile's seconds per group, after checking that its values equal those of `reference`."""
    ours = reference()
    assert isinstance(ours, torch.Tensor)
    times = []
    ids_BT, mask_BT, scores_B, _, base_B = (torch.from_numpy(part) for part in batch)
    for q in range(PUBLISHED_GROUPS):
        rows = slice(q * ROLLOUTS, (q + 1) * ROLLOUTS)
        group = (ids_BT[rows], mask_BT[rows], scores_B[rows] > 0, VOCABULARY, using)
        values: list[torch.Tensor] = []
        times.append(seconds(lambda group=group, values=values: values.append(published_values(*group))))
        expected = torch.where(mask_BT[rows], base_B[rows, None] + values[0], 0.0)
        difference = float((expected - ours[rows]).abs().max())
        if difference > SAME:
            raise AssertionError(f"the published profile differs from variant reference by {difference}")
    return min(times)


def paper_batch(repetitions: int) -> list[Result]:
    """Time a whole batch of the paper: 1,024 prompts of 16 rollouts."""
    batch = zipf_batch(PAPER_GROUPS)
    works = {f"{n} threads": ktae(batch, KTAEConfig(), threads=n) for n in (2, 1)}
    times = alternate(works, max(3, repetitions // 3))
    return [
        Result(f"{PAPER_GROUPS} x {ROLLOUTS} rollouts, 2 cores", min(times["2 threads"]), "s", at_most=0.3),
        Result(f"{PAPER_GROUPS} x {ROLLOUTS} rollouts, 1 core", min(times["1 threads"]), "s"),
    ]


def vocabularies(repetitions: int) -> list[Result]:
    """Time the same groups with ids spread over a vocabulary 14,000 times as large."""
    batch = zipf_batch(GROUPS)
    spread = np.random.default_rng(1).permutation(VOCABULARY).astype(np.int64) * (2**31 // VOCABULARY)
    wide = batch._replace(ids_BT=np.where(batch.mask_BT, spread[batch.ids_BT], 0))
    times = alternate({"wide": ktae(wide, KTAEConfig()), "usual": ktae(batch, KTAEConfig())}, repetitions)
    return [Result("ids spread up to 2^31 / ids below 151,936", ratio(times, "wide", "usual"), "x", at_most=1.1)]


def memory() -> list[Result]:
    """Measure the peak of extra memory per byte of input, result included."""
    results = []
    for dtype, threads in ((np.int64, 2), (np.int32, 2), (np.int32, 1)):
        batch = zipf_batch(PAPER_GROUPS // 2, dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            for n, part in enumerate(batch):
                np.save(f"{folder}/{n}.npy", part)
            peak = float(probe(MEMORY_PROBE, folder, str(threads)))
        name = f"peak extra memory a byte given ({np.dtype(dtype).name} ids, bool mask, {threads} threads)"
        results.append(Result(name, peak / batch.input_bytes, "bytes", at_most=2))
    return results


def first_call() -> list[Result]:
    """Time from importing KTAE, after torch, to the first result in a fresh process."""
    probe(FIRST_CALL_PROBE)  # the cache may be cold
    times = [float(probe(FIRST_CALL_PROBE)) for _ in range(5)]
    return [Result("first call of a process, import and compiler included", min(times), "s", at_most=1)]


def probe(code: str, *words: str) -> str:
    """Run Python code in a fresh process and return its output."""
    run = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=HERE.parent
    )
    return run.stdout.strip()


def linearity(largest: int) -> list[Result]:
    """Fit the exponent of time over tokens on one core."""
    tokens, times = [], []
    wanted = FEWEST
    while wanted <= largest:
        batch = zipf_batch(max(1, round(wanted / TOKENS_A_GROUP)), dtype=np.int32)
        tokens.append(batch.tokens)
        times.append(
            min(alternate({"": ktae(batch, KTAEConfig())}, repetitions=max(3, min(50, 30_000_000 // wanted)))[""])
        )
        wanted *= 10
    results = [
        Result(f"{count:,} tokens, one core", taken / count * 1e9, "ns/tok")
        for count, taken in zip(tokens, times, strict=True)
    ]
    exponent, _ = fitted(np.log(tokens), np.log(times))
    return [*results, Result("exponent of time over tokens", exponent, "", at_most=1.05)]


def fitted(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line."""
    slope, intercept = np.polyfit(x, y, 1)
    return float(slope), float(intercept)


if __name__ == "__main__":
    sys.exit(main())
