"""Loading benchmarks and building their prompts."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import yaml
from solved_problems import GOLDS

from openrlhf_ktae.cli.eval import main
from openrlhf_ktae.data.templates import template
from openrlhf_ktae.evaluation.benchmarks import load, registry
from openrlhf_ktae.verifier.formats import opening_of

ROWS = {"aime24": 30, "amc": 83, "math500": 500, "minerva": 272, "olympiadbench": 675}


def test_every_benchmark_is_pinned():
    assert set(registry()) == set(ROWS)
    for entry in registry().values():
        assert re.fullmatch(r"[0-9a-f]{40}", entry["revision"])
        assert {"hub", "split", "rows"} <= set(entry)


@pytest.mark.parametrize("name", ROWS)
def test_files_of_the_benchmarks_size_load(name, tmp_path):
    """Uses the data sets' own column names, and golds of every kind."""
    golds = itertools.cycle(gold for kind in GOLDS.values() for gold in kind)
    problem, answer = (registry()[name].get(column, column) for column in ("problem", "answer"))
    rows = [{problem: f"Problem {o}", answer: next(golds), "difficulty": 2.0} for o in range(ROWS[name])]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = load(name, tmp_path)
    assert [found.problem for found in problems] == [row[problem] for row in rows]
    assert [found.gold for found in problems] == [json.loads(json.dumps(row[answer])) for row in rows]
    assert len({found.id for found in problems}) == ROWS[name]


def test_templates(tmp_path):
    problem = "What is {x} + \\frac{1}{2}?"
    for name in ("qwen-math", "r1", "none"):
        assert problem in template(name, None).fill(problem)
    assert template("none", None).fill(problem) == problem
    r1 = template("r1", None)
    assert opening_of(r1.fill(problem)) == "<think>"
    assert r1.require_tags == ("think", "answer")
    path = tmp_path / "mine.txt"
    path.write_text("Q: {problem}\nA:")
    assert template(str(path), None).fill(problem) == f"Q: {problem}\nA:"


def write_prompts(folder, *words):
    (folder / "tiny.jsonl").write_text(json.dumps({"problem": "1 + {1}", "answer": 2}) + "\n")
    out = folder / "eval.jsonl"
    assert main(["--benchmarks", str(folder / "tiny.jsonl"), "--write_prompts", str(out), *words]) == 0
    return json.loads(out.read_text())


def test_prompts_for_training_are_the_problems_with_their_benchmark(tmp_path, capsys):
    assert write_prompts(tmp_path) == {"input": "1 + {1}", "label": 2, "datasource": "tiny"}
    assert "1 prompts" in capsys.readouterr().out


def test_training_applies_the_template_once_like_the_evaluation(tmp_path, root):
    row = write_prompts(tmp_path)
    training = yaml.safe_load((root / "configs/base/math.yaml").read_text())["data"]["input_template"]
    assert training.format(row["input"]) == template("qwen-math", None).fill("1 + {1}")


@pytest.mark.parametrize("name", ["qwen-math", "r1", "none"])
def test_prompts_for_training_contain_a_requested_template(name, tmp_path):
    assert write_prompts(tmp_path, "--template", name)["input"] == template(name, None).fill("1 + {1}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--write_prompts out.jsonl", "--write_prompts out.jsonl: give --benchmarks too"),
        ("--write_prompts out.jsonl --benchmarks math500 --responses r.jsonl", "leave out --responses"),
        ("--write_prompts out.jsonl --benchmarks math500 --compare a b", "leave out --compare"),
        (
            "--write_prompts out.jsonl --benchmarks {tmp}/tiny.jsonl --template chat",
            "--template chat: give --model too",
        ),
    ],
)
def test_prompts_for_training_are_refused(words, message, tmp_path, capsys):
    (tmp_path / "tiny.jsonl").write_text(json.dumps({"problem": "1 + 1", "answer": 2}) + "\n")
    assert main(words.replace("{tmp}", str(tmp_path)).split()) == 2
    assert message in capsys.readouterr().err
