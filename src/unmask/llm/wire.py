"""From a provider's bytes to a reply: strict, and nothing made up where a field is missing.

Forms: OpenAI's chat completion object (platform.openai.com/docs/api-reference/chat/object); OpenRouter adds `usage.cost` in USD
and an `error` object inside a 200, of the whole reply or of a choice (openrouter.ai/docs/api-reference/overview, /errors).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unmask.llm.replies import Reply, TokenChoice

AGAIN = frozenset({408, 409, 429})
"""Statuses besides 5xx that another try may mend."""
_FILTERED = ("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION")
"""Gemini's own reasons, should its compatible endpoint pass them on (ai.google.dev/api/generate-content, FinishReason)."""


def read_reply(content: bytes) -> Reply:
    """The reply in the body of a 200. One that cannot be read whole is a failure with its reason."""
    try:
        answer = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        return Reply(None, "unreadable", f"{type(error).__name__} in the reply")
    if not isinstance(answer, dict):
        return Reply(None, "unreadable", "the reply is no JSON object")
    if isinstance(error := answer.get("error"), dict):
        if is_moderated(answer):
            return Reply(None, "content_filter", "the provider flagged the question")
        return failed_reply(error.get("code"))
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return _read_choice(_mapping(first), _usage(_mapping(answer.get("usage"))))


def failed_reply(status: Any) -> Reply:
    """What a status that is no success means for one request, whether HTTP gave it or an error inside a 200.

    The provider's own words are left out: some repeat the key.
    """
    passing = not isinstance(status, int) or status in AGAIN or status >= 500
    return Reply(None, "overloaded" if passing else "rejected", f"status {status}")


def is_moderated(body: Any) -> bool:
    """Whether an error's body says that this one input was flagged, as OpenRouter's 403 does (openrouter.ai/docs, errors)."""
    error = _mapping(body)
    found = _mapping(error.get("error", error)).get("metadata")
    return isinstance(found, dict) and ("flagged_input" in found or "reasons" in found)


def _read_choice(choice: Mapping[str, Any], counted: dict[str, Any]) -> Reply:
    message = _mapping(choice.get("message"))
    if choice.get("finish_reason") == "error" or isinstance(choice.get("error"), dict):
        return replace(failed_reply(_mapping(choice.get("error")).get("code")), **counted)
    reason = str(choice.get("finish_reason"))
    if reason.startswith("content_filter") or reason in _FILTERED:
        return Reply(None, "content_filter", "the provider filtered it", **counted)
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        return Reply(None, "refused", refusal, **counted)
    text = message.get("content")
    if not isinstance(text, str) or not text.strip():
        if reason in ("length", "MAX_TOKENS"):
            return Reply(None, "truncated", "all tokens that a reply may have went before it began", **counted)
        return Reply(None, "empty", "no text in the reply", **counted)
    return Reply(text, tokens=_tokens(choice.get("logprobs")), **counted)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    cost = usage.get("cost")
    counts = {
        name: value if isinstance(value := usage.get(name), int) else 0
        for name in ("prompt_tokens", "completion_tokens")
    }
    if isinstance(total := usage.get("total_tokens"), int):  # what Gemini thinks is in the total alone, and is paid for
        counts["completion_tokens"] = max(counts["completion_tokens"], total - counts["prompt_tokens"])
    return counts | {
        "usd": float(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) else None,
    }


def _tokens(logprobs: Any) -> tuple[TokenChoice, ...]:
    """The reply's tokens with their alternatives; none where the provider's list has another form."""
    try:
        return tuple(
            TokenChoice(
                each["token"],
                {other["token"]: float(other["logprob"]) for other in (each, *(each.get("top_logprobs") or ()))},
            )
            for each in (logprobs or {}).get("content") or ()
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()
