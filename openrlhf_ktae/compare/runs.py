"""Run arms x seeds one after the other, each through the training command in its own process; resumable.

OUT/ARM/seed-S is the run directory. In it, `arm.json` has the run's settings, and `done.json` marks success.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.config_file import load_config
from openrlhf_ktae.base.plain_json import parse_json
from openrlhf_ktae.base.secrets import environment_secrets, masked_tree, masked_words
from openrlhf_ktae.checkpoint.files import write_text

STARTED, DONE, LOG = "arm.json", "done.json", "train.log"
TRAIN = [sys.executable, "-m", "openrlhf_ktae.cli.train_ppo_ray"]
LAST_LINES = 3


class OtherArms(ValueError):
    """The output folder contains runs with other settings."""


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
        return _without_keys({"options": options, "seed": self.seed, "words": list(self.words)})

    @property
    def done(self) -> bool:
        """Whether it finished successfully."""
        return (self.directory / DONE).is_file()

    def command(self) -> list[str]:
        """The training command of this run."""
        own = ["--config", str(self.config), "--run.dir", str(self.directory), "--train.seed", str(self.seed)]
        return [*TRAIN, *own, *self.words]


def _without_keys(settings: dict[str, Any]) -> dict[str, Any]:
    secrets = environment_secrets()
    return {**masked_tree(settings, secrets), "words": masked_words(settings["words"], secrets)}


def plan(configs: Sequence[Path], seeds: Sequence[int], output: Path, words: Sequence[str]) -> list[ArmRun]:
    """Return every run, ordered by seed, so that all arms have the same seeds at any time.

    Raises:
        OtherArms: two configurations have one name, or `output` has runs with other settings or of unknown origin.
    """
    names = [path.stem for path in configs]
    for name in names:
        if names.count(name) > 1:
            raise OtherArms(f"two configurations are called {name}.yaml; an arm is named after its file")
    runs = [
        ArmRun(path.stem, seed, path, output / path.stem / f"seed-{seed}", tuple(words))
        for seed in seeds
        for path in configs
    ]
    for run in runs:
        settings = run.settings  # reads the files, so errors appear before any run
        if not begun(run.directory):
            continue
        if _started_with(run.directory / STARTED) != settings:
            raise OtherArms(f"{run.directory}: was run with other settings; give another --output or delete it")
    return runs


def begun(directory: Path) -> bool:
    """Return whether a run wrote anything here, apart from an unfinished `arm.json`."""
    return directory.exists() and any(path.name != f".{STARTED}.part" for path in directory.iterdir())


def _started_with(path: Path) -> Any:
    if not path.is_file():
        raise OtherArms(f"{path.parent}: is not a run of a comparison; give another --output")
    try:
        found = parse_json(path.read_bytes())
        return _without_keys(found)  # earlier releases wrote keys
    except (ValueError, TypeError, KeyError, AttributeError):
        raise OtherArms(f"{path}: cannot be read; delete {path.parent} to run it again") from None


def execute(run: ArmRun) -> int:
    """Train from the start, after deleting an interrupted attempt's files; return the exit code.

    `arm.json` is written first, atomically, and kept: after a kill at any point it identifies the folder.
    """
    run.directory.mkdir(parents=True, exist_ok=True)
    write_text(run.directory / STARTED, json.dumps(run.settings, indent=2) + "\n")
    for path in run.directory.iterdir():
        if path.name != STARTED:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    started = time.time()
    with (run.directory / LOG).open("w", encoding="utf-8") as log:
        code = subprocess.run(run.command(), stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code == 0:
        seconds = round(time.time() - started, 1)
        write_text(run.directory / DONE, json.dumps({"seconds": seconds}) + "\n")
    return code


def execute_all(runs: Sequence[ArmRun], say: Callable[[str], None]) -> list[ArmRun]:
    """Run everything that is not done; return the failed runs.

    Raises:
        OtherArms: a run refuses its options; every other run of the arm would, too.
    """
    failed = []
    for number, run in enumerate(runs, start=1):
        name = f"[{number}/{len(runs)}] {run.arm} seed {run.seed}"
        if run.done:
            say(f"{name}: already done")
            continue
        started = time.time()
        code = execute(run)
        if code == 2:
            raise OtherArms(f"{run.config}: {_last_lines(run)}")
        if code < 0 or code == 130:
            raise KeyboardInterrupt
        if code:
            failed.append(run)
        ended = f"FAILED with exit code {code}, see {run.directory / LOG}" if code else "done"
        say(f"{name}: {ended} in {time.time() - started:.0f} s")
    return failed


def _last_lines(run: ArmRun) -> str:
    lines = (run.directory / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    return " ".join(line.removeprefix("error: ") for line in lines[-LAST_LINES:])
