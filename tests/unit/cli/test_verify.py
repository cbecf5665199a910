"""The audit command: tables, findings, exit codes, and one message per file that cannot be audited."""

from __future__ import annotations

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from openrlhf_ktae.cli.verify import main

RIGHT = {"gold": r"\frac{1}{2}", "response": r"\boxed{0.5}", "reward": 1.0, "set": "a"}
WRONG = {"gold": "7", "response": r"\boxed{8}", "reward": 0.0, "set": "b"}
DIFFERS = {"gold": "1,2", "response": r"\boxed{2, 1}", "reward": 0.0, "set": "b"}
UNREADABLE = {"gold": "(3,", "response": r"\boxed{77}", "reward": 0.0, "set": "a"}


@pytest.fixture
def audit(tmp_path, monkeypatch, capsys):
    """Write rows to a file and run the command on it; return (exit code, output, findings)."""
    monkeypatch.chdir(tmp_path)

    def run(rows, *options, name="rows.jsonl"):
        path = tmp_path / name
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        elif name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        elif rows is not None:
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        code = main([str(path), "--verifier.workers", "1", *options])
        printed = capsys.readouterr()
        found = tmp_path / "rows.audit.jsonl"
        findings = [json.loads(line) for line in found.read_text().splitlines()] if found.exists() else []
        return code, printed.out + printed.err, findings

    return run


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_agreement_passes(audit, name):
    code, output, findings = audit([RIGHT, WRONG], "--reward_key", "reward", "--group_key", "set", name=name)
    assert (code, findings) == (0, [])
    lines = [line.split() for line in output.splitlines()]
    assert ["all", "2", "1", "1", "0", "50.0%", "50.0%", "0"] in lines
    assert ["a", "1", "1", "0", "0", "100.0%", "100.0%", "0"] in lines


def test_disagreement_with_the_stored_reward_is_found_and_fails(audit):
    code, output, findings = audit([RIGHT, WRONG, DIFFERS], "--reward_key", "reward")
    assert code == 1
    assert "disagreement 33.33% is above 5.00% (--max_disagreement)" in output
    (finding,) = findings
    assert (finding["finding"], finding["line"], finding["status"], finding["stored"]) == (
        "disagrees with stored",
        3,
        "correct",
        False,
    )
    assert audit([RIGHT, WRONG, DIFFERS], "--reward_key", "reward", "--max_disagreement", "0.5")[0] == 0


def test_second_grader_is_the_hosts_own(audit):
    code, output, findings = audit([RIGHT, WRONG, DIFFERS], "--second", "host")
    assert code == 1
    assert [finding["finding"] for finding in findings] == ["disagrees with second"]
    assert "line 3: disagrees with second: correct (same value), gold '1,2', answer '2, 1'" in output


def test_second_grader_that_hangs_costs_its_limit(audit):
    """The host's grader evaluates this power tower for hours."""
    tower = {"gold": "5", "response": r"\boxed{9^{9^{9^9}}}"}
    code, _, findings = audit(
        [tower, WRONG], "--second", "host", "--verifier.timeout_s", "0.5", "--verifier.cpu_s", "0.2"
    )
    assert (code, findings) == (0, [])


def test_math_verify_as_second_grader(audit):
    tiny = {"gold": r"8.2 \times 10^{-19}", "response": r"\boxed{8.5 \times 10^{-19}}"}
    _, _, findings = audit([RIGHT, tiny], "--second", "math-verify")
    assert [(finding["line"], finding["status"], finding["second"]) for finding in findings] == [(2, "wrong", True)]


def test_golds_are_checked_against_themselves(audit):
    code, output, findings = audit([RIGHT, {**WRONG, "gold": ""}], "--golds_only")
    assert code == 1
    assert "gold_failure 50.00% is above 1.00%" in output
    assert findings == [{"finding": "gold", "line": 2, "gold": "", "reason": "there is no gold"}]


def test_gold_matched_only_by_its_own_text_is_listed(audit):
    code, output, findings = audit([UNREADABLE], "--golds_only")
    assert code == 0
    assert "1 distinct, 0 fail against themselves, 1 can only be compared as text" in output
    assert findings[0]["reason"] == "only its own text is correct: gold unreadable"


def test_unknown_verdicts_fail_above_their_share(audit):
    code, output, findings = audit([RIGHT, UNREADABLE])
    assert code == 1
    assert "unknown 50.00% is above 1.00% (--max_unknown)" in output
    assert "unknown" in [finding["finding"] for finding in findings]
    assert audit([RIGHT, UNREADABLE], "--max_unknown", "0.5")[0] == 0


def test_nested_columns_and_golds_of_any_kind(audit):
    rows = [
        {"reward_model": {"ground_truth": 0.5}, "out": r"\boxed{\frac{1}{2}}"},
        {"reward_model": {"ground_truth": 3.0}, "out": r"\boxed{3}"},
    ]
    options = ("--gold_key", "reward_model.ground_truth", "--response_key", "out")
    for name in ("rows.jsonl", "rows.parquet"):
        code, output, _ = audit(rows, *options, name=name)
        assert code == 0 and "100.0%" in output
    assert audit([{"gold": ["5", "6"], "response": r"\boxed{6}"}], name="rows.parquet")[0] == 0


@pytest.mark.parametrize(
    ("rows", "options", "name", "message"),
    [
        (None, (), "rows.jsonl", "no such file"),
        (b"", (), "rows.jsonl", "has no rows"),
        (b'{"gold": 1,', (), "rows.jsonl", "line 1: not JSON"),
        (b"[1]\n", (), "rows.jsonl", "line 1: not a JSON object"),
        (b"\xff\xfe", (), "rows.jsonl", "cannot be read"),
        (b"not gzip", (), "rows.jsonl.gz", "cannot be read"),
        (gzip.compress(b'{"gold": 1}', mtime=0)[:-9], (), "rows.jsonl.gz", "cannot be read"),
        (b"not parquet", (), "rows.parquet", "not a parquet file"),
        (
            [{"answer": "5", "response": ""}],
            (),
            "rows.jsonl",
            "no column 'gold'; columns are answer, response. Use --gold_key",
        ),
        (
            [{"gold": "5", "text": ""}],
            (),
            "rows.jsonl",
            "no column 'response'; columns are gold, text. Use --response_key",
        ),
        ([RIGHT], ("--reward_key", "score"), "rows.jsonl", "no column 'score'"),
        ([RIGHT], ("--reward_key", "set"), "rows.jsonl", "set is 'a', not a number"),
        ([{"gold": "5", "response": 5}], (), "rows.jsonl", "response is 5, not a text"),
        ([RIGHT], ("--output", "no/such/folder/x"), "rows.jsonl", "cannot be written"),
        ([RIGHT], ("--verifier.timeout_s", "0"), "rows.jsonl", "--verifier.timeout_s 0.0: is out of range"),
    ],
)
def test_unusable_input_gives_one_message_and_exit_code_2(audit, rows, options, name, message):
    code, output, _ = audit(rows, *options, name=name)
    assert code == 2
    assert message in output
    assert output.startswith("error: ") and "Traceback" not in output


def test_help_and_unknown_options(capsys):
    for words, code in ((["--help"], 0), (["x.jsonl", "--nonsense"], 2), ([], 2)):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == code
    assert "--verifier.timeout_s" in capsys.readouterr().out


def test_invalid_numbers_and_texts_are_refused_by_line(audit, tmp_path):
    code, output, _ = audit([RIGHT, {**RIGHT, "reward": 10**400}], "--reward_key", "reward")
    assert (code, "line 2: reward is 1000" in output, "Traceback" in output) == (2, True, False)
    assert len(output) < 300
    code, output, _ = audit([{**RIGHT, "set": "half \ud800"}, {**WRONG, "set": "b"}], "--group_key", "set")
    assert (code, "half ?" in output) == (0, True)


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")),
        pyarrow.array([2**62], pyarrow.timestamp("ms")),
        pyarrow.array([2**30], pyarrow.date32()),
    ],
    ids=["text", "time", "date"],
)
def test_a_parquet_file_with_invalid_values_is_refused(audit, tmp_path, column):
    table = pyarrow.table({"gold": ["1"], "response": ["1"], "odd": column})
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    code, output, _ = audit(sink.getvalue().to_pybytes(), name="rows.parquet")
    assert (code, "error: " in output, "rows.parquet" in output) == (2, True, True)


@pytest.mark.parametrize("bomb", [b" " * 2**22, b"\n" * 2**22], ids=["line", "lines"])
def test_a_file_that_unpacks_to_a_thousand_times_its_size_is_refused(audit, monkeypatch, bomb):
    monkeypatch.setattr("openrlhf_ktae.evaluation.stored.MOST_UNPACKED", 2**20)
    code, output, _ = audit(gzip.compress(bomb), name="rows.jsonl.gz")
    assert (code, "unpack it first" in output) == (2, True)


def test_an_endless_line_is_refused(audit, monkeypatch):
    monkeypatch.setattr("openrlhf_ktae.evaluation.stored.MOST_LINE", 2**10)
    code, output, _ = audit(b'{"gold": "1", "response": "' + b"x" * 2**11, name="rows.jsonl")
    assert (code, "line 1" in output, "1,024" in output) == (2, True, True)
