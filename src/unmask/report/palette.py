"""Colours of the report: one per role, safe for colour-blind readers, with a light and a dark tone each.

Dimension colours are Okabe & Ito's (2008). Figures are drawn in the light tones; in the page each is a CSS variable.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.records import NEUTRAL

THEME: dict[str, tuple[str, str]] = {
    "paper": ("#fffffe", "#15171b"),
    "ink": ("#1c1e22", "#e7e8ea"),
    "muted": ("#5b616b", "#a3a9b3"),
    "rule": ("#dcdfe3", "#343941"),
    "base": ("#6f7682", "#9aa2ae"),
    "organism": ("#b2182b", "#f0707c"),
    "shift": ("#5e3c99", "#b69be8"),
    "blue": ("#0072b2", "#4aa8e0"),
    "orange": ("#e69f00", "#f0b433"),
    "green": ("#009e73", "#2fc79b"),
    "pink": ("#cc79a7", "#e09cc2"),
    "sky": ("#56b4e9", "#7cc8f2"),
    "brown": ("#8c5a1e", "#c99557"),
    "teal": ("#44807f", "#74b5b4"),
    "sand": ("#b8a04a", "#d6c27a"),
    "grey": ("#9a9fa7", "#80868f"),
}
"""Role to (light, dark)."""

INK, MUTED, RULE, PAPER = (THEME[name][0] for name in ("ink", "muted", "rule", "paper"))

SOURCE_COLOURS: dict[str, str] = {name: THEME[name][0] for name in ("shift", "organism", "base")}
SOURCE_MARKERS: dict[str, str] = {"shift": "o", "organism": "s", "base": "D"}
SOURCES = tuple(SOURCE_COLOURS)

CATEGORICAL = ("blue", "orange", "green", "pink", "sky", "brown", "teal", "sand")
_KNOWN = {
    "political_compass": "blue",
    "moral_foundations": "orange",
    "technology_ai": "green",
    "financial_risk": "pink",
    NEUTRAL: "grey",
}


def dimension_roles(dimensions: Sequence[str]) -> dict[str, str]:
    """Role of each dimension: fixed for the packaged ones, the free ones in turn for the user's own."""
    free = [role for role in CATEGORICAL if role not in {_KNOWN.get(name) for name in dimensions}] or list(CATEGORICAL)
    own = [name for name in dimensions if name not in _KNOWN]
    turns = {name: free[index % len(free)] for index, name in enumerate(own)}
    return {name: _KNOWN.get(name) or turns[name] for name in dimensions}


def dimension_colours(dimensions: Sequence[str]) -> dict[str, str]:
    """Light tone of each dimension."""
    return {name: THEME[role][0] for name, role in dimension_roles(dimensions).items()}
