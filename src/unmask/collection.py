"""What is read of every text: sites, aggregations, tokens. The `activations` section of a study file.

Two stages look at it: `activations`, which reads, and `responses`, which reads on the way while the models answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from unmask.artifact import digest_file, read_json, write_json
from unmask.errors import ArtifactError, ConfigError
from unmask.records import Aggregation, first_tokens
from unmask.stage import StageConfig


def _layer(value: Any) -> Any:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    if isinstance(value, float) and 0 <= value < 1:
        return value
    raise ValueError("Input should be the index of a layer, a fraction of the depth below 1 (0.55), or all")


LayerChoice = Annotated[int | float | Literal["all"], BeforeValidator(_layer)]


class CollectionConfig(StageConfig):
    """What is read, and where."""

    layers: tuple[LayerChoice, ...] = Field(
        min_length=1, description="indices of decoder layers, fractions of the depth (0.55), or all"
    )
    point: Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "z", "mlp_out"] = Field(
        "resid_pre", description="what is read at each of these layers"
    )
    sites: tuple[str, ...] = Field((), description="further sites, by name: hook_embed, blocks.3.attn.hook_z, ...")
    aggregations: tuple[Aggregation, ...] = Field(
        (), description="beside the response mean: prompt_last, response_last, response_first_K, mask"
    )
    mask: str | None = Field(None, description="Parquet or JSONL: response_id, tokens (positions in the response)")
    tokens: tuple[str, ...] | Literal["all"] = Field(
        (), description="sites of which every response token is kept; all: every site"
    )
    sink_ratio: float = Field(
        10.0, gt=1, description="a token this many times its response's median norm is an attention sink"
    )
    exclude_sinks: bool = Field(False, description="leave attention sinks out of means")
    massive_ratio: float = Field(
        100.0, gt=1, description="a coordinate this many times the median coordinate is massive"
    )
    exclude_massive: bool = Field(False, description="set massive coordinates to 0 wherever activations are read")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    token_budget: int = Field(2048, ge=64, description="padded tokens a batch")
    one_copy: bool | None = Field(
        None, description="base and adapter on one copy of the weights; null: in 16 bits, where both need no folding"
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _alone(cls, value: Any) -> Any:
        """`all` and a single layer need no list."""
        return [value] if isinstance(value, int | float | str) else value

    @field_validator("aggregations")
    @classmethod
    def _known(cls, value: tuple[Aggregation, ...]) -> tuple[Aggregation, ...]:
        for name in value:
            try:
                first_tokens(name)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _mask_has_a_use(self) -> CollectionConfig:
        if (self.mask is None) != ("mask" not in self.aggregations):
            raise ValueError("mask names a file of tokens, aggregations lists mask: either needs the other")
        return self


_RECORDED = "activations-recorded-"


class Recorded:
    """Shards of readings that were taken while the models answered, where the stage `activations` looks for them.

    A by-product that no key depends on, kept in the study's scratch: what is not there is read anew, to the same numbers up to
    rounding. A file `collection.json` says what was read; `shards.json`, written last, has the checksum of the answers' table and
    lists the shards with theirs. The folder is named as scratch of `activations`, with which it goes once that stage is done.
    """

    def __init__(self, scratch: Path, *, responses_key: str, collection: CollectionConfig) -> None:
        self.folder = scratch / f"{_RECORDED}{responses_key[:12]}"
        self._wanted = collection.model_dump(mode="json")

    @staticmethod
    def drop(scratch: Path) -> None:
        """Remove all that was recorded: it is of answers that are written anew."""
        for folder in scratch.glob(f"{_RECORDED}*"):
            shutil.rmtree(folder)

    def begin(self) -> None:
        """Make the folder; what was recorded for another collection, or of other responses, goes."""
        for other in self.folder.parent.glob(f"{_RECORDED}*"):
            if other != self.folder:
                shutil.rmtree(other)
        kept = self.folder / "collection.json"
        if self.folder.is_dir() and not (kept.is_file() and self._reads(kept) == self._wanted):
            shutil.rmtree(self.folder)
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            write_json(kept, self._wanted)

    def finish(self, responses: Path, *, device: str | None = None, devices: Sequence[str] = ()) -> None:
        """List the shards, which hold readings of the answers in that table: from now on they are complete.

        `device` is the kind that they were made on, `devices` names those that took part.
        """
        shards = {path.name: digest_file(path) for path in sorted(self.folder.glob("shard-*.safetensors"))}
        told = {"responses": digest_file(responses), "shards": shards, "device": device, "devices": list(devices)}
        write_json(self.folder / "shards.json", told)

    @property
    def devices(self) -> tuple[str | None, list[str]]:
        """The kind of device that finished shards were made on, None where it is not known, and the names of the devices."""
        found = self._reads(self.folder / "shards.json")
        return (found.get("device"), found.get("devices", [])) if isinstance(found, dict) else (None, [])

    def shards(self, responses: Path) -> list[Path]:
        """Finished shards whose checksum holds; none where something else was collected, or of other answers."""
        collection, found = self._reads(self.folder / "collection.json"), self._reads(self.folder / "shards.json")
        if collection != self._wanted or not isinstance(found, dict) or not responses.is_file():
            return []
        if found.get("responses") != digest_file(responses):
            return []
        paths = [(self.folder / name, digest) for name, digest in found["shards"].items()]
        return [path for path, digest in paths if path.is_file() and digest_file(path) == digest]

    def _reads(self, path: Path) -> Any:
        """The file's content; None where it is missing or broken, which is as good as nothing recorded."""
        try:
            return read_json(path, rebuild="nothing")
        except ArtifactError:
            return None
