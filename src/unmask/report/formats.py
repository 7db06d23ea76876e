"""How numbers are written: few digits, a true minus sign, and 'missing' for what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

MINUS = "\N{MINUS SIGN}"
NO_BREAK = "\N{NO-BREAK SPACE}"


def is_present(value: Any) -> TypeGuard[float]:
    """True for a finite number; False for None, NaN and what is no number."""
    if value is None or isinstance(value, str):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def missing(count: int | None = None) -> str:
    """`missing (12)`, or `missing` where the count is not known."""
    return "missing" if count is None else f"missing ({count})"


def number(value: Any, digits: int = 1, *, absent: int | None = None) -> str:
    """A number with `digits` decimals; `missing (absent)` when there is none."""
    if not is_present(value):
        return missing(absent)
    text = f"{float(value):,.{digits}f}"
    text = text.removeprefix("-") if float(text.replace(",", "")) == 0 else text
    return text.replace("-", MINUS)


def signed(value: Any, digits: int = 1, *, absent: int | None = None) -> str:
    """A number that always shows its sign, as differences should; zero has none."""
    text = number(value, digits, absent=absent)
    return f"+{text}" if is_present(value) and round(float(value), digits) > 0 else text


def percent(value: Any, digits: int = 0, *, absent: int | None = None) -> str:
    """A share of one as per cent."""
    return f"{number(100 * float(value), digits)}{NO_BREAK}%" if is_present(value) else missing(absent)


def spread(mean: Any, sd: Any, digits: int = 1, *, absent: int | None = None) -> str:
    """Mean and standard deviation; only the mean where one value leaves no deviation."""
    if not is_present(mean):
        return missing(absent)
    return f"{number(mean, digits)} ± {number(sd, digits)}" if is_present(sd) else number(mean, digits)


def interval(value: Mapping[str, Any] | None, digits: int = 1, *, absent: int | None = None) -> str:
    """Mean and the ends of its interval: `+3.2 [-1.0, 7.4]`."""
    if value is None or not is_present(value.get("mean")):
        return missing(absent)
    mean = signed(value["mean"], digits)
    if not (is_present(value.get("low")) and is_present(value.get("high"))):
        return f"{mean} [no interval]"
    return f"{mean} [{signed(value['low'], digits)}, {signed(value['high'], digits)}]"


def label(name: Any) -> str:
    """A dimension's or facet's name for people: underscores become spaces."""
    return str(name).replace("_", " ")


def short_site(site: str) -> str:
    """`blocks.20.hook_resid_pre` as `layer 20 (resid_pre)`."""
    parts = site.split(".")
    if len(parts) == 3 and parts[0] == "blocks":
        return f"layer {parts[1]} ({parts[2].removeprefix('hook_')})"
    return site


def counted(count: int, noun: str) -> str:
    """`1 question`, `3 questions`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def fine(value: Any, *, absent: str = "not measured") -> str:
    """A number of unknown size: three decimals, fewer from 10 on, more where it would else print as zero.

    `absent` when there is none.
    """
    if not is_present(value):
        return absent
    size = abs(float(value))
    if size == 0:
        return "0"
    if size >= 10:
        return number(value, 1 if size < 100 else 0)
    if size >= 0.01:
        return number(value, 3)
    text = number(value, min(12, 1 - math.floor(math.log10(size))))
    return text[:-1] if text.endswith("0") and len(text.partition(".")[2]) > 3 else text


def ends(low: Any, high: Any, *, absent: str = "no interval") -> str:
    """`[0.010, 0.025]`."""
    return f"[{fine(low)}, {fine(high)}]" if is_present(low) and is_present(high) else absent


def whole(value: Any, *, absent: str = "not measured") -> str:
    """A count that a table may hold as a float."""
    return f"{round(float(value)):,}" if is_present(value) else absent
