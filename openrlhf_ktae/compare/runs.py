"""Run arms x seeds through the training command. Runs share a running stack, and a killed comparison can resume.

The run directory is OUT/ARM/seed-S. In it, `arm.json` holds the run's settings and `done.json` marks success.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.config_file import load_config
from openrlhf_ktae.base.errors import Refusal
from openrlhf_ktae.base.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_FAULT, EXIT_INTERRUPTED, EXIT_STOPPED
from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.secrets import environment_secrets, masked_tree, masked_words
from openrlhf_ktae.checkpoint.files import write_text
from openrlhf_ktae.processes.marks import end_with_parent

STARTED, DONE, LOG = "arm.json", "done.json", "train.log"
TRAIN = [sys.executable, "-m", "openrlhf_ktae.cli.train_many"]
THREADS = "OMP_NUM_THREADS"
LAST_LINES = 3


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed."""

    arm: str
    seed: int
    config: Path
    directory: Path
    words: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the run: all options of its files and the command line, secrets masked."""
        options = json.loads(json.dumps(load_config(self.config)))
        return _without_secrets({"options": options, "seed": self.seed, "words": list(self.words)})

    @property
    def done(self) -> bool:
        """Whether the run finished successfully."""
        return (self.directory / DONE).is_file()

    def options(self) -> list[str]:
        """The options of this run for the training command."""
        own = ["--config", str(self.config), "--run.dir", str(self.directory), "--train.seed", str(self.seed)]
        return [*own, *self.words]


def _without_secrets(settings: dict[str, Any]) -> dict[str, Any]:
    secrets = environment_secrets()
    return {**masked_tree(settings, secrets), "words": masked_words(settings["words"], secrets)}


def plan(configs: Sequence[Path], seeds: Sequence[int], output: Path, words: Sequence[str]) -> list[ArmRun]:
    """Return all runs ordered by seed, so that an interrupted comparison has about the same seeds of every arm.

    Raises Refusal if two configurations share a name, or `output` has runs with other settings or of unknown origin.
    """
    names = [path.stem for path in configs]
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"two configurations are called {name}.yaml; an arm is named after its file")
    runs = [
        ArmRun(path.stem, seed, path, output / path.stem / f"seed-{seed}", tuple(words))
        for seed in seeds
        for path in configs
    ]
    for run in runs:
        settings = run.settings  # reads the files, so that errors appear before any run
        if not begun(run.directory):
            continue
        if _started_with(run.directory / STARTED) != settings:
            raise Refusal(f"{run.directory}: has a run with other settings; give another --output or delete it")
    return runs


def begun(directory: Path) -> bool:
    """Return whether a run wrote anything here, apart from an unfinished `arm.json`."""
    return directory.exists() and any(path.name != f".{STARTED}.part" for path in directory.iterdir())


def _started_with(path: Path) -> Any:
    if not path.is_file():
        raise Refusal(f"{path.parent}: does not belong to a comparison; give another --output")
    try:
        found = parse_json(path.read_bytes())
        return _without_secrets(found)  # earlier releases wrote keys
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Refusal(f"{path}: cannot be read; delete {path.parent} to run it again") from None


class TrainingProcess:
    """A process that trains runs one after the other in one stack. A failed run ends it; the next run starts a new one.

    Args:
        threads: OMP_NUM_THREADS of its processes, unless the user has set it; with None the backend decides.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._threads = {} if threads is None else {THREADS: str(threads)}

    def train(self, options: Sequence[str], log: Path) -> int:
        """Run the training command; return its exit code."""
        if self._process is not None and self._process.poll() is not None:  # it died between two runs
            self.end()
        if self._process is None:
            with log.open("wb") as output:  # start-up messages; the process opens each run's log itself
                self._process = subprocess.Popen(
                    TRAIN,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    text=True,
                    env={**self._threads, **os.environ},
                    preexec_fn=end_with_parent,
                )
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # it just died: its exit code says why
            self._process.stdin.write(json.dumps({"words": [*options], "log": str(log)}) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        code = int(answer) if answer else self._process.wait() or EXIT_FAILED
        if code not in (0, EXIT_STOPPED):
            self.end()
        return code

    @property
    def used(self) -> bool:
        """Whether its stack has trained a run."""
        return self._process is not None

    def interrupt(self) -> None:
        """End the run that another thread waits for; it counts as interrupted."""
        if self._process is not None:
            self._process.terminate()

    def end(self) -> None:
        """End the process and its stack."""
        if self._process is not None:
            process, self._process = self._process, None
            process.communicate()  # closes its input


def execute(run: ArmRun, process: TrainingProcess) -> int:
    """Train from the start, after deleting the files of an earlier attempt; return the exit code.

    `arm.json` is written first, atomically, and kept, so that it identifies the folder after a kill at any point.
    """
    run.directory.mkdir(parents=True, exist_ok=True)
    write_text(run.directory / STARTED, json.dumps(run.settings, indent=2) + "\n")
    for path in run.directory.iterdir():
        if path.name != STARTED:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    started = time.time()
    code = process.train(run.options(), run.directory / LOG)
    if code == 0:
        seconds = round(time.time() - started, 1)
        write_text(run.directory / DONE, json.dumps({"seconds": seconds}) + "\n")
    return code


def execute_all(runs: Sequence[ArmRun], say: Callable[[str], None], stacks: int = 1) -> list[ArmRun]:
    """Run everything that is not done, `stacks` runs at a time; return the failed runs.

    Raises Refusal if a run's options are refused: the other runs of the arm would fail the same way.
    """
    names = {run: f"[{number}/{len(runs)}] {run.arm} seed {run.seed}" for number, run in enumerate(runs, start=1)}
    missing = [run for run in runs if not run.done]
    for run in runs:
        if run.done:
            say(f"{names[run]}: already done")
    stacks = min(stacks, len(missing))
    threads = max(1, len(os.sched_getaffinity(0)) // stacks) if stacks > 1 else None
    begun_at, todo, stop = time.time(), iter(missing), threading.Event()
    processes = [TrainingProcess(threads) for _ in range(stacks)]
    ended: list[ArmRun] = []
    failed: list[ArmRun] = []

    def work(process: TrainingProcess) -> None:
        try:
            for run in todo:  # shared by all workers
                if stop.is_set():
                    return
                started, used = time.time(), process.used
                code = execute(run, process)
                if code == EXIT_FAULT and used and not stop.is_set():  # its stack may have lost a process between runs
                    code = execute(run, process)
                if code == EXIT_BAD_INPUT:
                    lines = (run.directory / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
                    refusal = " ".join(line.removeprefix("error: ") for line in lines[-LAST_LINES:])
                    raise Refusal(f"{run.config}: {refusal}")
                if code < 0 or code == EXIT_INTERRUPTED or (code and stop.is_set()):
                    raise KeyboardInterrupt
                if code:
                    failed.append(run)
                ended.append(run)
                outcome = f"FAILED with exit code {code}, see {run.directory / LOG}" if code else "done"
                each, left = (time.time() - begun_at) / len(ended), len(missing) - len(ended)
                rest = f"; {each * left / 60:.0f} min left" if left else ""
                say(f"{names[run]}: {outcome} in {time.time() - started:.0f} s{rest}")
        finally:
            process.end()

    with ThreadPoolExecutor(max(stacks, 1)) as pool:
        working = [pool.submit(work, process) for process in processes]
        try:
            for one in working:
                one.result()
        except KeyboardInterrupt:  # the signal may have reached only this process
            stop.set()
            for process in processes:
                process.interrupt()
            raise
        finally:
            stop.set()
    return failed
