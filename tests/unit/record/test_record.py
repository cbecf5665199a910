"""A run's record: a full disk does not end the run, and a damaged record does not prevent resuming."""

from __future__ import annotations

import json

import pytest

from openrlhf_ktae.launch.console import Console
from openrlhf_ktae.processes.watchdog import Watchdog
from openrlhf_ktae.record.metrics import METRICS_FILE, RunRecord, UnwrittenStop, read_record, rewind, stop_reason


def shown(directory):
    return [(row["kind"], row.get("step", row.get("text"))) for row in read_record(directory)]


def test_rows_wait_while_the_disk_is_full_and_are_written_with_a_note(tmp_path, files_up_to):
    record = RunRecord(tmp_path)
    record.step(1, {"loss": 0.5}, {})
    room = record.path.stat().st_size + 20
    with files_up_to(room):
        for step in (2, 3):
            record.step(step, {}, {})
            record.sync()
        assert shown(tmp_path) == [("step", 1)]
        assert record.path.read_bytes().endswith(b"\n"), "a partial row would corrupt another process's next one"
    record.step(4, {}, {})
    assert [name for name, _ in shown(tmp_path)] == ["step", "step", "step", "step", "note"]
    assert "2 rows of metrics.jsonl were written late: [Errno 27]" in shown(tmp_path)[-1][1]
    record.step(5, {}, {})
    assert shown(tmp_path)[-1] == ("step", 5)
    assert len(shown(tmp_path)) == 6


def test_a_checkpoint_first_writes_waiting_rows(tmp_path, files_up_to):
    record = RunRecord(tmp_path)
    with files_up_to(10):
        record.step(1, {}, {})
    record.sync()
    assert [name for name, _ in shown(tmp_path)] == ["step", "note"]


def test_the_reason_for_a_stop_does_not_wait(tmp_path, files_up_to):
    """The command's exit code depends on the row."""
    record = RunRecord(tmp_path)
    with (
        files_up_to(10),
        pytest.raises(UnwrittenStop, match=r"all groups were filtered .*metrics\.jsonl cannot be written"),
    ):
        record.stopped("all groups were filtered")
    record.sync()
    assert stop_reason(tmp_path) == "all groups were filtered"


def test_a_full_disk_does_not_look_like_a_run_that_hangs(tmp_path, files_up_to):
    record, barks = RunRecord(tmp_path), []
    record.step(1, {}, {})
    with files_up_to(10), Watchdog(tmp_path, 1.0 / 60, barks.append) as dog:
        for step in range(2, 20):
            record.step(step, {}, {})
            dog._over.wait(0.1)
    assert barks == []


TORN = [
    b'{"kind": "step", "st\n',
    b'{"kind": "note", "text": "caf\xc3\n',
    b"[]\n",
    b"null\n",
    b"\x00\x00\x00\n",
    b"\n",
    b"[" * 100_000 + b"\n",
    b'{"step": 3}\n',
    b'{"kind": ["step"]}\n',
    b'{"kind": "step"}\n',
    b'{"kind": "step", "step": "3"}\n',
    b'{"kind": "step", "step": true}\n',
    b'{"kind": "eval", "step": 3}\n',
    b'{"kind": "plan"}\n',
]


@pytest.mark.parametrize("torn", TORN, ids=range(len(TORN)))
def test_a_damaged_line_is_set_aside_and_the_run_continues(torn, tmp_path, capsys):
    path = tmp_path / METRICS_FILE
    good = [{"kind": "plan", "steps": 4}, *({"kind": "step", "step": step} for step in (1, 2, 3))]
    texts = [json.dumps(row).encode() + b"\n" for row in good]
    path.write_bytes(b"".join([*texts[:2], torn, *texts[2:]]) + '{"kind": "note", "text": "é'.encode()[:-1])
    assert list(read_record(tmp_path)) == good
    assert rewind(tmp_path, 2, evaluated=False) == 1
    assert [name for name, _ in shown(tmp_path)] == ["plan", "step", "step", "note"]
    assert "1 lines of metrics.jsonl were damaged" in shown(tmp_path)[-1][1]
    assert (tmp_path / "metrics.damaged").read_bytes() == torn
    assert (tmp_path / "metrics.abandoned.jsonl").read_bytes() == texts[-1]
    assert rewind(tmp_path, 2, evaluated=False) == 0
    with Console(tmp_path):
        with path.open("ab") as file:
            file.write(torn)
        RunRecord(tmp_path).step(3, {}, {})


def test_the_console_shows_rows_with_missing_values(tmp_path, capsys):
    with Console(tmp_path), (tmp_path / METRICS_FILE).open("a") as file:
        for row in (
            {"kind": "step", "step": 1, "rollout/reward_mean": "high", "timing/generation": 10**400},
            {
                "kind": "eval",
                "when": "before",
                "step": 0,
                "eval_accuracy": [],
                "eval_a_accuracy": "x",
                "eval_b_accuracy": 1,
            },
            {"kind": "note", "text": 5},
            {"kind": "note", "text": "half a pair \ud800"},
        ):
            file.write(json.dumps(row) + "\n")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "step    1",
        "held-out before  accuracy unknown %  length unknown  macro unknown %  a unknown  b 100.0",
        "5",
        "half a pair ?",
    ]


def test_texts_invalid_in_utf_8_are_still_written(tmp_path):
    record = RunRecord(tmp_path)
    record.note("half a pair \ud800")
    record.stopped("said by a model: \udfff")
    assert [row.get("text", row.get("reason")) for row in read_record(tmp_path)] == [
        "half a pair ?",
        "said by a model: ?",
    ]
