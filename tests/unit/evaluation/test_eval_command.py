"""`cli.eval` on stored and malformed responses, and comparing two results; needs no model."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest
from solved_problems import SOLVED
from transformers import AutoTokenizer

from openrlhf_ktae.cli.command import run_command
from openrlhf_ktae.cli.eval import main

ROWS = [
    {"benchmark": "a", "id": 1, "gold": "4", "response": "so \\boxed{4}"},
    {"benchmark": "a", "id": 1, "gold": "4", "response": "so \\boxed{5}"},
    {"benchmark": "a", "id": 2, "gold": "7", "response": "no answer"},
    {"benchmark": "a", "id": 2, "gold": "7", "response": "so \\boxed{8}"},
    {"benchmark": "b", "gold": ["1/2"], "response": "so \\boxed{\\frac{1}{2}} or \\boxed{0.5}", "problem": "half?"},
    {"benchmark": "b", "gold": 3.0, "response": "so \\boxed{3}"},
]

GRADED = {"benchmark": "a", "id": "1", "sample": 0, "gold": "4", "problem": "2 + 2", "verdict": "correct"} | {
    "extracted": "4",
    "format": True,
    "characters": 1,
}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_accuracies_of_worked_responses_match_their_labels(tmp_path):
    rows = [{"benchmark": s.topic, "id": o, "gold": s.gold, "response": s.response} for o, s in enumerate(SOLVED)]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert main(["--responses", str(tmp_path / "in.jsonl.gz"), "--output", str(tmp_path / "out")]) == 0
    graded = [json.loads(line) for line in (tmp_path / "out" / "responses.jsonl").read_text().splitlines()]
    assert [row["verdict"] == "correct" for row in graded] == [solved.right for solved in SOLVED]
    benchmarks = summary_of(tmp_path / "out")["benchmarks"]
    assert sum(benchmark["n"] for benchmark in benchmarks.values()) == len(SOLVED)
    for topic, benchmark in benchmarks.items():
        right = [solved.right for solved in SOLVED if solved.topic == topic]
        assert benchmark["accuracy"] == pytest.approx(sum(right) / len(right)), topic


def test_the_figures_of_a_small_file(tmp_path, capsys):
    responses = written(tmp_path / "in.jsonl", ROWS)
    assert main(["--responses", str(responses), "--output", str(tmp_path / "out")]) == 0
    summary = summary_of(tmp_path / "out")
    a, b = summary["benchmarks"]["a"], summary["benchmarks"]["b"]
    assert (a["n"], a["problems"], a["samples"], a["accuracy"]) == (4, 2, 2, 0.25)
    assert a["ci95"] == [0.0, 0.5]
    assert a["pass_at_k"]["2"]["value"] == 0.5
    assert a["maj_at_k"]["2"]["value"] == 0.25, "a tie of 4 and 5, and no right answer"
    assert (a["answered_rate"], a["format_rate"], a["truncated_rate"]) == (0.75, 0.75, None)
    assert (b["accuracy"], b["format_rate"]) == (1.0, 0.5), "two boxes violate the format"
    assert summary["macro"]["accuracy"] == 0.625
    assert summary["pooled"]["accuracy"] == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert summary["length_unit"] == "characters"
    assert len(summary["grader"]["hash"]) == 16
    rows = [json.loads(line) for line in (tmp_path / "out" / "responses.jsonl").read_text().splitlines()]
    assert [row["verdict"] for row in rows] == ["correct", "wrong", "wrong", "wrong", "correct", "correct"]
    assert [row["sample"] for row in rows] == [0, 1, 0, 1, 0, 0]
    table = (tmp_path / "out" / "summary.md").read_text()
    assert "| a | 2 | 4 | 25.0 [0.0, 50.0] | 50.0" in table
    assert table in capsys.readouterr().out


def test_a_killed_evaluation_resumes(tmp_path):
    responses = written(tmp_path / "in.jsonl", ROWS)
    words = ["--responses", str(responses), "--output"]
    main([*words, str(tmp_path / "whole")])
    main([*words, str(tmp_path / "killed")])
    path = tmp_path / "killed" / "responses.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    marked = json.dumps({**json.loads(lines[0]), "reason": "kept"}) + "\n"
    path.write_text(marked + "".join(lines[1:3]) + lines[3][:30])
    assert main([*words, str(tmp_path / "killed")]) == 0
    again = path.read_text().splitlines(keepends=True)
    assert again == [marked, *lines[1:]], "only the torn line and those after it are graded again"
    assert summary_of(tmp_path / "killed") == summary_of(tmp_path / "whole")


def test_results_of_other_settings_are_not_mixed(tmp_path, capsys):
    responses = written(tmp_path / "in.jsonl", ROWS)
    words = ["--responses", str(responses), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    written(responses, ROWS[:4])
    assert main(words) == 2
    assert "other settings" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert summary_of(tmp_path / "out")["pooled"]["n"] == 4


def test_an_evaluation_can_be_regraded(tmp_path):
    responses = written(tmp_path / "in.jsonl", ROWS)
    main(["--responses", str(responses), "--output", str(tmp_path / "first")])
    main(["--responses", str(tmp_path / "first" / "responses.jsonl"), "--output", str(tmp_path / "second")])
    assert summary_of(tmp_path / "second")["benchmarks"] == summary_of(tmp_path / "first")["benchmarks"]


MALFORMED = {
    "missing column": ('{"benchmark": "a", "gold": "1"}\n', "line 1 has no response; it has benchmark, gold"),
    "later line": (json.dumps(ROWS[0]) + '\n{"gold": "1"}\n', "line 2 has no benchmark, response"),
    "cut off": (json.dumps(ROWS[0]) + '\n{"benchmark": "a", "go', "line 2 is not a JSON object"),
    "not an object": ("[1]\n", "line 1 is '[1]', not a JSON object"),
    "no text": ('{"benchmark": "a", "gold": "1", "response": null}\n', "response is 'None'; give a text"),
    "no gold": ('{"benchmark": "a", "gold": null, "response": "1"}\n', "gold is 'None'"),
    "empty": ("", "is empty"),
    "binary": ("\x00\x01", "line 1 is not a JSON object"),
    "lone surrogate in a response": (json.dumps({**ROWS[0], "response": "\ud800"}), r"unpaired surrogate ('\ud800')"),
    "lone surrogate in an id": (json.dumps({**ROWS[0], "id": "\ud800"}), "line 1 has an unpaired surrogate"),
    "lone surrogate in a name": (json.dumps({**ROWS[0], "benchmark": "\ud800"}), "line 1 has an unpaired surrogate"),
    "too many tokens": (json.dumps({**ROWS[0], "tokens": 10**400}), "tokens is 1000"),
    "fewer than no tokens": (json.dumps({**ROWS[0], "tokens": -1}), "tokens is -1"),
    "another gold": (
        json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[0], "gold": "5"}),
        "benchmark 'a', id '1': two rows have different golds",
    ),
    "another problem": (
        "".join(json.dumps({**ROWS[0], "problem": text}) + "\n" for text in ("x", "y")),
        "benchmark 'a', id '1': two rows have different problems",
    ),
}


def test_equal_golds_written_differently_and_surrogate_pairs_are_accepted(tmp_path):
    golds = ["3", 3, 3.0, ["3"], 3]
    text = "".join(json.dumps({**ROWS[0], "gold": gold, "response": "\U0001d54f 3"}) + "\n" for gold in golds)
    assert "\\ud835" in text
    (tmp_path / "in.jsonl").write_text(text)
    assert main(["--responses", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")]) == 0
    assert summary_of(tmp_path / "out")["benchmarks"]["a"]["samples"] == 5


@pytest.mark.parametrize(("text", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_responses_give_one_message(text, message, tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    assert main(["--responses", str(path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_truncated_gzip_gives_one_message(tmp_path, capsys):
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS * 50).encode())[:-20])
    assert main(["--responses", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "may be truncated" in capsys.readouterr().err


REFUSED = {
    "": "give one of --model, --responses and --compare (found none)",
    "--responses {tmp}/none.jsonl": "no such file",
    "--responses a --compare b c": "found responses, compare",
    "--model m": "give --benchmarks too",
    "--model m --benchmarks a --samples 4": "all would be equal at --temperature 0; give a temperature above",
    "--model m --benchmarks a --samples 0": "at least 1",
    "--model m --benchmarks a --top_p 0": "--top_p 0.0",
    "--model m --benchmarks nothing": "not one of aime24, amc, math500, minerva, olympiadbench",
    "--model m --benchmarks a --benchmark_dir {tmp}/none": "no such folder",
    "--model m --benchmarks {tmp}/few.jsonl,{tmp}/few.jsonl": "the same name",
    "--model m --benchmarks {tmp}/nocolumn.jsonl": "has none of answer, final_answer",
    "--model {tmp}/none --benchmarks {tmp}/few.jsonl": "none: no tokenizer",
    "{model} --template {tmp}/none.txt": "choose one of qwen-math",
    "{model} --template {tmp}/few.jsonl": "write it where the problem goes",
    "{model} --template chat": "no chat template",
    "{model} --template none --max_new_tokens 99999": "give at most",
    "{model} --template none --max_model_len 2": "--max_model_len 2: the shortest prompt has",
    "--compare {tmp} {tmp}": "give a folder written by --output",
    "--responses {tmp}/few.jsonl --verifier.workers 0": "--verifier.",
    "--no_such_option": "--no_such_option",
    "--responses {tmp}/few.jsonl --benchmarks a": "--benchmarks a: has no effect with --responses; leave it out",
    "--responses {tmp}/few.jsonl --template r1": "--template r1: has no effect with --responses",
    "--responses {tmp}/few.jsonl --samples 1": "--samples 1: has no effect with --responses",
    "--responses {tmp}/few.jsonl --temperature=0": "--temperature 0.0: has no effect with --responses",
    "--responses {tmp}/few.jsonl --max_new_tokens 9": "--max_new_tokens 9: has no effect with --responses",
    "--responses {tmp}/few.jsonl --stop a b": "--stop a b: has no effect with --responses",
    "--responses {tmp}/few.jsonl --engines 2": "--engines 2: has no effect with --responses",
    "--compare a b --limit 4": "--limit 4: has no effect with --compare",
    "--compare a b --verifier.workers 1": "--verifier.workers 1: has no effect with --compare",
    "--write_prompts {tmp}/p --benchmarks a --top_p 1": "--top_p 1.0: has no effect with --write_prompts",
    "--responses {tmp}/one.jsonl --output {tmp}/few.jsonl": "few.jsonl is a file; give a folder",
    "--responses {tmp}/one.jsonl --output {tmp}/few.jsonl/a/b": "few.jsonl is a file; give a folder",
    "--compare {tmp}/right {tmp}/right --output {tmp}/few.jsonl/a": "few.jsonl is a file; give a folder",
    "--write_prompts {tmp}/few.jsonl/p --benchmarks {tmp}/few.jsonl": "few.jsonl is a file; give a folder",
    "--write_prompts {tmp} --benchmarks {tmp}/few.jsonl": "Is a directory",
    "{model} --template {tmp}/binary.txt": "binary.txt: cannot be read",
    "--model {tmp}/no_config --benchmarks {tmp}/few.jsonl": "no_config: no model",
    "--compare {tmp}/right {tmp}/list": "line 1 is not a graded response (id is [1])",
    "--compare {tmp}/right {tmp}/other_gold": "benchmark 'a', id '1': its gold differs",
    "--compare {tmp}/right {tmp}/other_problem": "benchmark 'a', id '1': its problem differs",
}


@pytest.mark.parametrize(("words", "message"), REFUSED.items(), ids=REFUSED)
def test_refused(words, message, tmp_path, capsys, monkeypatch, root):
    monkeypatch.chdir(root)
    written(tmp_path / "few.jsonl", [{"problem": "1 + 1", "answer": "2"}])
    written(tmp_path / "nocolumn.jsonl", [{"problem": "1 + 1"}])
    written(tmp_path / "one.jsonl", ROWS[:1])
    (tmp_path / "binary.txt").write_bytes(b"\xff{problem}")
    shutil.copytree("examples/quickstart/model", tmp_path / "no_config", ignore=shutil.ignore_patterns("config.json"))
    others = {"right": {}, "list": {"id": [1]}, "other_gold": {"gold": "5"}, "other_problem": {"problem": "2 + 1"}}
    for name, change in others.items():
        (tmp_path / name).mkdir()
        written(tmp_path / name / "responses.jsonl", [{**GRADED, **change}])
    words = words.replace("{model}", "--model examples/quickstart/model --benchmarks {tmp}/few.jsonl")
    argv = words.replace("{tmp}", str(tmp_path)).split()
    assert main([*argv, *([] if "--output" in argv else ["--output", str(tmp_path / "out")])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_compare_two_results(tmp_path, capsys):
    right, wrong = "so \\boxed{4}", "so \\boxed{5}"
    base = [{"benchmark": name, "id": i, "gold": "4"} for name in "ab" for i in range(20)]
    first = [{**row, "response": right if row["id"] < 8 else wrong} for row in base]
    second = [{**row, "response": right if row["id"] < 14 else wrong} for row in base[:-1]]
    for name, rows in (("first", first), ("second", second)):
        main(["--responses", str(written(tmp_path / f"{name}.jsonl", rows)), "--output", str(tmp_path / name)])
    capsys.readouterr()
    folders = [str(tmp_path / "first"), str(tmp_path / "second")]
    assert main(["--compare", *folders, "--output", str(tmp_path / "cmp")]) == 0
    comparison = json.loads((tmp_path / "cmp" / "comparison.json").read_text())
    assert (comparison["only_in_first"], comparison["only_in_second"]) == (1, 0)
    a = comparison["benchmarks"]["a"]
    assert (a["difference"], a["only_second_right"], a["test"]) == (pytest.approx(0.3), 6, "McNemar, exact")
    assert a["p"] == pytest.approx(2 / 2**6)
    assert a["p_holm"] == pytest.approx(4 / 2**6)
    assert comparison["pooled"]["p"] == pytest.approx(2 / 2**12)
    assert capsys.readouterr().out == (tmp_path / "cmp" / "comparison.md").read_text()


def test_compare_two_results_of_several_samples(tmp_path, capsys):
    """5 of 30 problems differ, all in one direction, so 2 of the 2^5 sign patterns have a mean at least as large."""
    right, wrong = "so \\boxed{4}", "so \\boxed{5}"
    base = [{"benchmark": "a", "id": i, "gold": "4", "response": wrong} for i in range(30) for _ in range(2)]
    better = [{**row, "response": right if number < 10 and number % 2 else wrong} for number, row in enumerate(base)]
    for name, rows in (("first", base), ("second", better)):
        main(["--responses", str(written(tmp_path / f"{name}.jsonl", rows)), "--output", str(tmp_path / name)])
    folders = [str(tmp_path / "first"), str(tmp_path / "second")]
    assert main(["--compare", *folders, "--output", str(tmp_path / "cmp")]) == 0
    a = json.loads((tmp_path / "cmp" / "comparison.json").read_text())["benchmarks"]["a"]
    assert (a["p"], a["test"]) == (pytest.approx(2 / 2**5), "sign flips")
    assert a["ci95"][0] > 0


def test_results_of_different_graders_are_compared_with_a_warning(tmp_path, capsys):
    responses = written(tmp_path / "in.jsonl", ROWS)
    for name in ("first", "second"):
        main(["--responses", str(responses), "--output", str(tmp_path / name)])
    folders = [str(tmp_path / "first"), str(tmp_path / "second")]
    capsys.readouterr()
    assert main(["--compare", *folders]) == 0
    assert "WARNING" not in capsys.readouterr().out
    path = tmp_path / "second" / "settings.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())["grader"]["hash"], "0123"))
    assert main(["--compare", *folders]) == 0
    shown = capsys.readouterr().out
    assert "WARNING: judged by different graders (hash " in shown
    assert "and 0123)" in shown


def test_lengths_are_in_tokens_of_the_given_tokenizer(tmp_path, root):
    responses = written(tmp_path / "in.jsonl", [{**ROWS[0], "response": "1+2=3", "tokens": 77}])
    words = ["--responses", str(responses), "--output"]
    model = root / "examples/quickstart/model"
    assert main([*words, str(tmp_path / "with"), "--tokenizer", str(model)]) == 0
    assert main([*words, str(tmp_path / "without")]) == 0
    tokens = len(AutoTokenizer.from_pretrained(model).encode("1+2=3", add_special_tokens=False))
    lengths = [summary_of(tmp_path / name)["pooled"]["response_length_mean"] for name in ("with", "without")]
    assert lengths == [tokens, 77]


def test_prompts_are_written_into_a_new_folder(tmp_path):
    problems = written(tmp_path / "few.jsonl", [{"problem": "1 + 1", "answer": "2"}])
    assert main(["--benchmarks", str(problems), "--write_prompts", str(tmp_path / "new" / "p.jsonl")]) == 0
    assert (tmp_path / "new" / "p.jsonl").is_file()


def test_a_missing_file_gives_one_line(capsys):
    def no_space(argv):
        raise OSError(28, "No space left\non device", "results/responses.jsonl")

    assert run_command(no_space, []) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'results/responses.jsonl'\n"
