"""Whatever bytes a reader of outside data gets, it answers or raises its own error, in bounded time."""

from __future__ import annotations

import argparse
import gzip
import json
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from openrlhf_ktae.base.errors import BadInput, BadOption
from openrlhf_ktae.cli.config_file import config_words
from openrlhf_ktae.cli.options import build_parser
from openrlhf_ktae.cli.verify import read_rows as audited_rows
from openrlhf_ktae.compare.run_outcomes import BadRun, common_budget, outcomes, read_run
from openrlhf_ktae.data.prompt_files import UnreadableDataset, look, text_rows
from openrlhf_ktae.evaluation import benchmarks, results, stored
from openrlhf_ktae.evaluation.pairing import problem_scores
from openrlhf_ktae.figures.summary import summarize
from openrlhf_ktae.memory.model_shape import model_shape
from openrlhf_ktae.record.metrics import METRICS_FILE
from openrlhf_ktae.record.recorded import BadRecord, read_groups
from openrlhf_ktae.record.rollouts import COLUMNS, METADATA_KEY
from openrlhf_ktae.report.rescoring import rescore

EXAMPLES = 60
quick = settings(
    max_examples=EXAMPLES,
    deadline=timedelta(seconds=10),  # catches hangs, even on a busy machine
    derandomize=True,  # reproducible in CI
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
DEEP = b"[" * 100_000
NASTY = [
    b"",
    b"\n\n",
    DEEP,
    b'{"input":' + DEEP,
    b"1" * 5000,
    b'{"input": ' + b"1" * 5000 + b"}",
    b"\xff\xfe\x00",
    b'{"input": "\\ud800"}\n',
    b'{"input": NaN, "label": Infinity}\n',
    b"null\n",
    b"\x00" * 64,
    b'{"step": "a"}\n{"step": []}\n',
]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
names = st.sampled_from(
    "input label gold response benchmark id problem answer kind step verdict score hidden_size num_attention_heads "
    "rollout batch_size include eval_accuracy".split()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)
rows = st.dictionaries(names, values, max_size=8)
lines = st.lists(rows | values, max_size=6).map(lambda made: "".join(json.dumps(row) + "\n" for row in made).encode())


@st.composite
def damaged(draw, whole):
    """Draw bytes of `whole`, truncated or with some bytes changed."""
    data = bytearray(draw(whole))
    if data and draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    for _ in range(draw(st.integers(0, 4)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


texts = lines | damaged(lines) | st.sampled_from(NASTY) | st.binary(max_size=200)


def nasty(test):
    for data in NASTY:
        test = example(data=data)(test)
    return test


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def refuses(error, read):
    try:
        read()
    except error as refusal:
        assert str(refusal).strip(), "a refusal must give a reason"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".arrow"])
def test_prompt_files(suffix, folder):
    @quick
    @nasty
    @given(data=texts)
    def check(data):
        path = folder / f"prompts{suffix}"
        path.write_bytes(data)
        refuses(UnreadableDataset, lambda: look(str(path)))

    check()


@quick
@nasty
@given(data=texts)
def test_accepted_prompts_yield_golds(data, folder):
    path = folder / "golds.jsonl"
    path.write_bytes(data)
    try:
        look(str(path))
    except UnreadableDataset:
        return
    assert all(isinstance(row, dict) for row in text_rows(path))


@pytest.mark.parametrize("zipped", [False, True])
def test_stored_responses(zipped, folder):
    @quick
    @nasty
    @given(data=texts)
    def check(data):
        torn = len(data) % 2
        path = folder / ("stored.jsonl.gz" if zipped else "stored.jsonl")
        packed = gzip.compress(data, 1) if zipped else data
        path.write_bytes(packed[: len(packed) // 2] if torn else packed)
        refuses(stored.BadInput, lambda: stored.scan(path))
        wanted = {"response_key": "response", "gold_key": "gold", "reward_key": "score", "group_key": None}
        args = argparse.Namespace(file=path, golds_only=False, **wanted)
        refuses(BadInput, lambda: list(audited_rows(args)))

    check()


@quick
@nasty
@given(data=texts)
def test_benchmarks_and_graded_responses(data, folder):
    path = folder / "benchmark.jsonl"
    path.write_bytes(data)
    refuses(stored.BadInput, lambda: benchmarks.load(str(path)))
    refuses(stored.BadInput, lambda: list(results.read_rows(path)))


@quick
@nasty
@given(data=texts)
def test_record_of_a_run(data, folder):
    (folder / METRICS_FILE).write_bytes(data)

    def read():
        run = read_run(folder)
        run.series("rollout/reward_mean")
        outcomes(run, 0.5, common_budget([run]))

    refuses(BadRun, read)


@quick
@nasty
@given(data=texts)
def test_configuration_of_a_model(data, folder):
    (folder / "config.json").write_bytes(data)
    refuses(ValueError, lambda: model_shape(str(folder)))


@pytest.fixture(scope="module")
def actions():
    """Return our own options only; the host's are added at run time."""
    return build_parser()._option_string_actions


YAML = [
    b"a: [",
    b"include: 5",
    b"include: [[a]]",
    b'include: "\\0"',
    b"include: {a: b}",
    b"run: {dir: 2024-99-99}",
    b"? [a, b]\n: c",
    b"? {a: b}\n: c",
    b"a: &a {b: *a}",
    b"a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nrun: {dir: [*c, *c, *c]}",
    b"{" * 20_000,
    b"- " * 20_000,
    b"run: !!python/object/apply:os.system [echo]",
    b"run: !!binary abc",
    b"run: {verbose: " + b"1" * 5000 + b"}",
    b"\xff\xfe",
    b"run: {dir: ~, plan: null}",
    b"1: 2",
    b"~: 2",
    b"---\na: 1\n---\nb: 2",
]
trees = st.dictionaries(names | st.sampled_from(["run", "algo", "dir", "ktae"]), values, max_size=5)
configs = trees.map(lambda tree: yaml.safe_dump(tree).encode()) | lines


def test_configuration_of_a_run(folder, actions):
    @quick
    @nasty
    @given(data=configs | damaged(configs) | st.sampled_from(YAML) | st.binary(max_size=99))
    def check(data):
        path = folder / "config.yaml"
        path.write_bytes(data)
        refuses(BadOption, lambda: config_words([path], actions))

    for data in YAML:
        check = example(data=data)(check)
    check()


def recorded(rows_of_file):
    table = pa.Table.from_pylist(rows_of_file)
    about = {METADATA_KEY: json.dumps({"step": 1, "tokenizer": "t"}).encode()}
    return table.replace_schema_metadata(about)


GOOD_ROW = {
    name: {"string": "a", "float": 1.0, "int32": 1, "bool": True}.get(kind, [1]) for name, kind in COLUMNS.items()
}


@pytest.fixture(scope="module")
def whole_record(folder):
    path = folder / "whole.parquet"
    parquet.write_table(recorded([GOOD_ROW, GOOD_ROW]), path)
    assert len(list(read_groups([path]))) == 1
    return path.read_bytes()


def test_recorded_rollouts_with_changed_bytes(folder, whole_record):
    @quick
    @given(data=damaged(st.just(whole_record)) | st.binary(max_size=99))
    def check(data):
        path = folder / "damaged.parquet"
        path.write_bytes(data)
        refuses(BadRecord, lambda: list(read_groups([path])))

    check()


@quick
@given(
    column=st.sampled_from(list(COLUMNS)),
    value=st.none()
    | st.text(max_size=3)
    | st.integers(-9, 9)
    | st.floats()
    | st.lists(st.none() | st.integers(-1, 9), max_size=3)
    | st.lists(st.none() | st.floats(), min_size=1, max_size=1),
    about=st.sampled_from([b"", b"1", b"null", b"[]", b"{", DEEP, b'{"tokenizer": []}', None])
    | st.builds(
        lambda name, one: json.dumps({name: one}).encode(), st.sampled_from(["step", "special_ids", "ktae"]), values
    ),
)
def test_recorded_rollouts_of_other_types(column, value, about, folder):
    path = folder / "other.parquet"
    table = recorded([{**GOOD_ROW, column: value}])
    if about is not None:
        table = table.replace_schema_metadata({METADATA_KEY: about})
    parquet.write_table(table, path)
    refuses(BadRecord, lambda: rescore(read_groups([path]), False, {}))
    assert Path(path).exists()


GRADED = {"benchmark": "a", "id": "1", "sample": 0, "verdict": "wrong", "extracted": "4", "format": True} | {
    "characters": 5,
    "tokens": 3,
    "truncated": None,
    "gold": "4",
}


@quick
@given(
    name=st.sampled_from(list(GRADED)),
    value=values | st.just(10**400) | st.sampled_from(["correct", "\ud800", "unknown"]),
)
def test_edited_graded_responses(name, value, folder):
    path = folder / "graded.jsonl"
    path.write_text(json.dumps(GRADED) + "\n" + json.dumps({**GRADED, name: value}) + "\n")
    refuses(stored.BadInput, lambda: summarize(results.read_rows(path), {}))
    refuses(stored.BadInput, lambda: problem_scores(path, stored.Problems()))
