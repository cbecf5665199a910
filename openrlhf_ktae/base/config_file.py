"""YAML option files: nested keys spell option names; `include` merges other files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.secrets import without_lines

INCLUDE = "include"


class PlainLoader(yaml.SafeLoader):
    """YAML without duplicate keys or aliases.

    A few aliases on one line can expand to fill memory, or make a mapping contain itself.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse `*name`."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not supported; write it out, or use include")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a duplicate key: YAML would silently drop the first one and everything below it."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(problem=f"{twice} appears twice; write it once", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def load_config(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return `path` as a flat mapping of dotted option names; the file's own keys win over those it includes.

    Raises BadOption if the file is missing or not a YAML mapping, or files include each other.
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
    merged.update(flat(own))
    return merged


def flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested options to dotted names; an empty mapping stays one."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found
