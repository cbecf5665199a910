"""Command-line options from the fields of a dataclass, so that each setting is declared once.

A field's docstring is its help text. An option that is not given keeps the default of the class.
"""

import argparse
import ast
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from openrlhf_ktae.base.errors import BadOption
from openrlhf_ktae.base.text import joined


def boolean(text: str) -> bool:
    """Parse true/false, yes/no, on/off, 1/0. Raises argparse.ArgumentTypeError for any other text."""
    lowered = text.lower()
    if lowered in ("true", "yes", "on", "1"):
        return True
    if lowered in ("false", "no", "off", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def add_dataclass_options(
    group: argparse._ArgumentGroup,
    cls: type,
    prefix: str,
    skip: tuple[str, ...] = (),
    defaults: bool = False,
    old_names: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Declare `--PREFIX.FIELD` for each field of `cls` except those in `skip`; `old_names` (field -> name) also work.

    An option that is not given is None, or the default of its field with `defaults`.
    """
    hints, texts = get_type_hints(cls), field_docstrings(cls)
    for field in fields(cls):
        if field.name in skip:
            continue
        settings = _settings(hints[field.name])
        text = " ".join(texts.get(field.name, "").split())
        if not (defaults and field.default is None):
            text += f" (default: {_written(field.default)})"
        name = f"{prefix}.{field.name}"
        settings |= {"dest": name, "default": field.default if defaults else None, "help": text.replace("%", "%%")}
        group.add_argument(f"--{name}", *(f"--{old_names[one]}" for one in old_names if one == field.name), **settings)


def _written(default: Any) -> str:
    return "the variant's own" if default is None else joined(default) or "none"


def build(cls: type, options: dict[str, Any], prefix: str) -> Any:
    """Build `cls` from the `options` that are its fields and not None.

    Raises BadOption if the class rejects a value; the message names the option.
    """
    names = {field.name for field in fields(cls)}
    given = {name: value for name, value in options.items() if name in names and value is not None}
    try:
        return cls(**given)
    except (ValueError, TypeError) as refusal:
        raise BadOption(f"--{prefix}.{refusal}") from None


@cache
def field_docstrings(cls: type) -> Mapping[str, str]:
    """Return field name -> the string literal below the field in the source of `cls`."""
    (body,) = (node for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body)
    statements = body.body if isinstance(body, ast.ClassDef) else []
    texts = {}
    for field, below in pairwise(statements):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            texts[field.target.id] = str(below.value.value)  # type: ignore[attr-defined]
    return MappingProxyType(texts)


def _settings(hint: Any) -> dict[str, Any]:
    """Return argparse settings for a type: bool, int, float, str, Literal, tuple of one type; each may be optional."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if get_origin(hint) is tuple:
        return {"nargs": "*", "type": get_args(hint)[0]}
    if hint is bool:
        return switch(False)
    convert: Callable[[str], Any] = hint
    return {"type": convert, "metavar": hint.__name__.upper()}


def switch(default: bool) -> dict[str, Any]:
    """Return argparse settings for `--flag`, `--flag true` and `--flag false`."""
    return {"nargs": "?", "const": True, "type": boolean, "default": default, "metavar": "true|false"}
