"""What RunPod's refusals mean to a user, and how long it asks to wait."""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime

from unmask.errors import ConfigError, UnmaskError


def refused(status: int, message: str, *, key_variable: str) -> UnmaskError:
    """The error for a status that trying again does not change."""
    if status == 401:
        return ConfigError(
            f"RunPod refuses the key in {key_variable}", mend="Make a new one at RunPod and set it again"
        )
    if status == 403:
        return ConfigError(
            f"RunPod does not allow this to the key in {key_variable}",
            mend="Give the key read and write access to pods",
        )
    if status == 402 or "balance" in message.lower() or "insufficient funds" in message.lower():
        return UnmaskError(
            f"RunPod wants payment: {message}", mend="Add credit at RunPod; an hour's price must be there"
        )
    if status == 404:
        return ConfigError(
            f"RunPod does not know this: {message}", mend="List the pods: unmask remote check STUDY --on runpod --pods"
        )
    return ConfigError(f"RunPod refuses with {status}: {message}", mend="Change what is asked for: GPU, image, disks")


def seconds_to_wait(retry_after: str | None) -> float | None:
    """Seconds of a `Retry-After` header, which may be a date (RFC 9110, 10.2.3); None without one, or for nonsense."""
    if retry_after is None:
        return None
    try:
        if retry_after.strip()[:1].isalpha():
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        else:
            seconds = float(retry_after)
    except (TypeError, ValueError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
