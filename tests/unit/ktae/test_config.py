"""Every option has an effect, is documented, and is refused when out of range."""

import ast
import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch

from openrlhf_ktae.ktae import KTAEConfig, compute_key_token_values

FIELDS = [field.name for field in dataclasses.fields(KTAEConfig)]
LIVE = [
    ("paper", "h1", 3.0),
    ("paper", "h2", 0.5),
    ("paper", "h3", 0.0),
    ("paper", "k1", 0.5),
    ("paper", "b", 0.0),
    ("paper", "fisher", "point"),
    ("paper", "term_frequency", "count"),
    ("paper", "ratio_epsilon", 0.1),
    ("paper", "correct_threshold", 0.7),
    ("paper", "scale", 3.0),
    ("paper", "value_range", 1.0),
    ("paper", "weight", 0.5),
    ("paper", "centre", True),
    ("paper", "by_failure", True),
    ("paper", "excluded_ids", (60,)),
    ("paper", "variant", "reference"),
    ("paper", "variant", "calibrated"),
    ("reference", "h1", 3.0),
    ("reference", "h2", 0.5),
    ("reference", "h3", 0.0),
    ("reference", "k1", 0.5),
    ("reference", "b", 0.0),
    ("reference", "fisher", "point"),
    ("reference", "term_frequency", "count"),
    ("reference", "ratio_epsilon", 0.1),
    ("reference", "scale", 3.0),
    ("calibrated", "h1", 3.0),
    ("calibrated", "h2", 3.0),
    ("calibrated", "h3", 0.0),
    ("calibrated", "k1", 0.5),
    ("calibrated", "b", 0.0),
    ("calibrated", "fisher", "point"),
    ("calibrated", "scale", 1.0),
    ("calibrated", "value_range", 0.5),
    ("calibrated", "p_max", 0.3),
    ("calibrated", "noise_budget", 0.002),
    ("calibrated", "centre", True),
    ("calibrated", "by_failure", True),
]


def values(config):
    rng = np.random.default_rng(0)
    rows, positions = 16, 60
    ids = rng.zipf(1.4, (rows, positions)) % 50
    scores = np.tile([1.0, 0.6, 0.0, -0.5], 4)
    right = scores > 0
    scores[14] = np.nan  # sides of unequal size: 8 and 7
    ids[right, :2], ids[right, 2] = 60, 62
    ids[~right, 0] = 61
    ids[4, 2], ids[10, 3:40] = 63, 62  # 62 also occurs many times in one wrong rollout
    mask = np.arange(positions) < np.where(right, positions - 15, positions)[:, None]
    return compute_key_token_values(ids, mask, scores, np.zeros(rows, int), config)


@pytest.mark.parametrize(("variant", "option", "value"), LIVE)
def test_changing_an_option_changes_the_values(variant, option, value):
    start = KTAEConfig(variant=variant)
    moved = dataclasses.replace(start, **{option: value})
    assert not torch.equal(values(start), values(moved))


def test_every_option_is_tested_for_an_effect():
    assert {option for _, option, _ in LIVE} == set(FIELDS)


def test_every_option_is_documented_below_its_field():
    (body,) = ast.parse(inspect.getsource(KTAEConfig)).body
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(below.value, ast.Constant), field.target.id
            assert len(below.value.value) > 20


@pytest.mark.parametrize(
    ("variant", "own"),
    [
        ("paper", {"h1": 1, "h2": 2, "h3": 1, "scale": 1, "value_range": 0.5, "ratio_epsilon": 1e-5}),
        ("reference", {"h1": 1, "h2": 1, "h3": 1, "scale": 2, "value_range": 1, "ratio_epsilon": 1e-5}),
        ("calibrated", {"h1": 1, "h2": 1, "h3": 1, "value_range": 1, "p_max": 0.1, "noise_budget": 0.01}),
    ],
)
def test_unset_options_take_the_value_of_the_variant(variant, own):
    config = KTAEConfig(variant=variant)
    resolved = config.resolved()
    assert {name: getattr(resolved, name) for name in own} == own
    assert torch.equal(values(config), values(KTAEConfig(variant=variant, **own)))
    assert resolved.resolved() == resolved


def test_the_scale_of_reference_follows_its_weights():
    assert KTAEConfig(variant="reference", h1=2.0, h2=3.0).resolved().scale == 5.0
    assert KTAEConfig(variant="reference", h1=2.0, scale=1.0).resolved().scale == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "papper"}, "variant='papper' is not one of paper, reference, calibrated: did you mean 'paper'"),
        ({"fisher": "two"}, "fisher='two' .* did you mean 'two_sided'"),
        ({"term_frequency": "counts"}, "term_frequency='counts' .* did you mean 'count'"),
        ({"h1": -0.1}, "h1=-0.1 must be a finite number of at least 0"),
        ({"h2": float("nan")}, "h2=nan must be a finite number"),
        ({"h3": "1"}, "h3='1' must be a finite number"),
        ({"k1": None}, "k1=None must be a finite number"),
        ({"k1": True}, "k1=True must be a finite number"),
        ({"b": 1.1}, "b=1.1 must be a finite number of at least 0 and at most 1"),
        ({"ratio_epsilon": 0}, "ratio_epsilon=0 must be a finite number above 0"),
        ({"scale": 0.0}, "scale=0.0 must be a finite number above 0"),
        ({"value_range": float("inf")}, "value_range=inf must be a finite number above 0"),
        ({"weight": -1}, "weight=-1 must be a finite number of at least 0"),
        ({"correct_threshold": float("nan")}, "correct_threshold=nan must be a finite number"),
        ({"centre": 1}, "centre=1 must be True or False"),
        ({"excluded_ids": (1.5,)}, r"excluded_ids=\(1.5,\) must hold integers only"),
        ({"excluded_ids": "12"}, "excluded_ids='12' must hold integers only"),
        ({"excluded_ids": 3}, "excluded_ids=3 must hold integers only"),
        ({"variant": "calibrated", "p_max": 1.5}, "p_max=1.5 must be .* above 0 and at most 1"),
        ({"variant": "calibrated", "noise_budget": 0}, "noise_budget=0 must be"),
        ({"p_max": 0.1}, "p_max=0.1 has no effect with variant='paper': leave it unset or choose calibrated"),
        ({"variant": "calibrated", "term_frequency": "count"}, "no effect .* choose paper or reference"),
        ({"variant": "reference", "h1": 0, "h2": 0}, "h1=0 and h2=0 leave K without scale"),
    ],
)
def test_bad_options_are_refused_with_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        KTAEConfig(**options)


def test_from_mapping_names_the_nearest_option():
    assert KTAEConfig.from_mapping({"h1": 2.0, "excluded_ids": [1, 2]}) == KTAEConfig(h1=2.0, excluded_ids=(1, 2))
    with pytest.raises(ValueError, match="unknown KTAE option 'centering': did you mean 'centre'"):
        KTAEConfig.from_mapping({"centering": True})


@pytest.mark.parametrize("variant", ["paper", "reference", "calibrated"])
def test_configurations_are_plain_frozen_values(variant):
    config = KTAEConfig(variant=variant, excluded_ids=[5])
    assert pickle.loads(pickle.dumps(config)) == config
    assert KTAEConfig.from_mapping(dataclasses.asdict(config)) == config
    assert hash(config) == hash(KTAEConfig(variant=variant, excluded_ids=(5,)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.h1 = 2.0
