"""How long a provider asks to wait, in the headers that providers document.

- `retry-after-ms`, `retry-after` (RFC 9110 section 10.2.3: seconds, or a date)
- `x-ratelimit-remaining-requests` and `-tokens`, `x-ratelimit-reset-...` as a span such as `6m0s`
  (platform.openai.com/docs/guides/rate-limits)
- `x-ratelimit-remaining`, `x-ratelimit-reset` as milliseconds since 1970 (openrouter.ai/docs/api-reference/limits)
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_SPAN = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_SECONDS_SINCE, _MILLISECONDS_SINCE = 1e9, 1e11
"""Numbers above are seconds, and milliseconds, since 1970; below the first a span in seconds."""


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds named by `retry-after-ms` or `retry-after`; None where there is neither, or nonsense."""
    try:
        if (value := headers.get("retry-after-ms")) is not None:
            seconds = float(value) / 1000
        elif (value := headers.get("retry-after")) is None:
            return None
        elif value.strip()[:1].isalpha():  # a date begins with its weekday
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        else:
            seconds = float(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def seconds_until_reset(headers: Mapping[str, str]) -> float:
    """Seconds until something is left again of whatever has run out; 0 where nothing has, or nothing is said."""
    waits = [0.0]
    for kind in ("-requests", "-tokens", ""):
        if headers.get(f"x-ratelimit-remaining{kind}", "").strip() == "0":
            waits.append(_span(headers.get(f"x-ratelimit-reset{kind}", "")))
    return max(waits)


def _span(text: str) -> float:
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        found = _SPAN.fullmatch(text)
        if found is None:
            return 0.0
        hours, minutes, seconds, thousandths = (float(part) if part else 0.0 for part in found.groups())
        return hours * 3600 + minutes * 60 + seconds + thousandths / 1000
    if not math.isfinite(number):
        return 0.0
    if number > _MILLISECONDS_SINCE:
        number = number / 1000
    return max(0.0, number - time.time() if number > _SECONDS_SINCE else number)
