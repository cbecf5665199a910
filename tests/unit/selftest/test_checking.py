"""The check runner: real processes that pass, fail, hang, leave children or are skipped, and the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from openrlhf_ktae.processes.marks import marked
from openrlhf_ktae.selftest.checking import (
    CPU_FACTOR,
    FAILED,
    OK,
    SKIPPED,
    VARIABLE,
    Check,
    CheckFailed,
    Need,
    Place,
    Result,
    report,
    run_all,
    run_one,
)

pytestmark = pytest.mark.slow  # check processes import this file without `marks` on the path

NEVER = Need(lambda place: False, "needs what no machine has")
PIDS = "pids"


def passes(place):
    return {"folder": Path(place.folder).name, "backend": place.backend}


def finds_something(place):
    raise CheckFailed("weights differ", {"equal": 5})


def breaks(place):
    print("a line before it broke")
    raise KeyError("no such key")


def dies(place):
    print("the last words", flush=True)
    os._exit(7)


def leaves_a_child(place):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    (Path(place.folder) / PIDS).write_text(str(child.pid))
    return {}


def hangs(place):
    leaves_a_child(place)
    time.sleep(60)


def check(function, seconds=30.0, needs=()):
    return Check(function.__name__, f"{function.__name__} says", function, seconds, needs)


@pytest.fixture
def place(tmp_path):
    return Place(str(tmp_path), "cuda", 1)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let a check's process import these functions by name."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    for function in (passes, finds_something, breaks, dies, leaves_a_child, hangs):
        monkeypatch.setattr(function, "__module__", Path(__file__).stem)


def run(checks, place, minutes=10.0):
    said, written = [], []
    results = run_all(checks, place, minutes, said.append, lambda so_far: written.append(len(so_far)))
    assert written == list(range(1, len(checks) + 1)), "the report must be written after each check"
    return results, said


def test_a_failing_check_is_reported_and_others_run(place):
    functions = (finds_something, breaks, dies, passes)
    results, said = run([check(function) for function in functions], place)
    assert [result.status for result in results] == [FAILED, FAILED, FAILED, OK]
    assert results[0].reason == "weights differ"
    assert results[0].figures == {"equal": 5}
    assert results[1].reason == "KeyError: 'no such key'"
    assert results[1].last_lines[0] == "a line before it broke"
    assert results[2].reason == "its process ended with exit code 7"
    assert results[2].last_lines == ["the last words"]
    assert results[3].figures == {"folder": "passes", "backend": "cuda"}
    assert any(line.startswith("failed  finds_something") and "weights differ" in line for line in said)


def test_a_missing_requirement_skips_the_check_with_its_reason(place):
    results, said = run([check(hangs, needs=(NEVER,)), check(passes)], place)
    assert [(result.status, result.reason) for result in results] == [(SKIPPED, "needs what no machine has"), (OK, "")]
    assert results[0].seconds == 0
    assert "needs what no machine has" in said[0]


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_check_over_its_limit_is_killed_with_its_children(place):
    began = time.monotonic()
    result = run_one(check(hangs), place, limit=4.0)
    assert time.monotonic() - began < 20
    assert (result.status, result.reason) == (FAILED, "exceeded its limit of 4 s; killed")
    assert gone(int((Path(place.folder) / "hangs" / PIDS).read_text()))


def says_its_variables(place):
    return {name: os.environ.get(name) for name in ("RAY_ADDRESS", "OPENRLHF_KTAE_RUN", "HOME")}


def test_a_check_joins_no_existing_cluster_or_run(place, monkeypatch):
    monkeypatch.setattr(says_its_variables, "__module__", Path(__file__).stem)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    monkeypatch.setenv("OPENRLHF_KTAE_RUN", "another")
    result = run_one(check(says_its_variables), place, limit=30.0)
    assert result.figures == {"RAY_ADDRESS": None, "OPENRLHF_KTAE_RUN": None, "HOME": os.environ.get("HOME")}


def test_processes_left_by_a_check_are_killed_and_counted(place):
    result = run_one(check(leaves_a_child), place, limit=30.0)
    assert (result.status, result.figures) == (OK, {"processes_left": 1})
    assert gone(int((Path(place.folder) / "leaves_a_child" / PIDS).read_text()))


def test_limits_are_longer_on_a_cpu(tmp_path):
    result = run_all([check(hangs, 1.0)], Place(str(tmp_path), "cpu", 0), 10.0, print, len)[0]
    assert f"limit of {CPU_FACTOR:.0f} s" in result.reason


def test_no_check_starts_without_time(place):
    results, _ = run([check(passes)], place, minutes=0.1)
    assert results[0].status == SKIPPED
    assert results[0].reason == "--minutes 0.1 are used up; give more, or --only passes"


def test_the_report_names_neither_folders_nor_secrets(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    last = [f"{tmp_path}/run/train.log", f"{os.getcwd()}/configs, key hf_0123456789", f"{Path.home()}/.cache"]
    results = [Result("one", "says", FAILED, 1.5, {"where": str(tmp_path), "x": 1.0}, "reason", last)]
    results.append(Result("two", "says", SKIPPED, reason="needs a GPU"))
    content = json.loads(json.dumps(report({"gpus": []}, place, results, 2.0)))
    assert (content["ok"], content["failed"], content["skipped"]) == (0, 1, 1)
    assert content["backend"] == "cuda"
    one, two = content["checks"]
    assert set(one) == {"name", "what", "status", "seconds", "figures", "reason", "last_lines"}
    assert one["figures"] == {"where": "OUT", "x": 1.0}
    assert one["last_lines"] == ["OUT/run/train.log", "./configs, key ***", "~/.cache"]
    assert two["reason"] == "needs a GPU"


def test_marks_of_checks_differ_from_marks_of_runs():
    child = subprocess.Popen(["sleep", "30"], env={**os.environ, VARIABLE: "only-here"})
    try:
        assert [process.pid for process in marked("only-here", VARIABLE)] == [child.pid]
        assert marked("only-here") == []
    finally:
        child.kill()
        child.wait()
