"""The two seeded task generators: reproducible bytes, no overlap, right labels, light imports."""

import json
import re
import subprocess
import sys
import time

import pytest

TASKS = ["quickstart/make_task.py", "word_problems/make_task.py"]
HEAVY = ("torch", "transformers", "numpy", "datasets")


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(params=TASKS)
def task(request, load_example):
    return load_example(request.param)


def write(task, folder, seed=0, n_train=400, n_heldout=100):
    task.write_task(folder, seed=seed, n_train=n_train, n_heldout=n_heldout)
    return [(folder / f"{name}.jsonl").read_bytes() for name in ("train", "heldout")]


def test_same_seed_same_bytes_and_another_seed_another_task(task, tmp_path):
    first = write(task, tmp_path / "a")
    assert first == write(task, tmp_path / "b")
    assert first != write(task, tmp_path / "c", seed=1)


def test_sizes_columns_and_no_overlap(task, tmp_path):
    write(task, tmp_path)
    train, heldout = rows_of(tmp_path, "train"), rows_of(tmp_path, "heldout")
    assert (len(train), len(heldout)) == (400, 100)
    assert all(set(row) == {"input", "label", "datasource"} for row in train + heldout)
    assert len({row["input"] for row in train + heldout}) == 500


def test_labels_of_chains_by_evaluation(load_example, tmp_path):
    write(load_example(TASKS[0]), tmp_path, n_train=2000)
    for row in rows_of(tmp_path, "train") + rows_of(tmp_path, "heldout"):
        words = row["input"].split()
        assert words[0] == "compute" and words[-1] == ":"
        value = int(words[1])
        for sign, number in zip(words[2:-1:2], words[3:-1:2], strict=True):
            value += int(number) if sign == "+" else -int(number)
            assert 0 <= value <= 49  # the tokenizer has a token for each number
        assert row["label"] == str(value)


def test_labels_of_word_problems_by_reading(load_example, tmp_path):
    write(load_example(TASKS[1]), tmp_path, n_train=1000)
    for row in rows_of(tmp_path, "train") + rows_of(tmp_path, "heldout"):
        question = row["input"].rsplit("<|im_start|>user\n", 1)[1].split("<|im_end|>")[0]
        first, second = map(int, re.findall(r"\d+", question))
        value = first + second if "gets" in question else first - second
        assert row["label"] == str(value) and value >= 1


def test_worked_examples_are_right_and_not_problems(load_example):
    task = load_example(TASKS[1])
    for asked, worked, answer in task.EXAMPLES:
        left, right = worked.split(" = ")
        first, sign, second = left.split()
        assert answer == right == str(int(first) + int(second) * (1 if sign == "+" else -1))
        assert asked.split()[0] not in task.NAMES


def test_committed_files_match_the_generator(load_example, examples, tmp_path):
    load_example(TASKS[0]).write_task(tmp_path, seed=0, n_train=3200, n_heldout=200)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (examples / "quickstart/data" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", TASKS)
def test_command_is_quick_and_light(name, examples, tmp_path):
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code, str(examples / name), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - started < 5  # 0.2 s on an idle core, including the interpreter's start
    assert len(rows_of(tmp_path, "heldout")) == 200
