"""What a tensor of a store is called, and what its name says: its site, and whether its rows are responses or tokens."""

from __future__ import annotations

TOKEN_OFFSETS = "token_offsets"
"""The one tensor of a shard that belongs to no reader: where each response's token rows start, and where the last one's end."""

_TOKENS = "@tokens"


def activation_name(reader: str, site: str, aggregation: str | None = None) -> str:
    """`base/blocks.20.hook_resid_pre`, the response mean, or another aggregation of it; `tokens` is the token level.

    Raises ValueError for a part that the name could not be taken apart at.
    """
    for part in (reader, site, "mean" if aggregation is None else aggregation):
        if not part or "/" in part or "@" in part:
            raise ValueError(f"{part!r} cannot be a part of a tensor's name: it is empty, or holds / or @")
    return f"{reader}/{site}" if aggregation is None else f"{reader}/{site}@{aggregation}"


def is_token_level(name: str) -> bool:
    """Whether that tensor has a row per token, not per response."""
    return name.endswith(_TOKENS)


def site_of(name: str) -> str | None:
    """The site whose activations a tensor may hold; None for what has no coordinates, such as `{reader}/{site}/norm`."""
    parts = name.split("/")
    return parts[1].partition("@")[0] if len(parts) == 2 else None
