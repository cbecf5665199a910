"""`--config FILE.yaml`: nested keys that are the option names, turned into words of a command line.

Being words, they pass the same parser, types and choices; they come first, so the command line wins.
"""

from __future__ import annotations

from argparse import Action
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.config_file import INCLUDE, load_config
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.text import nearest
from openrlhf_ktae.cli.flat_names import flat_words


def split_config_option(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files named by `--config` (several are allowed, later ones win) and the other words."""
    files, rest = [], []
    words = iter(argv)
    for word in words:
        if word == "--config":
            value = next(words, None)
            if value is None:
                raise BadOption("--config: give a YAML file")
            files.append(Path(value))
        elif word.startswith("--config="):
            files.append(Path(word.removeprefix("--config=")))
        else:
            rest.append(word)
    return files, rest


def config_words(paths: Sequence[Path], actions: Mapping[str, Action]) -> list[str]:
    """Return the words of a command line that say what `paths` say together; of one key, the last file's value holds.

    `null`, or the default itself, leaves an option at its default.

    Raises:
        BadOption: a key is no option; the message names the nearest one.
    """
    options: dict[str, Any] = {}
    for path in paths:
        of_file = load_config(path)
        for name, value in of_file.items():
            if f"--{name}" not in actions:
                raise BadOption(f"--config {path}: {name}: no such option{_right_name(name, actions)}")
            if isinstance(value, Mapping):
                raise BadOption(f"--config {path}: {name}: has an empty mapping; give a value, or leave it out")
            if name == "config" and value is not None:
                raise BadOption(f"--config {path}: config: a file cannot give it; write `{INCLUDE}: {value}`")
        options.update(of_file)
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name}"
        if value is None or value == actions[flag].default:
            continue
        values = value if isinstance(value, list) else [value]
        texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        # `--flag=value` for one value, so that a negative number or a leading dash stays a value.
        words += [f"{flag}={texts[0]}"] if len(texts) == 1 else [flag, *texts]
    return words


def _right_name(name: str, actions: Mapping[str, Action]) -> str:
    """Say what the writer of an unknown key may have meant; the names of older releases stand for options of today."""
    if words := flat_words(name):
        return f"; it is {words} today"
    return nearest(name, [known.removeprefix("--") for known in actions if known.startswith("--")])
