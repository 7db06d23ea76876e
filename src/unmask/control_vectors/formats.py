"""What export and import have in common: the block of a control vector, the header of a safetensors file, the package gguf."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmask.errors import ConfigError
from unmask.records import Site

ARCHITECTURE = "controlvector"
"""What a GGUF file of a control vector says it is."""


def block_behind(site: Site) -> int | None:
    """The block at whose output the stream of a site lies; None for a site inside a block or before the first."""
    if site.layer is None or site.point not in ("resid_pre", "resid_post"):
        return None
    block = site.layer - (site.point == "resid_pre")
    return block if block >= 0 else None


def header(path: Path) -> dict[str, Any]:
    """What the metadata of a safetensors file say: its entries, and those of the JSON text `provenance`.

    Raises ConfigError for a file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            entries = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
    try:
        inside = json.loads(entries.get("provenance", "{}"))
    except ValueError:
        inside = {}
    return {**entries, **(inside if isinstance(inside, dict) else {})}


def load_gguf(path: Path) -> Any:
    """The package gguf, for a file or folder that needs it. Raises ConfigError where it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            f"control vectors ({path}) need the package gguf, which is not installed",
            mend="Run `pip install 'gguf>=0.19'`",
        ) from error
    return gguf


def unreadable(path: Path, error: Exception) -> ConfigError:
    """What is said of a direction file that is damaged."""
    return ConfigError(f"direction file {path} cannot be read ({error})", mend="Save it again, or name another file")
