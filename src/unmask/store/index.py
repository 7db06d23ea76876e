"""The index seals a store: which shards there are, with checksums and counts, and what can be read from them.

Version 2 is written. Version 1 is read too: its shards are of the same form, and reading models anew is what costs. It counts no
rows, so that opening it reads the shards' headers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unmask.errors import ArtifactError, DataError, listed
from unmask.store.encoding import raw_dtype
from unmask.store.folder import REBUILD, open_folder
from unmask.store.survey import ShardEntry, StoredTensor, digests, survey
from unmask.store.tensor_name import site_of

if TYPE_CHECKING:
    from pathlib import Path

    from unmask.store.folder import Folder

INDEX = "index.json"
_VERSION = 2


@dataclass(frozen=True, slots=True)
class StoredSite:
    """A site: its width D, what its activations are kept as, and how many heads share the width (None where it has none)."""

    name: str
    width: int
    dtype: str
    heads: int | None


@dataclass(frozen=True, slots=True)
class Index:
    """What a sealed store says of itself.

    `excluded` are coordinates of sites that read as 0; `report` is whatever the stage that collected the store has to say.
    """

    width: int
    sites: tuple[StoredSite, ...]
    tensors: Mapping[str, StoredTensor]
    shards: tuple[ShardEntry, ...]
    excluded: Mapping[str, tuple[int, ...]]
    report: Mapping[str, Any]


def write_index(
    folder: Path | str,
    *,
    sites: Sequence[str],
    width: int,
    dtype: str,
    heads: Mapping[str, int] | None = None,
    excluded: Mapping[str, Iterable[int]] | None = None,
    report: Mapping[str, Any] | None = None,
) -> None:
    """Seal the store: list its shards, read back for their SHA-256. Written last, after every shard.

    `width` is the model's; a site has the width and dtype of its tensors, and `width` and `dtype` where no shard holds it.
    `heads` gives the number of heads at sites whose columns are heads x their width; `excluded` the coordinates that shall read
    as 0; `report` anything that is JSON.

    Raises ArtifactError when a shard is broken, holds other tensors than the first, or a response that another has; DataError
    when a coordinate is excluded that a site does not have; ValueError when a site's tensors differ in width, heads do not divide
    it, or the report is no JSON.
    """
    place = open_folder(folder)
    files = place.shards()
    entries, tensors = survey(place, files, digests(place, files))
    stored = tuple(
        _stored_site(name, tensors, width=width, dtype=dtype, heads=(heads or {}).get(name)) for name in sites
    )
    index = {
        "version": _VERSION,
        "width": width,
        "sites": [
            {"name": site.name, "width": site.width, "dtype": site.dtype, "heads": site.heads} for site in stored
        ],
        "tensors": {name: tensor._asdict() for name, tensor in tensors.items()},
        "shards": [entry._asdict() for entry in entries],
        "excluded": _excluded(excluded or {}, {site.name: site.width for site in stored}),
        "report": dict(report or {}),
    }
    _write(place, index)


def annotate_index(folder: Path | str, *, excluded: Mapping[str, Iterable[int]], report: Mapping[str, Any]) -> None:
    """Put other exclusions and another report into a store that was sealed by `write_index`; no shard is read.

    Raises as `read_index` and `write_index` do, and ValueError for a store of version 1.
    """
    place = open_folder(folder)
    widths = {site.name: site.width for site in read_index(place).sites}
    index = json.loads(place.read(INDEX))
    if index["version"] != _VERSION:
        raise ValueError(f"a store of version {index['version']} holds no exclusions")
    _write(place, index | {"excluded": _excluded(excluded, widths), "report": dict(report)})


def _write(place: Folder, index: Mapping[str, Any]) -> None:
    text = json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    place.write(INDEX, [text.encode()])


def read_index(folder: Folder) -> Index:
    """Read the seal. Raises ArtifactError when it is missing, broken or of another version."""
    text, place = folder.read(INDEX), folder.place(INDEX)
    mend = f"Rebuild it with `{REBUILD}`"
    try:
        content = json.loads(text)
        version = content.get("version")
        if version == _VERSION:
            return _version_2(content)
        if version == 1:
            return _version_1(content, folder)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ArtifactError(f"{place} cannot be read as a store's index ({reason})", mend=mend) from error
    raise ArtifactError(f"{place} has version {version!r}, this program reads 1 and {_VERSION}", mend=mend)


def _version_2(content: Any) -> Index:
    shards = tuple(
        ShardEntry(_file(s["file"]), str(s["sha256"]), *(_count(s[key]) for key in ("bytes", "responses", "tokens")))
        for s in content["shards"]
    )
    tensors = {
        name: StoredTensor(t["dtype"], tuple(_count(n) for n in t["columns"])) for name, t in content["tensors"].items()
    }
    for name, tensor in tensors.items():
        if 0 in tensor.columns or not raw_dtype(tensor.dtype).itemsize:
            raise ValueError(f"{name} has no columns")
    return Index(
        width=_count(content["width"]),
        sites=tuple(StoredSite(s["name"], _count(s["width"]), s["dtype"], s["heads"]) for s in content["sites"]),
        tensors=tensors,
        shards=shards,
        excluded={site: tuple(_count(c) for c in found) for site, found in content["excluded"].items()},
        report=dict(content["report"]),
    )


def _version_1(content: Any, folder: Folder) -> Index:
    files = [_file(entry["file"]) for entry in content["shards"]]
    entries, tensors = survey(folder, files, [str(entry["sha256"]) for entry in content["shards"]])
    width, dtype = _count(content["width"]), str(content["dtype"])
    sites = tuple(_stored_site(name, tensors, width=width, dtype=dtype, heads=None) for name in content["sites"])
    return Index(width, sites, tensors, tuple(entries), {}, {})


def _file(name: Any) -> str:
    if not isinstance(name, str) or "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} is no shard's name")
    return name


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} stands where a count should")
    return value


def _stored_site(
    name: str, tensors: Mapping[str, StoredTensor], *, width: int, dtype: str, heads: int | None
) -> StoredSite:
    own = [tensor for called, tensor in tensors.items() if site_of(called) == name and len(tensor.columns) == 1]
    if own:
        width, dtype = own[0].columns[0], own[0].dtype
    if any(tensor.columns != (width,) for tensor in own):
        raise ValueError(f"the tensors of {name} differ in width")
    if heads is not None and (heads < 1 or width % heads):
        raise ValueError(f"{heads} heads do not divide the width {width} of {name}")
    return StoredSite(name, width, dtype, heads)


def _excluded(excluded: Mapping[str, Iterable[int]], widths: Mapping[str, int]) -> dict[str, list[int]]:
    found = {site: sorted({int(coordinate) for coordinate in coordinates}) for site, coordinates in excluded.items()}
    for site, coordinates in found.items():
        if site not in widths:
            raise DataError(f"{site} cannot lose coordinates: it is not stored", mend=f"Name one of {listed(widths)}")
        if coordinates and (coordinates[0] < 0 or coordinates[-1] >= widths[site]):
            wrong = coordinates[-1] if coordinates[-1] >= widths[site] else coordinates[0]
            raise DataError(
                f"{site} has no coordinate {wrong} to exclude", mend=f"Name some of 0 to {widths[site] - 1}"
            )
    return {site: coordinates for site, coordinates in found.items() if coordinates}
