"""How shifts and activations are described, and which k and site are dwelt on."""

from __future__ import annotations

from pydantic import Field

from unmask.analysis.clusterers import CLUSTERERS, ClustererName
from unmask.errors import ConfigError, listed
from unmask.records import Site
from unmask.stage import StageConfig

DEFAULT_K = (3, 4, 5, 7, 15, 50)


class DecompositionConfig(StageConfig):
    """How shifts and activations are described."""

    k: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="numbers of clusters; null for 3, 4, 5, 7, 15, 50 where at least 2 questions each",
    )
    components: int = Field(50, ge=1, description="principal components kept (fewer where the data has fewer)")
    primary_layer: int | None = Field(None, description="layer named before looking; null for the middle one")
    primary_k: int = Field(4, ge=2, description="the clustering that steering and the report dwell on")
    seed: int = 42
    restarts: int = Field(10, ge=1)
    clusterers: tuple[ClustererName, ...] = Field(
        tuple(CLUSTERERS), description="ways of clustering compared at every site; empty for K-means alone"
    )
    mixture_components: int = Field(
        10,
        ge=1,
        description="leading components that Gaussian mixtures see: more parameters than questions fit anything",
    )
    most_k: int = Field(10, ge=3, description="criteria for k try 1 to this; at the primary site only")
    gap_references: int = Field(
        20, ge=2, description="reference data sets of the gap statistic; at the primary site only"
    )
    bootstraps: int = Field(50, ge=1, description="resamples of the bootstrap Jaccard; at the primary site only")
    consensus_runs: int = Field(50, ge=1, description="runs of the consensus clustering; at the primary site only")
    prediction_splits: int = Field(5, ge=1, description="splits of prediction strength; at the primary site only")
    factors: int = Field(
        8,
        ge=1,
        description="independent components, non-negative factors and atoms described; shift, primary site only",
    )
    dictionary_atoms: int = Field(
        32, ge=2, description="atoms of the sparse dictionary; at most a third of the questions"
    )
    dictionary_active: int = Field(4, ge=1, description="atoms that a question uses on average")
    dictionary_steps: int = Field(600, ge=1, description="training steps of the sparse dictionary")


def choose_k(config: DecompositionConfig, questions: int) -> tuple[int, ...]:
    """The numbers of clusters to try. Raises ConfigError when one needs more clusters than there are questions."""
    if config.k is None:
        fitting = tuple(k for k in DEFAULT_K if 2 * k <= questions)
        if not fitting:
            raise ConfigError(
                f"{questions} questions are too few for the smallest default number of clusters, {DEFAULT_K[0]}",
                mend=f"Ask at least {2 * DEFAULT_K[0]} questions or set decomposition.k",
            )
        return fitting
    for k in config.k:
        if not 2 <= k < questions:
            raise ConfigError(
                f"decomposition.k asks for {k} clusters of {questions} questions",
                mend=f"Choose numbers from 2 to {questions - 1}, or ask more questions",
            )
    return tuple(sorted(set(config.k)))


def choose_primary_k(config: DecompositionConfig, ks: tuple[int, ...]) -> int:
    """The clustering named before looking; the nearest one where few questions ruled its default out.

    Raises ConfigError when the study names one that is not in its own list.
    """
    if config.primary_k in ks:
        return config.primary_k
    if config.k is None and "primary_k" not in config.model_fields_set:
        return min(ks, key=lambda k: (abs(k - config.primary_k), k))
    raise ConfigError(
        f"decomposition.primary_k is {config.primary_k}, clusterings are made with k = {listed(ks)}",
        mend="Choose one of those, or add it to decomposition.k",
    )


def primary_site(config: DecompositionConfig, sites: list[Site]) -> Site:
    """The site of the residual stream that was named before looking: steering will add to it.

    Raises ConfigError when it was not collected.
    """
    stream = sorted(site for site in sites if site.residual)
    if not stream:
        raise ConfigError(
            "activations collects no site of the residual stream, which decomposition and steering dwell on",
            mend="Set activations.point to resid_pre, or add one such as blocks.20.hook_resid_pre to activations.sites",
        )
    if config.primary_layer is None:
        return stream[(len(stream) - 1) // 2]
    for site in stream:
        if site.layer == config.primary_layer:
            return site
    raise ConfigError(
        f"decomposition.primary_layer is {config.primary_layer}, activations were collected at layers "
        f"{listed(dict.fromkeys(site.layer for site in stream))}",
        mend="Choose one of those or add it to activations.layers",
    )
