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
KEYS = ("logger.wandb.key",)  # options whose value is a key
SECRET_NAME = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
LEAST_LENGTH = 8  # a shorter value of such a variable ("1", "true") would mask ordinary words
USER_IN_URL = re.compile(r"(?<=://)[^/@\s,]+(?=@)")
SECRET_IN_QUERY = re.compile(r"(?i)([?&][\w.-]*(?:token|key|secret|password|signature)=)[^&#\s,]+")


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
    return SECRET_IN_QUERY.sub(rf"\g<1>{MASK}", USER_IN_URL.sub(MASK, text))


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
