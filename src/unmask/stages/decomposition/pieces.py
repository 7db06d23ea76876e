"""The decomposition cut into pieces: what each of them gives, and the files that hold it until all are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from unmask.artifact import read_json, read_table, read_tensors, write_json, write_table, write_tensors
from unmask.errors import ArtifactError
from unmask.records import Site
from unmask.stages.decomposition.artifacts import ROWS, TABLES, TOKENS, Rows, Tables, plain
from unmask.stages.decomposition.material import SOURCES, Source

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

STACKED = "stacked"
"""The pseudo-site of all layers side by side, each divided by the RMS norm of its rows."""

Step = Literal["sweep", "examination", "stacked", "tokens"]
"""All clusterings of one site; the choice of k, stability and components at the primary one; the clusterings of all layers; the
single tokens of one site."""

_UNITS: dict[Step, int] = {"sweep": 1, "examination": 3, "stacked": 1, "tokens": 1}
_SCHEMAS = {**TABLES, **ROWS, **TOKENS}
_HOLDS: dict[Step, tuple[str, ...]] = {
    "sweep": (*TABLES, "methods"),
    "examination": tuple(ROWS),
    "stacked": ("methods",),
    "tokens": tuple(TOKENS),
}
_SUMMARY, _AXES = "summary", "token_components"


@dataclass
class Facts:
    """What is in no table: axes of the tokens, and of the summary `geometry` of the shift by site, `chosen` the k of each
    criterion by source, `tokens` by site and source.
    """

    axes: dict[str, np.ndarray] = field(default_factory=dict)
    geometry: dict[str, dict[str, float]] = field(default_factory=dict)
    chosen: dict[str, dict[str, int | None]] = field(default_factory=dict)
    tokens: dict[str, dict[str, dict[str, int | float | None]]] = field(default_factory=dict)


@dataclass
class Gathered(Facts):
    """What a piece gives: rows of every table, in order, and facts."""

    tables: Tables = field(default_factory=lambda: {name: [] for name in TABLES})
    rows: Rows = field(default_factory=lambda: {name: [] for name in (*ROWS, *TOKENS)})


class _Summary(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    geometry: dict[str, dict[str, float]]
    chosen: dict[str, dict[str, int | None]]
    tokens: dict[str, dict[str, dict[str, int | float | None]]]


@dataclass(frozen=True, slots=True)
class Piece:
    """One step for one source; `site` is None for all layers together."""

    step: Step
    source: Source
    site: Site | None

    @property
    def name(self) -> str:
        return "-".join([self.step, self.source, *([] if self.site is None else [self.site.name])])

    @property
    def units(self) -> int:
        """About how long it takes, against the clusterings of one site."""
        return _UNITS[self.step]

    def files(self, folder: Path) -> dict[str, Path]:
        """Its tables and its part of the summary, by name."""
        tables = {name: folder / f"{name}-{self.name}.parquet" for name in _HOLDS[self.step]}
        axes = {_AXES: folder / f"{_AXES}-{self.name}.safetensors"} if self.step == "tokens" else {}
        return tables | axes | {_SUMMARY: folder / f"{_SUMMARY}-{self.name}.json"}


def plan(sites: Sequence[Site], primary: Site, *, with_tokens: Sequence[Site] = ()) -> tuple[Piece, ...]:
    """All pieces, in the order in which their rows stand in the tables. One layer is not stacked."""
    pieces: list[Piece] = []
    for site in sites:
        for source in SOURCES:
            pieces.append(Piece("sweep", source, site))
            if site == primary:
                pieces.append(Piece("examination", source, site))
    if len(sites) > 1:
        pieces += [Piece("stacked", source, None) for source in SOURCES]
    pieces += [Piece("tokens", source, site) for site in with_tokens for source in SOURCES]
    return tuple(pieces)


def write_piece(files: Mapping[str, Path], made: Gathered) -> None:
    """Put a piece into its files, the part of the summary last."""
    import pandas as pd

    for name, path in files.items():
        if name in TABLES:
            write_table(path, pd.concat(made.tables[name], ignore_index=True), schema=TABLES[name])
        elif name in _SCHEMAS:
            schema = _SCHEMAS[name]
            write_table(path, [plain(row, schema.names) for row in made.rows[name]], schema=schema)
        elif name == _AXES:
            write_tensors(path, made.axes)
    write_json(files[_SUMMARY], {"geometry": made.geometry, "chosen": made.chosen, "tokens": made.tokens})


@dataclass
class Whole(Facts):
    """All pieces together: every table that one of them has, and all facts."""

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)

    def add(self, part: _Summary) -> None:
        self.geometry |= part.geometry
        self.chosen |= part.chosen
        for site, sources in part.tokens.items():
            self.tokens.setdefault(site, {}).update(sources)


def gather(pieces: Iterable[Mapping[str, Path]], *, rebuild: str) -> Whole:
    """Join what was written of all pieces. Raises ArtifactError for a file that is missing, broken or something else."""
    import pandas as pd

    parts: dict[str, list[pd.DataFrame]] = {}
    whole = Whole()
    for files in pieces:
        for name, path in files.items():
            try:
                if name == _SUMMARY:
                    whole.add(_read_summary(path))
                elif name == _AXES:
                    whole.axes |= read_tensors(path, rebuild=rebuild)
                else:
                    parts.setdefault(name, []).append(_read_part(path, name))
            except ArtifactError as error:
                mend = "Delete it and run the same command again, which makes it anew; or make all of them with"
                raise ArtifactError(error.what, mend=f"{mend} `{rebuild}`") from error
    whole.tables = {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}
    return whole


def _read_part(path: Path, name: str) -> pd.DataFrame:
    found = read_table(path, rebuild="")
    if list(found.columns) != _SCHEMAS[name].names:
        raise ArtifactError(f"{path} has other columns than {name}")
    return found


def _read_summary(path: Path) -> _Summary:
    try:
        return _Summary.model_validate(read_json(path, rebuild=""))
    except ValidationError as error:
        raise ArtifactError(f"{path} is no part of a decomposition's summary") from error
