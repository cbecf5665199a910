"""`--config FILE.yaml`: nested keys named after the options, turned into command-line arguments.

These arguments go through the same parser, types and choices, before the user's own, so the command line wins.
"""

from argparse import Action
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrlhf_ktae.base.config_file import INCLUDE, load_config
from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.text import joined, nearest
from openrlhf_ktae.cli.flat_names import flat_words


def split_config_option(argv: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files given with `--config` (may be repeated; later files win) and the other arguments."""
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
    """Return the command-line arguments for all `paths`; if files set the same key, the last one wins.

    `null` leaves an option at its default. Raises BadOption if a key is not an option (the message names the nearest
    one), or its value is an empty mapping.
    """
    options: dict[str, Any] = {}
    for path in paths:
        of_file = load_config(path)
        for name, value in of_file.items():
            if f"--{name}" not in actions:
                raise BadOption(f"--config {path}: {name}: no such option{_right_name(name, actions)}")
            if isinstance(value, Mapping):
                raise BadOption(f"--config {path}: {name}: is an empty mapping; give a value, or leave it out")
            if name == "config" and value is not None:
                raise BadOption(f"--config {path}: config: not allowed inside a file; write `{INCLUDE}: {value}`")
        options.update(of_file)
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name}"
        if value is None or value == actions[flag].default:
            continue
        values = value if isinstance(value, list) else [value]
        texts = [joined(v) for v in values]
        # One value is written `--flag=value`, so that a value with a leading dash is not parsed as an option.
        words += [f"{flag}={texts[0]}"] if len(texts) == 1 else [flag, *texts]
    return words


def _right_name(name: str, actions: Mapping[str, Action]) -> str:
    """Return a hint at the option that an unknown key may mean; names from older releases map to current ones."""
    if words := flat_words(name):
        return f"; it is now {words}"
    return nearest(name, [known.removeprefix("--") for known in actions if known.startswith("--")])
