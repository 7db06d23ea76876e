"""What a simulated world is made of, and the named worlds that the verdict is judged on.

Sizes are in units of the shared direction's length, in coordinates divided by their own spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Truth = Literal["no-shift", "monolithic", "entangled", "separable", "graded", "nested"]
"""What holds of the means over questions: none; one direction; a map of h; one direction per dimension; const + a_f b; parts
inside a dimension that its mean does not show."""

Structure = Literal["shared", "graded", "two_way"]
"""How the dimensions share the persona's direction: equally, by a grade of their own, or in two camps with one direction each."""

Offsets = Literal["isotropic", "correlated", "noise"]
"""Where specific directions come from: any direction, neighbours alike (correlation .6), or the noise covariance."""

MapKind = Literal["linear", "lowrank", "nonlinear", "saturating", "gain_by_h", "topic"]
"""How a shift may follow the base activation, the same for all dimensions."""

ScoreModel = Literal["shared", "separable", "none"]
"""What the score rises with: the shared direction, another direction in each dimension, nothing."""


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """One kind of world. A shift is drift + gain (shared + specific) + map(h) + noise.

    `rho` (or `eta`) is asked of the persona's dimension means, without drift and map. `noise_ratio` is the root mean square
    norm of the noise of an ordinary question's mean shift; `question_share` and `cluster_share` are the parts of its variance
    that the responses of a question, and the questions of a near-topic, have in common.
    """

    name: str
    truth: Truth
    note: str
    questions: int = 240
    width: int = 256
    dimensions: int = 4
    shares: tuple[float, ...] | None = None
    responses: int = 2
    shared: float = 1.0
    facet_gain: float = 0.15
    question_gain: float = 0.3
    structure: Structure = "shared"
    drift: float = 0.0
    rho: float | None = None
    eta: float | None = None
    offsets: Offsets = "isotropic"
    specific: int | None = None
    map_kind: MapKind | None = None
    map_energy: float = 1.0
    nested: float = 0.0
    polarity: Literal["balanced", "unbalanced"] | None = None
    polarity_axis: Literal["shared", "own"] = "shared"
    noise_ratio: float = 3.0
    spectrum: float = 1.0
    tail_df: float = 5.0
    skew: float = 0.2
    massive: int = 3
    outliers: float = 0.0
    length_spread: float = 0.0
    question_share: float = 0.0
    cluster_share: float = 0.0
    topic_share: float = 0.35
    control: bool = False
    control_angle: float = 0.0
    control_size: float = 1.0
    control_noise: float = 1.0
    control_map: float = 0.5
    control_questions: int | None = None
    score: ScoreModel = "shared"


_UNEQUAL = (0.6, 0.25, 0.1, 0.05)
_ALL_ALIKE = "one direction for all questions"
_OWN = "each dimension has a direction of its own beside the shared one"
_BY_TOPIC = "one map of the base activation for all dimensions; means differ because topics do"


def _monolithic(name: str, note: str, **options: object) -> WorldSpec:
    return WorldSpec(name, "monolithic", f"{_ALL_ALIKE}; {note}", **options)  # ty: ignore[invalid-argument-type]


def _separable(name: str, note: str, **options: object) -> WorldSpec:
    return WorldSpec(name, "separable", f"{_OWN}; {note}", **({"rho": 0.15} | options))  # ty: ignore[invalid-argument-type]


def _pass_through(kind: MapKind, note: str) -> WorldSpec:
    return WorldSpec(f"pass_through_{kind}", "entangled", f"{_BY_TOPIC}; {note}", map_kind=kind)


_SPECS = (
    WorldSpec("no_shift", "no-shift", "noise alone", shared=0.0, score="none"),
    _monolithic("monolithic", "moderate gains"),
    _monolithic(
        "monolithic_hetero_gain", "facets and questions differ much in gain", facet_gain=0.5, question_gain=0.6
    ),
    _monolithic("monolithic_drift", "a four times larger constant of tuning itself", drift=4.0),
    _monolithic(
        "monolithic_question_noise", "half of the noise is the question's own", question_share=0.5, noise_ratio=1.0
    ),
    WorldSpec(
        "question_parts",
        "nested",
        "one direction for all dimensions; the questions' own part is larger, and comes back in a second response",
        question_share=0.5,
    ),
    _pass_through("linear", "full rank"),
    _pass_through("lowrank", "rank 3"),
    _pass_through("nonlinear", "cosine features"),
    _pass_through("saturating", "tanh far from its linear part"),
    _pass_through("gain_by_h", "directions whose gain grows with h"),
    _pass_through("topic", "reads the directions in which topics differ most"),
    WorldSpec("graded", "graded", "const + a_f b: rank 2, one axis", structure="graded", drift=1.5),
    WorldSpec(
        "two_way",
        "separable",
        "two camps with one direction each: rank 2, told from a grade by a control only",
        structure="two_way",
        drift=1.5,
    ),
    _separable("separable", "any direction"),
    _separable("separable_correlated", "neighbouring dimensions alike", offsets="correlated"),
    _separable("separable_hard", "directions of large noise", offsets="noise"),
    _separable("separable_few", "two of the dimensions only", specific=2),
    _separable("separable_pass_through", "and a linear map of h on top", map_kind="linear"),
    _separable("separable_drift", "a four times larger constant of tuning itself", drift=4.0),
    _monolithic("monolithic_lengths", "noise variance falls with the length of a question", length_spread=0.6),
    _separable("separable_lengths", "noise variance falls with the length of a question", length_spread=0.6),
    _monolithic("monolithic_outliers", "3 % of the rows are 10 times as loud", outliers=0.03),
    _separable("separable_outliers", "3 % of the rows are 10 times as loud", outliers=0.03),
    _monolithic("monolithic_t2", "noise has no variance (t with 2 degrees of freedom)", tail_df=2.0, noise_ratio=1.5),
    _separable("separable_t2", "noise has no variance (t with 2 degrees of freedom)", tail_df=2.0, noise_ratio=1.5),
    _monolithic("monolithic_unequal", "60, 25, 10 and 5 % of the questions", shares=_UNEQUAL),
    _separable("separable_unequal", "60, 25, 10 and 5 % of the questions", shares=_UNEQUAL),
    _monolithic("monolithic_clustered", "near-topics share noise", cluster_share=0.3),
    _separable("separable_clustered", "near-topics share noise", cluster_share=0.3),
    WorldSpec("nested", "nested", "two directions inside one dimension, whose mean shows neither", nested=1.5),
    _separable("separable_nested", "and two more inside one dimension", nested=1.5),
    _monolithic("sign_mixed_balanced", "its sign is the question's polarity, half and half", polarity="balanced"),
    _monolithic("sign_mixed_unbalanced", "its sign is the question's polarity, 10 to 90 %", polarity="unbalanced"),
    _separable(
        "separable_sign_mixed",
        "and an axis whose sign is the question's polarity",
        polarity="unbalanced",
        polarity_axis="own",
    ),
)
WORLDS: dict[str, WorldSpec] = {spec.name: spec for spec in _SPECS}
