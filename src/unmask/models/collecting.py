"""From the study file's words to what is read, and from what was read to the tensors of a shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.errors import ConfigError, listed
from unmask.models.loading import not_finite
from unmask.models.outlying import find_sinks
from unmask.models.passes import Readout, Text
from unmask.models.sites import choose_layers
from unmask.records import RESPONSE_MEAN, Site
from unmask.store import activation_name

if TYPE_CHECKING:
    from unmask.collection import CollectionConfig
    from unmask.models.pooling import Reading
    from unmask.store import ActivationStore


def readout_of(config: CollectionConfig, *, num_layers: int) -> Readout:
    """What a study file asks for, on a model of that depth; log-probabilities always, which log-odds and the judge need.

    Raises ConfigError for a site that is not known, a token site that is not collected, or a layer out of range.
    """
    layers = choose_layers(config.layers, num_layers=num_layers)
    sites = tuple(sorted({Site(layer, config.point) for layer in layers} | {Site.parse(name) for name in config.sites}))
    tokens = sites if config.tokens == "all" else tuple(sorted({Site.parse(name) for name in config.tokens}))
    for site in tokens:
        if site not in sites:
            raise ConfigError(
                f"activations.tokens names {site.name}, which is not collected",
                mend=f"Choose from {listed(each.name for each in sites)}, or add it to activations.sites",
            )
    return Readout(
        sites=sites,
        aggregations=tuple(dict.fromkeys((RESPONSE_MEAN, *config.aggregations))),
        tokens=tokens,
        sink_ratio=config.sink_ratio if config.exclude_sinks else None,
    )


def shard_tensors(readings: Mapping[Any, Reading], readout: Readout, *, sink_ratio: float) -> dict[str, np.ndarray]:
    """The tensors of a shard, from what each reader saw in the same texts; see `unmask.store` for their names.

    Beside them, per response and site: how many tokens are attention sinks, and the largest ratio to the response's median norm;
    where sinks are left out, which those are, as the first reader decided (`read_with_each`).

    Raises ModelError where a response that has tokens was read as something else than finite numbers.
    """
    _check_finite(readings, log_probs=readout.log_probs)
    tensors: dict[str, np.ndarray] = {}
    for number, (reader, reading) in enumerate(readings.items()):
        for site, seen in reading.sites.items():
            for aggregation, mean_NW in seen.means_NW.items():
                name = activation_name(reader, site.name, None if aggregation == RESPONSE_MEAN else aggregation)
                tensors[name] = mean_NW
            found = find_sinks(seen.token_norms_M, reading.offsets, ratio=sink_ratio)
            if number == 0 and readout.sink_ratio is not None:
                tensors[sink_name(site)] = found.found_M
            tensors[f"{reader}/{site.name}/norm"] = seen.norms_N
            tensors[f"{reader}/{site.name}/sinks"] = found.counts_N
            tensors[f"{reader}/{site.name}/peak"] = found.peaks_N
            if seen.tokens_MW is not None:
                tensors[activation_name(reader, site.name, "tokens")] = seen.tokens_MW
        if readout.log_probs:
            tensors[f"{reader}/log_prob"] = reading.log_prob_N
    return tensors


def _check_finite(readings: Mapping[Any, Reading], *, log_probs: bool) -> None:
    for reader, reading in readings.items():
        shown_N = np.diff(reading.offsets) > 0
        seen = {f"activations at {site.name}": reading.mean(site) for site in reading.sites}
        if log_probs:
            seen["log-probabilities"] = reading.log_prob_N[:, np.newaxis]
        for what, numbers_NW in seen.items():
            if not np.isfinite(numbers_NW[shown_N]).all():
                raise not_finite(f"{what} of {reader} are not finite numbers")


def sink_name(site: Site) -> str:
    """The tensor, a row a token, that marks which tokens were left out of the means at a site."""
    return f"left_out/{site.name}/sinks@tokens"


def sinks_in(store: ActivationStore, sites: Sequence[Site]) -> dict[str, dict[Site, np.ndarray]]:
    """By response, the tokens that were left out of the means at these sites."""
    marks, index = {site: store.read(sink_name(site)) for site in sites}, store.token_index()
    return {
        identity: {site: marks_M[index.rows(row)] for site, marks_M in marks.items()}
        for row, identity in enumerate(store.response_ids())
    }


def token_offsets(readings: Mapping[Any, Reading], readout: Readout) -> np.ndarray | None:
    """Where each text's tokens begin and end in the shard, the same for all readers; None where nothing is kept of tokens."""
    wanted = readout.tokens or readout.sink_ratio is not None
    return next(iter(readings.values())).offsets if wanted else None


def plan_chunks(texts: Sequence[Text], *, chunk_tokens: int) -> list[list[int]]:
    """Cut texts into chunks of at least one prompt each: what shares a prompt stays together, the longest prompts come first.

    A chunk holds prompts until their texts have `chunk_tokens` tokens: the unit that is lost when a run is killed.
    """
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, text in enumerate(texts):
        rows_of.setdefault(text.prompt_ids, []).append(row)
    chunks: list[list[int]] = []
    held = 0
    for prompt in sorted(rows_of, key=lambda ids: (-len(ids), rows_of[ids][0])):
        tokens = sum(texts[row].length for row in rows_of[prompt])
        if not chunks or held + tokens > chunk_tokens:
            chunks.append([])
            held = 0
        chunks[-1] += rows_of[prompt]
        held += tokens
    return chunks
