"""Keep keys and passwords out of everything that a run writes.

`hide` replaces secrets in the options with strings whose `repr` is masked. Everything that prints options goes through
`repr`, including the host's `strategy.print(args)` and the configuration it sends to W&B. Code that writes options as
data (`config.yaml`, `versions.json`) calls `masked` and `redacted`.
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
LEAST_LENGTH = 8  # shorter values ("1", "true") would mask ordinary words
USER_IN_URL = re.compile(r"(?<=://)[^/\s,]+(?=@)")
SLASH_IN_PASSWORD = re.compile(r"(?<=://)[^\s,@/:]*:(?!\d+/)[^\s,@]*/[^\s,@]*(?=@)")  # digits would be a port
SECRET_IN_QUERY = re.compile(
    r"(?i)([?&][\w.-]*(?:token|key|secret|password|passwd|pwd|pass|signature|sig|auth|credential)=)[^&#\s,]+"
)


class Hidden(str):
    """A string that contains a secret. Code that uses it gets the value; its `repr` is that of `shown`."""

    shown: str

    def __new__(cls, value: str, shown: str = MASK) -> Hidden:
        """Return the string; `shown` is the text whose `repr` it has."""
        made = super().__new__(cls, value)
        made.shown = shown
        return made

    def __repr__(self) -> str:
        return repr(self.shown)

    def __reduce__(self) -> tuple[Any, ...]:
        return Hidden, (self[:], self.shown)


def hide(args: SimpleNamespace) -> None:
    """Mask, in place, every option that is a key, has a password in a URL, or contains a secret of the environment."""
    _hide_below(args, "", environment_secrets())


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
    """Return `value`, as `Hidden` if it contains a secret; with `whole`, all of it is secret."""
    shown = MASK if whole and value else redacted(value, secrets)
    return value if shown == value else Hidden(value, shown)


def masked(value: Any) -> Any:
    """Return an option's value with its secrets masked; None if all of it is secret."""
    if isinstance(value, Hidden):
        return None if value.shown == MASK else value.shown
    return value


def redacted(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with `secrets`, user and password of URLs, and keys in URL queries masked."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = SLASH_IN_PASSWORD.sub(MASK, USER_IN_URL.sub(MASK, text))
    return SECRET_IN_QUERY.sub(rf"\g<1>{MASK}", text)


def masked_words(words: Iterable[str], secrets: Iterable[str]) -> list[str]:
    """Return a command line with secrets masked: the values of key options, and the parts that `redacted` masks."""
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
    """Return options (nested data) with secrets masked, as `masked_words` does for a command line."""
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
    """Return a YAML error's problem and position, without the quoted line of the file, which may have a secret."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if problem is None:
        return " ".join(str(error).split())
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(problem)


def environment_secrets() -> list[str]:
    """Return the values of variables such as HF_TOKEN and WANDB_API_KEY, longest first."""
    found = {v for name, v in os.environ.items() if SECRET_NAME.search(name) and len(v) >= LEAST_LENGTH}
    return sorted(found, key=len, reverse=True)


def secrets_of(args: SimpleNamespace) -> list[str]:
    """Return every fully masked value in the options, and the secrets of the environment."""
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
