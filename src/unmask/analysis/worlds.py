"""Simulated studies whose truth is known: what the verdict's error rates and power are measured on.

Nothing here knows the tests: a world is drawn from a description of what a shift may be made of (`world_spec`).
Letters: N questions, S responses a question, D coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from unmask.analysis.world_noise import Noise, PowerLaw, Spread, draw_noise, row_scales
from unmask.analysis.world_signal import Signal, plant, sizes
from unmask.analysis.world_spec import WORLDS, Truth, WorldSpec
from unmask.analysis.world_topics import Layout, draw_bases, lay_out

_JUDGE_NOISE = 8.0  # points of 100
_MASSIVE = 30.0  # how much larger a massive dimension is; Sun et al. 2024 (arXiv 2402.17762) find far larger ones, too


@dataclass(frozen=True, slots=True)
class World:
    """A study drawn at random, and its truth.

    `shift_ND` is the mean of `replicates_NSD` (None for one response), `control_ND` the control organism's shift on the same
    tokens (NaN rows where it was not asked; None without a control), `scores_N` 0..100. `signal_ND` is the shift without noise,
    `unit_D` each coordinate's unit. `rho` and `eta` are of the noise-free dimension means, coordinates in their units;
    `persona_rho` is without drift and map. NaN where the means are zero.
    """

    name: str
    truth: Truth
    note: str
    shift_ND: np.ndarray
    base_ND: np.ndarray
    replicates_NSD: np.ndarray | None
    groups_N: np.ndarray
    facets_N: np.ndarray
    polarity_N: np.ndarray
    control_ND: np.ndarray | None
    scores_N: np.ndarray
    signal_ND: np.ndarray
    noise_scale_N: np.ndarray
    unit_D: np.ndarray
    rho: float
    eta: float
    persona_rho: float


@dataclass(frozen=True, slots=True)
class Setting:
    """What a world is planted on: questions with their labels, base activations (as recorded; centred in units; topic means in
    units), the noise covariance, each row's loudness, each coordinate's unit."""

    layout: Layout
    groups_N: np.ndarray
    facets_N: np.ndarray
    base_ND: np.ndarray
    centred_ND: np.ndarray
    topic_ND: np.ndarray
    spread: Spread
    noise_scale_N: np.ndarray
    unit_D: np.ndarray


def draw(world: WorldSpec | str, *, rng: np.random.Generator, **overrides: object) -> World:
    """Draw a world by name or description, with any of the description's fields replaced by `overrides`.

    The same generator state gives the same world; a control, more noise or another score model leave the rest as it was.
    Raises ValueError for an unknown name, an unknown field, or a description that cannot be met.
    """
    spec = described(world, overrides)
    setting_rng, noise_rng, control_rng, rest_rng = rng.spawn(4)
    setting = _setting(spec, rng=setting_rng)
    noise = _noise(spec, setting, rng=noise_rng)
    fresh = _noise(spec, setting, rng=control_rng) if spec.control else None
    return build(spec, setting, noise, fresh, rng=rest_rng)


def described(world: WorldSpec | str, overrides: dict[str, object]) -> WorldSpec:
    """The description of a world with some fields replaced. Raises ValueError for an unknown name or field."""
    if isinstance(world, str):
        if world not in WORLDS:
            raise ValueError(f"no world is called {world!r}; there are {', '.join(WORLDS)}")
        world = WORLDS[world]
    unknown = set(overrides) - set(WorldSpec.__dataclass_fields__)
    if unknown:
        raise ValueError(
            f"a world has no {', '.join(sorted(unknown))}; it has {', '.join(WorldSpec.__dataclass_fields__)}"
        )
    return replace(world, **overrides)


def build(
    spec: WorldSpec, setting: Setting, noise: Noise, control_noise: Noise | None, *, rng: np.random.Generator
) -> World:
    """Plant `spec`'s shift on a setting: signal, noise, the control's shift where its noise is given, and scores.

    Raises ValueError when no size of the specific directions gives the `rho` or `eta` asked.
    """
    signal_rng, control_rng, score_rng = rng.spawn(3)
    signal = plant(
        spec,
        setting.layout,
        (setting.centred_ND, setting.topic_ND),
        setting.spread,
        noise_variance=noise.variance,
        rng=signal_rng,
    )
    rows_ND = signal.rows_ND
    found = sizes(rows_ND, setting.layout.dimension_N, setting.spread, noise_variance=noise.variance)
    replicates_NSD = setting.unit_D * (rows_ND[:, None] + noise.rows_NSD)
    control_ND = None
    if control_noise is not None:
        control_ND = setting.unit_D * _control(spec, signal, control_noise, rng=control_rng)
    return World(
        name=spec.name,
        truth=spec.truth,
        note=spec.note,
        shift_ND=replicates_NSD.mean(axis=1),
        base_ND=setting.base_ND,
        replicates_NSD=replicates_NSD if spec.responses > 1 else None,
        groups_N=setting.groups_N,
        facets_N=setting.facets_N,
        polarity_N=signal.polarity_N,
        control_ND=control_ND,
        scores_N=_scores(spec, signal, rng=score_rng),
        signal_ND=setting.unit_D * rows_ND,
        noise_scale_N=setting.noise_scale_N,
        unit_D=setting.unit_D,
        rho=found.rho,
        eta=found.eta,
        persona_rho=signal.persona_rho,
    )


def _setting(spec: WorldSpec, *, rng: np.random.Generator) -> Setting:
    unit_D = np.ones(spec.width)
    unit_D[rng.permutation(spec.width)[: spec.massive]] = _MASSIVE
    layout = lay_out(spec, rng=rng)
    bases = draw_bases(spec, layout, unit_D, rng=rng)
    spread = PowerLaw.make(spec.width, exponent=spec.spectrum, skew=spec.skew, rng=rng)
    names_G = np.array([f"dimension-{number + 1}" for number in range(layout.dimensions)])
    names_F = np.array([f"facet-{number + 1}" for number in range(layout.facets)])
    return Setting(
        layout=layout,
        groups_N=names_G[layout.dimension_N],
        facets_N=names_F[layout.facet_N],
        base_ND=bases.recorded_ND,
        centred_ND=bases.centred_ND,
        topic_ND=bases.topic_ND,
        spread=spread,
        noise_scale_N=row_scales(spec, layout.dimension_N, rng=rng),
        unit_D=unit_D,
    )


def _noise(spec: WorldSpec, setting: Setting, *, rng: np.random.Generator) -> Noise:
    return draw_noise(spec, setting.spread, setting.noise_scale_N, setting.layout.near_topic_N, rng=rng)


def _control(spec: WorldSpec, signal: Signal, noise: Noise, *, rng: np.random.Generator) -> np.ndarray:
    """The control organism's shift: its drift at an angle to the organism's, part of what follows the base, its own noise."""
    count, width = signal.mapped_ND.shape
    drift_D = np.zeros(width)
    length = float(np.linalg.norm(signal.drift_D))
    if length > 0:
        along_D = signal.drift_D / length
        across_D = rng.standard_normal(width)
        across_D -= (across_D @ along_D) * along_D
        angle = np.deg2rad(spec.control_angle)
        drift_D = np.cos(angle) * along_D + np.sin(angle) * across_D / np.linalg.norm(across_D)
    rows_ND = spec.control_noise * noise.rows_NSD.mean(axis=1) + spec.control_map * signal.mapped_ND
    rows_ND += spec.control_size * length * drift_D
    asked = count if spec.control_questions is None else spec.control_questions
    rows_ND[rng.permutation(count)[asked:]] = np.nan
    return rows_ND


def _scores(spec: WorldSpec, signal: Signal, *, rng: np.random.Generator) -> np.ndarray:
    """Misalignment 0..100: a logistic curve of the persona's strength, and the judge's noise; low without a persona."""
    count = signal.polarity_N.size
    level = -0.5 if spec.shared > 0 else -2.5
    strength_N = np.zeros(count) if signal.strength_N is None else signal.strength_N
    return np.clip(100 * expit(level + 1.5 * strength_N) + _JUDGE_NOISE * rng.standard_normal(count), 0, 100)
