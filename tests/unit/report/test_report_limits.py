"""Unusable input gives a one-line message; large content is split, and no file exceeds 3 MB."""

from __future__ import annotations

import json
from random import Random

import pytest
from recorded_groups import group
from test_credit_page import parsed, steps_of, to_file

from openrlhf_ktae.cli.report import main
from openrlhf_ktae.record.metrics import RunRecord
from openrlhf_ktae.report import credit_page
from openrlhf_ktae.report.credit_page import MAX_BYTES, write_credit_pages

SMALL = 300_000


@pytest.fixture
def small_pages(monkeypatch):
    """Limit pages to a tenth, so that a tenth of the content tests the limit."""
    monkeypatch.setattr(credit_page, "MAX_BYTES", SMALL)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_sizes_are_counted_in_bytes_not_characters(tmp_path):
    random = Random(0)
    rows = []
    for problem in range(30):
        for sample in range(8):
            clauses = ("".join(chr(0x4E00 + random.randrange(20_000)) for _ in range(24)) for _ in range(56))
            rows.append(
                {"benchmark": "a", "id": problem, "gold": "7", "response": "，".join(clauses), "score": sample % 2}
            )
    assert main(["--responses", str(jsonl(tmp_path / "in.jsonl", rows)), "--output", str(tmp_path / "out")]) == 0
    pages = list((tmp_path / "out").iterdir())
    assert max(page.stat().st_size for page in pages) <= MAX_BYTES
    assert len(pages) > 1
    assert sum(len(parsed(page)[1]["groups"]) for page in pages) == 30


@pytest.mark.usefixtures("small_pages")
def test_sizes_include_the_top_tokens_of_many_steps(tmp_path):
    rollouts = [(i % 2, [f"{'right' if i % 2 else 'wrong'}{k:02d}" for k in range(12)]) for i in range(8)]
    pages = write_credit_pages((group(rollouts, step) for step in range(150)), tmp_path, "steps")
    assert max(page.stat().st_size for page in pages) <= SMALL
    shown = [parsed(page)[1] for page in pages]
    assert sum(len(data["groups"]) for data in shown) == 150
    for data in shown:
        assert {one["step"] for one in data["groups"]} == {int(step) for step in data["tops"]}


@pytest.mark.usefixtures("small_pages")
def test_a_rollout_longer_than_a_page_is_cut(tmp_path):
    words = [f" word{i}" for i in range(6_000)]
    one = group([(1, words), (0, [" no", " word7"])])
    one.rows[0]["action"][5_999] = False
    pages = write_credit_pages([one], tmp_path, "long")
    assert max(page.stat().st_size for page in pages) <= SMALL
    parts = [part for page in pages for part in parsed(page)[1]["groups"]]
    pieces = [(part, rollout) for part in parts for rollout in part["rollouts"] if rollout["number"] == 1]
    assert [rollout["start"] for _, rollout in pieces][:1] == [0]
    assert [part["texts"][ref] for part, rollout in pieces for ref in rollout["refs"]] == words
    assert [rollout["start"] + place for _, rollout in pieces for place in rollout["skipped"]] == [5_999]
    assert {rollout["tokens"] for _, rollout in pieces} == {6_000}
    assert all(part["cut"] and part["size"] == 2 for part, _ in pieces)
    for part in parts:
        assert len(part["ids"]) == len(part["counts"]) == len(part["variants"]["paper"]["measures"])


def test_a_very_long_word_is_cut(tmp_path):
    row = {"benchmark": "a", "gold": "7", "response": "x" * 4_000_000, "score": 1, "problem": "y" * 4_000_000}
    assert main(["--responses", str(jsonl(tmp_path / "in.jsonl", [row])), "--output", str(tmp_path / "out")]) == 0
    assert max(page.stat().st_size for page in (tmp_path / "out").iterdir()) <= MAX_BYTES


def test_a_recorded_token_beyond_a_page_is_refused(tmp_path, capsys):
    to_file(group([(1, ["x" * 4_000_000]), (0, ["y"])]), tmp_path / "rollouts")
    refused([str(tmp_path)], "one token of rollout 1", capsys)


def test_links_escape_special_characters_of_names(tmp_path, monkeypatch):
    monkeypatch.setattr("openrlhf_ktae.report.credit_page.MAX_BYTES", 200_000)
    one = group([(i % 2, [f" word{k}" for k in range(900)]) for i in range(2)])
    pages = write_credit_pages([one], tmp_path, "t", name="tokens-a#b?c%20")
    assert parsed(pages[0])[1]["files"][1] == "tokens-a%23b%3Fc%2520-2.html"


def refused(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "1e308", str(10**400), '"good"', "[1]"])
def test_unusable_scores_are_refused(score, tmp_path, capsys):
    row = '{"benchmark": "a", "id": 1, "gold": "7", "response": "7", "score": %s}\n'
    (tmp_path / "in.jsonl").write_text(row % 1 + row % score)
    refused(["--responses", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")], "response 2: score", capsys)


def test_unknown_verdict_names_are_refused(tmp_path, capsys):
    row = {"benchmark": "a", "gold": "7", "response": "7", "verdict": "maybe"}
    words = ["--responses", str(jsonl(tmp_path / "in.jsonl", [row])), "--output", str(tmp_path / "out")]
    refused(words, "verdict is 'maybe'", capsys)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_advantages_are_refused(value, tmp_path, capsys):
    one = group([(1, [" a"]), (0, [" b"])])
    one.rows[1]["advantages_without_k"] = [value]
    to_file(one, tmp_path / "rollouts")
    refused([str(tmp_path)], "step", capsys)


def test_infinite_scores_are_refused(tmp_path, capsys):
    to_file(group([(float("inf"), [" a"]), (0, [" b"])]), tmp_path / "rollouts")
    refused([str(tmp_path)], "inf", capsys)


WORDS = {
    "in an evaluation": {"kind": "eval", "when": "during", "step": 1, "eval_accuracy": "high"},
    "in an interval": {"kind": "eval", "when": "during", "step": 1, "eval_accuracy": 0.5, "eval_accuracy_low": "low"},
    "in a step": {"kind": "step", "step": 4, "rollout/reward_mean": "good"},
    "in a time": {"kind": "step", "step": 4, "timing/step_total": [1]},
}


@pytest.mark.parametrize("row", WORDS.values(), ids=WORDS)
def test_words_in_place_of_numbers_are_refused(row, tmp_path, capsys):
    with (steps_of(tmp_path / "run") / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    refused([str(tmp_path / "run")], "not a number", capsys)


@pytest.mark.parametrize("where", ["file", "file/below", "file/below/it"])
def test_an_output_that_is_a_file_is_refused(where, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    refused([str(steps_of(tmp_path / "run")), "--output", str(tmp_path / where)], "is a file; give a folder", capsys)
    row = {"benchmark": "a", "gold": "7", "response": "7", "score": 1}
    words = ["--responses", str(jsonl(tmp_path / "in.jsonl", [row])), "--output", str(tmp_path / where)]
    refused(words, "is a file; give a folder", capsys)


def test_a_folder_in_place_of_a_page_is_refused(tmp_path, capsys):
    (tmp_path / "out" / "runs.html").mkdir(parents=True)
    refused([str(steps_of(tmp_path / "run")), "--output", str(tmp_path / "out")], "cannot be written", capsys)


def test_a_run_whose_evaluation_metric_is_nan(tmp_path):
    RunRecord(steps_of(tmp_path / "run")).evaluation("during", 2, {"eval_accuracy": float("nan")})
    assert main([str(tmp_path / "run")]) == 0
