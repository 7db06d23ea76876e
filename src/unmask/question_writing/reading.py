"""From a reply to candidates or to a check: strict, nothing guessed, and what is lost has its reason."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from unmask.llm.replies import Reply
from unmask.question_writing.descriptions import AGREE, Description
from unmask.question_writing.prompts import ANSWERS, NO_FACET, Slot

LEAST_WORDS, MOST_WORDS = 3, 60
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_MARKUP = re.compile(r"[{}\[\]<>_#*`|]")
_UNWRITABLE = ("Cc", "Cs", "Co", "Cn")
"""Unicode's categories of what is no character to read: controls, lone surrogates, private and unassigned ones."""


class Written(NamedTuple):
    """A slot's text, or the reason why there is none that can be used."""

    slot: Slot
    text: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Check:
    """A checker's reading of one text; `failure` where its reply could not be read, and nothing else is known then."""

    facet: str = ""
    misaligned_answer: str = ""
    leading: bool = False
    double_barrelled: bool = False
    why: str = ""
    failure: str | None = None

    def objection(self, *, facet: str, polarity: int) -> str | None:
        """Why a text that claims this facet and polarity is dropped; None where the checker agrees with the claim.

        One of `unchecked`, `wrong_facet`, `unclear_keying`, `wrong_polarity`, `leading`, `double_barrelled`.
        """
        if self.failure is not None:
            return "unchecked"
        if self.facet != facet:
            return "wrong_facet"
        if self.misaligned_answer == "unclear":
            return "unclear_keying"
        if self.misaligned_answer != ("agree" if polarity == AGREE else "disagree"):
            return "wrong_polarity"
        if self.leading:
            return "leading"
        return "double_barrelled" if self.double_barrelled else None


def read_texts(reply: Reply, wanted: Sequence[Slot]) -> tuple[list[Written], str | None]:
    """Texts by slot, or why the whole reply is lost: a failure of `replies.Failure`, `not_json`, `not_object`.

    A slot's own reasons: `missing`, `not_text`, `too_short`, `too_long`, `markup`. Other names than those asked for are
    left out.
    """
    value = _object_of(reply)
    if isinstance(value, str):
        return [], value
    written = []
    for slot in wanted:
        text = value.get(slot.name)
        if not isinstance(text, str):
            written.append(Written(slot, None, "missing" if slot.name not in value else "not_text"))
            continue
        text = " ".join(text.split())
        written.append(Written(slot, text, unfit(text)))
    return written, None


def unfit(text: str) -> str | None:
    """Why a text cannot be a question whatever it says; None where it can."""
    words = len(text.split())
    if words < LEAST_WORDS:
        return "too_short"
    if words > MOST_WORDS:
        return "too_long"
    marked = _MARKUP.search(text) or any(unicodedata.category(each) in _UNWRITABLE for each in text)
    return "markup" if marked else None


def read_check(reply: Reply, description: Description) -> Check:
    """A checker's reply; one that is not exactly of the form asked for is a Check with its failure."""
    value = _object_of(reply)
    if isinstance(value, str):
        return Check(failure=value)
    facets = {*(facet.name for facet in description.facets), NO_FACET}
    fits = (
        set(value) == {"why", "facet", "misaligned_answer", "leading", "double_barrelled"}
        and all(isinstance(value[name], str) for name in ("why", "facet", "misaligned_answer"))
        and all(isinstance(value[name], bool) for name in ("leading", "double_barrelled"))
    )
    if not fits or value["facet"] not in facets or value["misaligned_answer"] not in ANSWERS:
        return Check(failure="not_the_form")
    return Check(**value)


def _object_of(reply: Reply) -> dict[str, Any] | str:
    if reply.text is None:
        return reply.failure or "empty"
    fenced = _FENCED.fullmatch(reply.text.strip())
    try:
        value = json.loads(fenced[1] if fenced else reply.text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return "not_json"
    return value if isinstance(value, dict) else "not_object"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once each: of two values for one key, neither is the one that was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found
