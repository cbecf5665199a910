"""The table behind K, and the summaries of a batch."""

import dataclasses
import subprocess
import sys

import literal_ktae as literal
import numpy as np
import pytest
import torch
from ktae_batches import VARIANTS, random_batch, random_config

from openrlhf_ktae.ktae import (
    KTAEConfig,
    compute_key_token_values,
    explain_group,
    rollout_share,
)


def test_a_group_by_hand():
    ids = np.array([[5, 5, 9], [5, 7, 9], [7, 9, 0], [8, 9, 0]])
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]])
    found = explain_group(ids, mask, [1.0, 1.0, 0.0, 0.0], KTAEConfig(), special_token_ids=(8,))
    row = {int(o): u for u, o in enumerate(found.token_id)}
    counts = ("a", "b", "c", "d", "uses_correct", "uses_wrong")
    assert [int(getattr(found, name)[row[5]]) for name in counts] == [2, 0, 0, 2, 3, 0]
    assert [int(getattr(found, name)[row[7]]) for name in counts] == [1, 1, 1, 1, 1, 1]
    assert found.fisher[row[5]] == pytest.approx(1 / 3)
    assert found.association[row[5]] == pytest.approx(np.exp(-2 / 3))
    assert found.information_gain[row[5]] == 1.0
    assert found.presence[row[5]] == pytest.approx(np.pi / 2)
    assert found.value[row[5]] == pytest.approx(0.5)
    assert found.value[row[9]] == found.value[row[8]] == 0.0
    assert found.token_id[0] == 5
    assert 0 not in row


@pytest.mark.parametrize("seed", range(60))
def test_values_equal_those_in_the_advantages(seed):
    rng = np.random.default_rng(seed)
    config = dataclasses.replace(random_config(rng), weight=1.0, centre=False, by_failure=False)
    ids, mask, scores, _, _ = random_batch(rng)
    found = explain_group(ids, mask, scores, config, (3,))
    of_id = dict(zip(found.token_id.tolist(), found.value.tolist(), strict=True))
    values = compute_key_token_values(ids, mask, scores, np.zeros(len(ids), int), config, (3,)).numpy()
    known = mask & ~np.isnan(scores)[:, None]
    assert set(of_id) == set(ids[known].tolist())
    expected = np.array([of_id[o] for o in ids[known].tolist()], dtype=np.float32)
    assert (values[known] == expected).all()


@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_columns_combine_to_k(variant):
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 30, (16, 20)), rng.random((16, 20)) < 0.8
    config = KTAEConfig(variant=variant)
    found = explain_group(ids, mask, np.tile([1.0, 0.0], 8), config)
    x = found.strength * (found.presence + found.frequency)
    expected = config.number("value_range") * np.tanh(x / 2 / config.number("scale"))
    assert np.abs(found.value - expected).max() < 1e-12
    a, b = found.a.tolist(), found.b.tolist()
    gains = [literal.information_gain(*table, 8, 8) for table in zip(a, b, strict=True)]
    assert found.information_gain == pytest.approx(gains)
    assert (np.diff(found.value) <= 0).all()


@pytest.mark.parametrize("scores", [[1.0, 1.0], [np.nan, np.nan], [0.0, np.nan]])
def test_one_sided_groups_have_zero_values(scores):
    found = explain_group([[1, 2], [1, 3]], np.ones((2, 2)), scores)
    assert (found.fisher == 1).all()
    assert not found.value.any()


def test_rollout_share():
    mask = torch.ones(2, 4)
    assert rollout_share(torch.tensor([[0.3] * 4, [-0.2] * 4]), mask) == pytest.approx(1.0)
    assert rollout_share(torch.tensor([[0.3, -0.3] * 2, [0.0] * 4]), mask) == 0.0
    assert rollout_share(torch.zeros(2, 4), mask) == 0.0


def test_centring_reduces_the_rollout_share_to_zero():
    rng = np.random.default_rng(0)
    ids, mask, scores = rng.integers(0, 30, (16, 20)), np.ones((16, 20), bool), np.tile([1.0, 0.0], 8)
    plain, centred = (
        rollout_share(compute_key_token_values(ids, mask, scores, np.zeros(16, int), KTAEConfig(centre=on)), mask)
        for on in (False, True)
    )
    assert plain > 0.1
    assert centred < 1e-12


def test_importing_the_mathematics_loads_no_trainer_and_no_compiler(loaded_by):
    heavy = ("ray", "vllm", "deepspeed", "transformers", "openrlhf", "scipy", "pandas", "numba")
    assert loaded_by("import openrlhf_ktae.ktae", *heavy) == []


def test_a_first_call_loads_no_trainer():
    code = (
        "import sys, openrlhf_ktae.ktae as k\n"
        "k.warm_up()\n"
        "heavy = ['ray', 'vllm', 'deepspeed', 'transformers', 'openrlhf']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
