"""`--config FILE.yaml`: nested keys that are the option names, turned into words of a command line.

Being words, they pass the same parser, types and choices; they come first, so the command line wins.
"""

from __future__ import annotations

from argparse import Action
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from openrlhf_ktae.cli.flat_names import flat_words
from openrlhf_ktae.cli.host_parser import BadOption, nearest
from openrlhf_ktae.safety.secrets import without_lines

INCLUDE = "include"


class PlainLoader(yaml.SafeLoader):
    """YAML without double keys, and without aliases.

    A few aliases make a file of a line as large as memory, or a mapping that holds itself.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse `*name`."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read; write it out, or use include")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is there twice: the first would be dropped with all that is below it."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"{twice} is there twice; write it once", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


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


def load_config(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return `path` as a flat mapping of dotted option names; the file's own keys win over those it includes.

    Raises:
        BadOption: no such file, no YAML mapping, or files that include each other.
    """
    if "\0" in str(path):
        raise BadOption(f"--config {str(path)!r}: no such file")
    if path.resolve() in including:
        raise BadOption(f"--config {path}: includes itself through {', '.join(p.name for p in including)}")
    if not path.is_file():
        raise BadOption(f"--config {path}: no such file")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), PlainLoader) or {}
    except RecursionError:
        raise BadOption(f"--config {path}: not a YAML file of options (nested too deeply)") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise BadOption(f"--config {path}: not a YAML file ({without_lines(error)})") from None
    if not isinstance(tree, Mapping):
        raise BadOption(f"--config {path}: write option names and values, such as `rollout: {{batch_size: 8}}`")
    own = dict(tree)
    bases = own.pop(INCLUDE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise BadOption(f"--config {path}: {INCLUDE}: give the name of a file, or a list of names")
    merged: dict[str, Any] = {}
    for base in bases:
        merged.update(load_config(path.parent / base, (*including, path.resolve())))
    merged.update(_flatten(own))
    return merged


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


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
