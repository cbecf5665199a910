"""Parse untrusted JSON: every error is a ValueError."""

import json
from decimal import Decimal
from typing import Any


def parse_json(text: str | bytes, exact: bool = False) -> Any:
    """Return the value of `text`; with `exact`, a decimal number that changes as a float stays text.

    Raises ValueError if it is not JSON, is nested too deeply, or has an integer of thousands of digits.
    """
    try:
        return json.loads(text, parse_float=_exact_float if exact else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _exact_float(text: str) -> float | str:
    value = float(text)
    return value if Decimal(text) == Decimal(repr(value)) else text
