"""What the verdict is calibrated on: simulated studies whose truth is known, and what may be said of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unmask.analysis.real_worlds import RealKind
from unmask.analysis.world_spec import WORLDS, Truth

Family = Literal["reference", "noise", "structure", "control", "real"]

RIGHT: Mapping[Truth, frozenset[str]] = {
    "no-shift": frozenset({"no-shift"}),
    "monolithic": frozenset({"monolithic"}),
    "entangled": frozenset({"entangled"}),
    "separable": frozenset({"separable"}),
    "graded": frozenset({"monolithic", "entangled"}),
    "nested": frozenset({"entangled"}),
}
"""The verdicts that are right for a truth. Any other one but `inconclusive` is wrong."""


@dataclass(frozen=True, slots=True)
class Case:
    """A world with some of its description replaced; `real` worlds are planted on a model's own activations.

    `limit` says why the right verdict is not claimed there: the case is shown, and counted for false `separable`, but not among
    those that must be called right.
    """

    name: str
    world: str
    family: Family
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: str | None = None

    @property
    def truth(self) -> Truth:
        return WORLDS[self.world].truth


def _plain(family: Family, *names: str) -> list[Case]:
    return [Case(name, name, family) for name in names]


_TEN, _ONE_AND_A_HALF = 10**0.5, 1.5**0.5
"""Noise over shared energy of 10 and of 1.5, as ratios of norms."""

_HIDDEN = "topic carries over as much as the parts hold"
_SHARED_NOISE = "near-topics share noise: questions are not independent"
_LOUD = "the noise has no variance and its scale is three times the shift"

REFERENCE = [
    *_plain("reference", "no_shift", "monolithic", "monolithic_hetero_gain", "monolithic_drift", "separable_drift"),
    Case("monolithic, n = 885, d = 640", "monolithic", "reference", {"questions": 885, "width": 640}),
    Case("monolithic, n = 150, noise 10", "monolithic", "reference", {"questions": 150, "noise_ratio": _TEN}),
    Case("monolithic, noise 1.5", "monolithic", "reference", {"noise_ratio": _ONE_AND_A_HALF}),
    *_plain(
        "reference",
        "pass_through_linear",
        "pass_through_lowrank",
        "pass_through_nonlinear",
        "pass_through_saturating",
        "pass_through_gain_by_h",
        "pass_through_topic",
    ),
    Case("pass_through_linear, weak", "pass_through_linear", "reference", {"map_energy": 0.3}),
    Case("pass_through_lowrank, weak", "pass_through_lowrank", "reference", {"map_energy": 0.3}),
    Case("pass_through_topic, weak", "pass_through_topic", "reference", {"map_energy": 0.3}),
    Case(
        "pass_through_linear, n = 885, noise 1.5",
        "pass_through_linear",
        "reference",
        {"questions": 885, "noise_ratio": _ONE_AND_A_HALF},
    ),
    *_plain("reference", "separable", "separable_correlated", "separable_hard", "separable_few"),
    Case("separable_pass_through", "separable_pass_through", "reference", limit=_HIDDEN),
    Case("separable, rho .30", "separable", "reference", {"rho": 0.3}),
    Case("separable, rho .05", "separable", "reference", {"rho": 0.05}),
    Case(
        "separable, rho .10, n = 150, noise 10",
        "separable",
        "reference",
        {"rho": 0.1, "questions": 150, "noise_ratio": _TEN},
    ),
    *_plain("reference", "graded"),
    Case("two_way", "two_way", "reference", limit="without a control, two camps look like one graded axis"),
]
"""The worlds that the procedure was designed on (their like: these are drawn anew)."""

NEW = [
    *_plain("noise", "monolithic_lengths", "separable_lengths", "monolithic_outliers", "separable_outliers"),
    *_plain("noise", "monolithic_t2", "separable_t2"),
    Case("monolithic_clustered", "monolithic_clustered", "noise", limit=_SHARED_NOISE),
    Case("separable_clustered", "separable_clustered", "noise", limit=_SHARED_NOISE),
    *_plain("noise", "monolithic_question_noise"),
    Case("monolithic_t2, noise 3", "monolithic_t2", "noise", {"noise_ratio": 3.0}, limit=_LOUD),
    Case("separable_t2, noise 3", "separable_t2", "noise", {"noise_ratio": 3.0}, limit=_LOUD),
    *_plain("structure", "monolithic_unequal", "separable_unequal", "nested", "separable_nested"),
    *_plain("structure", "question_parts"),
    *_plain("structure", "sign_mixed_balanced", "sign_mixed_unbalanced", "separable_sign_mixed"),
    Case("monolithic, 10 groups", "monolithic", "structure", {"dimensions": 10, "questions": 400}),
    Case("separable, 10 groups", "separable", "structure", {"dimensions": 10, "questions": 400}),
    Case("monolithic, one response", "monolithic", "structure", {"responses": 1}),
    Case("separable, one response", "separable", "structure", {"responses": 1}),
]
"""Worlds that nobody tuned the procedure to."""

_POOR = {"control": True, "control_noise": 2.0, "control_questions": 80}
CONTROL = [
    Case("no_shift with control", "no_shift", "control", {"control": True}),
    Case("monolithic_drift with control", "monolithic_drift", "control", {"control": True}),
    Case("monolithic_drift, poor control", "monolithic_drift", "control", _POOR),
    Case(
        "monolithic_drift, control 40 degrees off",
        "monolithic_drift",
        "control",
        {"control": True, "control_angle": 40.0},
    ),
    Case("pass_through_linear with control", "pass_through_linear", "control", {"control": True}),
    Case("pass_through_lowrank with control", "pass_through_lowrank", "control", {"control": True}),
    Case("graded with control", "graded", "control", {"control": True}),
    Case("graded, poor control", "graded", "control", _POOR),
    Case("graded, control 40 degrees off", "graded", "control", {"control": True, "control_angle": 40.0}),
    Case("graded, control half the size", "graded", "control", {"control": True, "control_size": 0.5}),
    Case("two_way with control", "two_way", "control", {"control": True}),
    Case("two_way, poor control", "two_way", "control", _POOR),
    Case("separable_drift with control", "separable_drift", "control", {"control": True}),
    Case("separable_drift, poor control", "separable_drift", "control", _POOR),
]
"""Studies with a control organism: exact, noisy and on fewer questions, in another direction, of another size."""

REAL_KINDS: Mapping[str, RealKind] = {
    "no_shift": "none",
    "monolithic": "shared",
    "pass_through_linear": "pass_through",
    "separable": "separable",
}
REAL = [
    Case("real base and noise, none", "no_shift", "real"),
    Case("real base and noise, shared", "monolithic", "real"),
    Case("real base and noise, pass-through", "pass_through_linear", "real", {"map_energy": 5.0}),
    Case("real base and noise, separable", "separable", "real"),
    Case("real base and noise, separable, noise 1.5", "separable", "real", {"noise_ratio": _ONE_AND_A_HALF}),
]
"""Planted on the embedded model's own activations (`calibration_real`)."""

QUICK = ("no_shift", "monolithic", "pass_through_linear", "separable", "monolithic_outliers", "separable_unequal")
