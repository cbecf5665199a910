"""Run checks one after another, each in its own process with a time limit, and report the results."""

import importlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from openrlhf_ktae.backend.cluster import CLUSTER_VARIABLE
from openrlhf_ktae.base.secrets import environment_secrets, redacted
from openrlhf_ktae.processes.marks import VARIABLE as RUN_VARIABLE
from openrlhf_ktae.processes.marks import marked
from openrlhf_ktae.selftest.killing import kill

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
FORMAT = 1
VARIABLE = "OPENRLHF_KTAE_CHECK"  # marks every process of a check
CHILD = f"import sys; from {__name__} import main; sys.exit(main(sys.argv[1:]))"
LAST_LINES = 15
LEAST_SECONDS = 30.0  # no check starts with less time left
END_SECONDS = 20.0
CPU_FACTOR = 2.0  # multiplies time limits, which are for GPU machines


class CheckFailed(AssertionError):
    """A check failed; `figures` holds its measurements."""

    def __init__(self, reason: str, figures: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.figures = figures or {}


@dataclass(frozen=True)
class Place:
    """Where checks run."""

    folder: str
    """All files are written here."""
    backend: str
    """`cuda` or `cpu`."""
    gpus: int


@dataclass(frozen=True)
class Need:
    """A requirement of a check; `absent` is the reason for skipping the check if it is not met."""

    there: Callable[[Place], bool]
    absent: str


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    what: str
    """One-line description."""
    run: Callable[[Place], dict[str, Any]]
    """Returns figures; any exception is a failure."""
    seconds: float
    """Time limit on a GPU machine."""
    needs: tuple[Need, ...] = ()


@dataclass
class Result:
    """The outcome of a check."""

    name: str
    what: str
    status: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    last_lines: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return the result as a line for the terminal."""
        return f"{self.status:<8}{self.name:<18}{self.seconds:6.1f} s  {self.reason or self.what}"


def run_all(
    checks: Sequence[Check],
    place: Place,
    minutes: float,
    say: Callable[[str], None],
    write: Callable[[list[Result]], None],
) -> list[Result]:
    """Run `checks` in order; a failure does not stop the others.

    Args:
        checks: the checks to run.
        place: where to run them.
        minutes: limit for all checks together; none starts with less than `LEAST_SECONDS` left.
        say: receives a line before and after each check.
        write: receives all results after each check, so that an interrupt leaves a report.
    """
    end = time.monotonic() + 60 * minutes
    results: list[Result] = []
    for check in checks:
        left = end - time.monotonic()
        reason = next((need.absent for need in check.needs if not need.there(place)), "")
        if not reason and left < LEAST_SECONDS:
            reason = f"--minutes {minutes:g} are used up; give more, or --only {check.name}"
        if reason:
            result = Result(check.name, check.what, SKIPPED, reason=reason)
        else:
            say(f"        {check.name}: {check.what}")
            limit = check.seconds * (CPU_FACTOR if place.backend == "cpu" else 1)
            result = run_one(check, place, min(limit, left))
        results.append(result)
        say(result.line())
        write(results)
    return results


def run_one(check: Check, place: Place, limit: float) -> Result:
    """Run one check in its own process. At its end, or after `limit` seconds, kill everything it started."""
    folder = Path(place.folder) / check.name
    folder.mkdir(parents=True, exist_ok=True)
    described, found, log = folder / "place.json", folder / "result.json", folder / "log.txt"
    described.write_text(json.dumps({**asdict(place), "folder": str(folder)}))
    mark, started, late = uuid.uuid4().hex, time.monotonic(), False
    command = [sys.executable, "-c", CHILD, f"{check.run.__module__}:{check.run.__qualname__}", str(described)]
    tied = (CLUSTER_VARIABLE, RUN_VARIABLE)  # would make the check join an existing cluster or run
    environment = {name: value for name, value in os.environ.items() if name not in tied}
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, VARIABLE: mark},
                start_new_session=True,
            )
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit)
        late = process.poll() is None
    finally:
        left = kill_marked(mark)
    process.wait()
    seconds = round(time.monotonic() - started, 1)
    result = Result(check.name, check.what, FAILED, seconds)
    with suppress(OSError, ValueError):
        said = json.loads(found.read_text())
        result.status, result.figures, result.reason = said["status"], said["figures"], said["reason"]
    if late:
        result.status, result.reason = FAILED, f"exceeded its limit of {limit:.0f} s; killed"
    elif not result.reason and result.status == FAILED:
        result.reason = f"its process ended with exit code {process.returncode}"
    if left and not late:
        result.figures["processes_left"] = left
    if result.status == FAILED:
        result.last_lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    return result


def kill_marked(mark: str) -> int:
    """Kill all processes with a check's mark; return their number."""
    left = 0
    for _ in range(3):  # a process may start another during the search
        processes = marked(mark, VARIABLE)
        if not processes:
            break
        left += len(processes)
        kill(processes)
        psutil.wait_procs(processes, timeout=END_SECONDS)
    return left


def report(machine: dict[str, Any], place: Place, results: Iterable[Result], seconds: float) -> dict[str, Any]:
    """Return the content of the report; paths and secrets of this machine are removed from every text."""
    results = list(results)
    counts = {status: sum(result.status == status for result in results) for status in (OK, FAILED, SKIPPED)}
    whole = {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "backend": place.backend,
        "seconds": round(seconds, 1),
        **counts,
        "machine": machine,
        "checks": [asdict(result) for result in results],
    }
    hidden = {place.folder: "OUT", os.getcwd(): ".", str(Path.home()): "~"}
    return _without(whole, hidden, environment_secrets())


def _without(value: Any, paths: dict[str, str], secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(one, paths, secrets) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without(one, paths, secrets) for one in value]
    if isinstance(value, str):
        for path, short in paths.items():
            value = value.replace(path, short) if path != "/" else value
        return redacted(value, secrets)
    return value


def _commit() -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "describe", "--always", "--dirty"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return said.stdout.strip() or None
    return None


def main(argv: Sequence[str]) -> int:
    """Run one check in this process; write its result next to the description of its place."""
    target, described = argv[0], Path(argv[1])
    module, function = target.split(":")
    place = Place(**json.loads(described.read_text()))
    try:
        status, figures, reason = OK, getattr(importlib.import_module(module), function)(place), ""
    except Exception as error:  # any exception is a finding
        status, figures = FAILED, getattr(error, "figures", {})
        reason = " ".join(f"{'' if isinstance(error, CheckFailed) else f'{type(error).__name__}: '}{error}".split())
        print(f"{reason}", flush=True)
    (described.parent / "result.json").write_text(json.dumps({"status": status, "figures": figures, "reason": reason}))
    return int(status != OK)
