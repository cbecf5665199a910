"""Whatever bytes a checkpoint folder's files hold, `--resume` decides or refuses, in bounded time."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.checkpoint.resume import AUTO, check_options, decide, other_versions
from openrlhf_ktae.checkpoint.space import expected_bytes
from openrlhf_ktae.checkpoint.write import begin, commit, next_sequence, rotate

quick = settings(
    max_examples=60,
    deadline=timedelta(seconds=2),  # catches hangs
    derandomize=True,  # reproducible in CI
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
keys = st.sampled_from("version tag step sequence files about config data versions packages bytes digest torch".split())
values = st.recursive(
    scalars | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=8,
)
NASTY = [
    {"step": float("inf")},
    {"step": float("nan")},
    {"step": -1},
    {"step": True},
    {"sequence": float("inf")},
    {"sequence": 10**400},
    {"sequence": "1"},
    {"tag": 5},
    {"files": {"a": {"bytes": -1, "digest": "x"}}},
    {"files": {"a": {"bytes": float("inf"), "digest": "x"}}},
    {"files": {"../latest": {"bytes": 1, "digest": "x"}}},
    {"files": {"\ud800": {"bytes": 1, "digest": "x"}}},
    {"files": {"\0": {"bytes": 1, "digest": "x"}}},
    {"about": {"config": 5}},
    {"about": {"config": {"train": {"seed": "\ud800"}}}},
    {"about": {"data": ["data.prompt_dataset"]}},
    {"about": {"versions": []}},
    {"about": {"versions": {"packages": ["torch"]}}},
    {"about": {"versions": {"packages": {"torch": None}}}},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write one complete checkpoint, and another whose manifest tests damage."""
    made = tmp_path_factory.mktemp("checkpoints")
    for step in (2, 4):
        tag = f"global_step{step}"
        (begin(made, tag) / "_actor").mkdir()
        (made / f".writing-{tag}" / "_actor" / "latest").write_text(tag)
        commit(
            made, tag, step, {"config": {"train": {"seed": 1}}, "data": {}, "versions": {"packages": {"torch": "1"}}}
        )
    return made


@pytest.fixture(scope="module")
def manifest(root):
    return (root / "global_step4" / "manifest.json").read_text()


def go_on(root):
    decision = decide(AUTO, root)
    assert decision.checkpoint is not None
    versions = {"packages": {"torch": "2"}}
    other_versions(decision.checkpoint, versions)
    try:
        check_options(decision.checkpoint, {"train": {"seed": 2}}, {"data.prompt_dataset": "x"}, [])
    except Refusal as refusal:
        assert "--run.accept_changes" in str(refusal)
    for text in decision.lines:
        assert text
    expected_bytes(root, 1, 4, True)
    next_sequence(root)
    assert rotate(root, 9, float("inf")) == []
    assert decision.checkpoint.path.name in ("global_step2", "global_step4")


def nasty(test):
    for change in NASTY:
        test = example(change=change)(test)
    return test


@quick
@nasty
@given(change=st.dictionaries(keys, values, min_size=1, max_size=4))
def test_a_manifest_with_other_values(change, root, manifest):
    (root / "global_step4" / "manifest.json").write_text(json.dumps({**json.loads(manifest), **change}))
    go_on(root)


@pytest.mark.parametrize("where", ["config", "data", "versions", "more"])
def test_a_deeply_nested_manifest(where, root, manifest):
    tree = json.loads(manifest)
    text = json.dumps({**tree, "about": {**tree["about"], where: "HERE"}}).replace(
        '"HERE"', '{"a":' * 950 + "1" + "}" * 950
    )
    (root / "global_step4" / "manifest.json").write_text(text)
    go_on(root)


@quick
@given(data=st.data())
def test_a_manifest_with_changed_bytes(data, root, manifest):
    damaged = bytearray(manifest.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    (root / "global_step4" / "manifest.json").write_bytes(damaged[:cut] if data.draw(st.booleans()) else damaged)
    go_on(root)


SMALL = [b"", b"1" * 5000, b"9" * 4000, b"\xff", b"-5", "٣".encode(), b"1 2 3", b"a b", b"\n\n", b"0 0", b"5 1", b"1e3"]


@pytest.mark.parametrize("name", ["latest", "anew"])
def test_damaged_latest_and_anew_files(name, root, manifest):
    @quick
    @given(data=st.binary(max_size=40) | st.lists(st.integers(-9, 9), max_size=5).map(lambda n: repr(n).encode()))
    def check(data):
        (root / "global_step4" / "manifest.json").write_text(manifest)
        (root / name).write_bytes(data)
        try:
            decide(AUTO, root)
        except Refusal as refusal:
            assert str(refusal)
        rotate(root, 9, float("inf"))

    for data in SMALL:
        check = example(data=data)(check)
    check()
    (root / name).unlink()
