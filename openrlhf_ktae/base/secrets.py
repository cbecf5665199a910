"""Keys and passwords: used by who needs them, never written.

`hide` replaces them in the options by a text whose `repr` is masked. Everything that prints options, the host's own
`strategy.print(args)` and the configuration it gives to W&B among it, goes through `repr`; what writes them as data
(`config.yaml`, `versions.json`) asks `masked` and `redacted`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

MASK = "***"
KEYS = ("logger.wandb.key", "use_wandb")  # options whose value is a key
SECRET_FLAG = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
SECRET_NAME = re.compile(rf"{SECRET_FLAG.pattern}|_(KEY|PAT|PWD|PASS|AUTH|ACCESS_KEY_ID)$", re.IGNORECASE)
LEAST_LENGTH = 8  # a shorter value of such a variable ("1", "true") would mask ordinary words
USER_IN_URL = re.compile(r"(?<=://)[^/\s,]+(?=@)")
SLASH_IN_PASSWORD = re.compile(r"(?<=://)[^\s,@/:]*:(?!\d+/)[^\s,@]*/[^\s,@]*(?=@)")  # after digits it is a path
SECRET_IN_QUERY = re.compile(
    r"(?i)([?&][\w.-]*(?:token|key|secret|password|passwd|pwd|pass|signature|sig|auth|credential)=)[^&#\s,]+"
)


class Hidden(str):
    """A text with a secret in it; it is itself wherever it is used, and `shown` wherever it is printed."""

    shown: str

    def __new__(cls, value: str, shown: str = MASK) -> Hidden:
        """Return the text; `shown` is what its `repr` gives away."""
        made = super().__new__(cls, value)
        made.shown = shown
        return made

    def __repr__(self) -> str:
        return repr(self.shown)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hidden, (self[:], self.shown)


def hide(args: SimpleNamespace, values: Iterable[str] | None = None) -> None:
    """Replace, in place, every option that is a key, has a password in a URL, or holds a secret of the environment."""
    secrets = list(environment_secrets() if values is None else values)
    _hide_below(args, "", secrets)


def _hide_below(node: SimpleNamespace, prefix: str, secrets: list[str]) -> None:
    for name, value in vars(node).items():
        path = f"{prefix}{name}"
        if isinstance(value, SimpleNamespace):
            _hide_below(value, f"{path}.", secrets)
        elif isinstance(value, str):
            setattr(node, name, hidden(value, secrets, whole=path in KEYS))
        elif isinstance(value, list):
            setattr(node, name, [hidden(v, secrets) if isinstance(v, str) else v for v in value])


def hidden(value: str, secrets: Iterable[str], whole: bool = False) -> str:
    """Return `value`, as `Hidden` if there is a secret in it; with `whole` it is one."""
    shown = MASK if whole and value else redacted(value, secrets)
    return value if shown == value else Hidden(value, shown)


def masked(value: Any) -> Any:
    """Return what may be written of an option's value; None of one that is nothing but a secret."""
    if isinstance(value, Hidden):
        return None if value.shown == MASK else value.shown
    return value


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Return `text` without `secrets`, without user and password of a URL, and without keys in its query."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = SLASH_IN_PASSWORD.sub(MASK, USER_IN_URL.sub(MASK, text))
    return SECRET_IN_QUERY.sub(rf"\g<1>{MASK}", text)


def masked_words(words: Iterable[str], secrets: Iterable[str]) -> list[str]:
    """Return a command line without keys: values of options that are one, and what `redacted` hides."""
    secrets, shown, is_value = list(secrets), [], False
    for word in words:
        name, equals, _ = word.partition("=")
        is_key = name.startswith("--") and _is_key(name.removeprefix("--"))
        if is_value and not word.startswith("--"):
            shown.append(MASK)
        else:
            shown.append(f"{name}={MASK}" if is_key and equals else redacted(word, secrets))
        is_value = is_key and not equals
    return shown


def masked_tree(tree: Any, secrets: Iterable[str]) -> Any:
    """Return options as data without keys, as `masked_words` does for words."""
    secrets = list(secrets)
    if isinstance(tree, dict):
        return {
            name: MASK if value and _is_key(str(name)) else masked_tree(value, secrets) for name, value in tree.items()
        }
    if isinstance(tree, list):
        return [masked_tree(value, secrets) for value in tree]
    return redacted(tree, secrets) if isinstance(tree, str) else tree


def _is_key(name: str) -> bool:
    return name in KEYS or bool(SECRET_FLAG.search(name.replace("-", "_")))


def without_lines(error: Exception) -> str:
    """Return what is wrong with a file, and where, without the line of it that YAML's own message quotes."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem is None:
        return " ".join(str(error).split())
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(problem)


def environment_secrets() -> list[str]:
    """Return the values of variables such as HF_TOKEN and WANDB_API_KEY, longest first."""
    found = {v for name, v in os.environ.items() if SECRET_NAME.search(name) and len(v) >= LEAST_LENGTH}
    return sorted(found, key=len, reverse=True)


def secrets_of(args: SimpleNamespace) -> list[str]:
    """Return every value in the options that `hide` hid, and the secrets of the environment."""
    return [*_hidden_in(args), *environment_secrets()]


def _hidden_in(node: Any) -> Iterator[str]:
    if isinstance(node, Hidden):
        if node.shown == MASK:
            yield node[:]
    elif isinstance(node, SimpleNamespace):
        for value in vars(node).values():
            yield from _hidden_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from _hidden_in(value)
