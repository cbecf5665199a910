"""Speed and memory limits, loose enough for a busy machine; benchmarks/ktae_speed.py measures the goals."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from openrlhf_ktae.ktae import KTAEConfig, compute_ktae_advantages, warm_up

ROOT = Path(__file__).resolve().parents[3]
FEW, MANY = 8, 80
REPETITIONS = 15

NO_COMPILER = """
from openrlhf_ktae.ktae import warm_up
warm_up()
from openrlhf_ktae.ktae.compiled import fill_groups
print(sum(fill_groups.stats.cache_hits.values()), sum(fill_groups.stats.cache_misses.values()))
"""


@pytest.fixture(scope="module")
def speed():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import ktae_speed
    finally:
        sys.path.pop(0)
    return ktae_speed


def fastest(*works):
    """Return the minimum seconds of each function, measured in turns."""
    least = [np.inf] * len(works)
    for _ in range(REPETITIONS):
        for n, work in enumerate(works):
            started = time.perf_counter()
            work()
            least[n] = min(least[n], time.perf_counter() - started)
    return least


@pytest.mark.parametrize("variant", ["paper", "reference", "calibrated"])
def test_costs_a_few_sorts_of_the_same_tokens(speed, variant):
    batch = speed.zipf_batch(FEW)
    groups = batch.groups()
    mine, floor = fastest(speed.ktae(batch, KTAEConfig(variant=variant)), lambda: [np.sort(group) for group in groups])
    assert mine < 6 * floor, "the goal is 3"


def test_hundreds_of_times_faster_than_the_published_profile_with_equal_values(speed):
    batch = speed.zipf_batch(3, shortest=30, longest=60)
    reference = speed.ktae(batch, KTAEConfig(variant="reference"))
    (mine,) = fastest(reference)
    assert speed.published(batch, reference, speed.Tensors) > 300 * mine / 3, "the goal is 1000"


def test_time_is_about_linear_in_tokens(speed):
    few, many = (speed.ktae(speed.zipf_batch(groups), KTAEConfig()) for groups in (FEW, MANY))
    least = fastest(few, many)
    assert least[1] < 20 * least[0]


def test_large_ids_cost_no_more_than_small_ones(speed):
    batch = speed.zipf_batch(FEW)
    wide = batch._replace(ids_BT=batch.ids_BT * (2**31 // speed.VOCABULARY))
    least = fastest(speed.ktae(batch, KTAEConfig()), speed.ktae(wide, KTAEConfig()))
    assert least[1] < 1.5 * least[0]


def test_extra_memory_is_at_most_twice_the_input(speed, tmp_path):
    batch = speed.zipf_batch(MANY * 2, dtype=np.int32)
    for n, part in enumerate(batch):
        np.save(tmp_path / f"{n}.npy", part)
    assert 0 < float(speed.probe(speed.MEMORY_PROBE, str(tmp_path), "2")) <= 2 * batch.input_bytes


def test_a_second_process_compiles_nothing():
    warm_up()
    run = subprocess.run([sys.executable, "-c", NO_COMPILER], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == ["1", "0"]


def test_inputs_are_not_modified():
    rng = np.random.default_rng(0)
    given = [rng.integers(0, 9, (8, 5)), rng.random((8, 5)) < 0.8, np.tile([1.0, 0.0], 4), np.zeros(8, int), np.ones(8)]
    tensors = [torch.from_numpy(part.copy()) for part in given]
    compute_ktae_advantages(*tensors)
    assert all((before == after.numpy()).all() for before, after in zip(given, tensors, strict=True))
