"""Where problems come from, and how prompts are made of them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from openrlhf_ktae.cli.eval import main
from openrlhf_ktae.evaluation.benchmarks import load, registry
from openrlhf_ktae.evaluation.templates import template

ROWS = {"aime24": 30, "amc": 83, "math500": 500, "minerva": 272, "olympiadbench": 675}


def test_every_benchmark_is_pinned():
    assert set(registry()) == set(ROWS)
    for entry in registry().values():
        assert re.fullmatch(r"[0-9a-f]{40}", entry["revision"])
        assert {"hub", "split", "rows"} <= set(entry)


@pytest.mark.parametrize("name", ROWS)
def test_the_local_suite_loads(name):
    folder = Path(os.environ.get("OPENRLHF_KTAE_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
    folder /= "eval_suite"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: the benchmarks are not part of the project")
    problems = load(name, folder)
    assert len(problems) == ROWS[name]
    assert len({problem.id for problem in problems}) == ROWS[name]


def test_templates(tmp_path):
    problem = "What is {x} + \\frac{1}{2}?"
    for name in ("qwen-math", "r1", "none"):
        assert problem in template(name, None).fill(problem)
    assert template("none", None).fill(problem) == problem
    r1 = template("r1", None)
    assert r1.fill(problem).endswith(r1.opening)
    assert r1.require_tags == ("think", "answer")
    path = tmp_path / "mine.txt"
    path.write_text("Q: {problem}\nA:")
    assert template(str(path), None).fill(problem) == f"Q: {problem}\nA:"


def test_prompts_for_training_carry_the_benchmark(tmp_path, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    (tmp_path / "tiny.jsonl").write_text(json.dumps({"problem": "1 + 1", "answer": 2}) + "\n")
    words = ["--model", "examples/quickstart/model", "--benchmarks", f"{tmp_path}/tiny.jsonl", "--template", "none"]
    assert main([*words, "--write_prompts", str(tmp_path / "eval.jsonl")]) == 0
    assert json.loads((tmp_path / "eval.jsonl").read_text()) == {"input": "1 + 1", "label": 2, "datasource": "tiny"}
    assert "1 prompts" in capsys.readouterr().out
