"""What another machine says, in words and numbers: it may be anything."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

LARGEST = 1e18
"""No size, time or count of a study is larger."""


def printable(text: str) -> str:
    """What another machine says, without what would steer a terminal."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "?" for sign in text)


def number_from_host(value: object) -> float | None:
    """A number as it was said, if it is finite and no larger than any that a study has; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= LARGEST and not math.isnan(value) else None


def steers_terminal(content: Any) -> bool:
    """Whether any text in a JSON document, names included, has control characters other than line ends and tabs.

    Half characters count too: they cannot be written.
    """
    left = [content]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
        elif isinstance(one, str) and any(_steers(sign) for sign in one):
            return True
    return False


def _steers(sign: str) -> bool:
    return sign not in "\n\t" and unicodedata.category(sign) in ("Cc", "Cs")
