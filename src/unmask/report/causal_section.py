"""The section on the causal tests as the page takes it: figures by name, tables and texts, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unmask.report import (
    causal_controls,
    causal_examples,
    causal_tables,
    causal_traits,
    causal_wording,
    dose_tables,
    dose_wording,
    readout_wording,
)
from unmask.report.causal_drawings import matrix_name, safe
from unmask.report.causal_evidence import UNSTEERED, CausalEvidence
from unmask.report.formats import counted
from unmask.report.tables import Table

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Shown:
    """One matrix: its figure's name, what it is, what it says, and its tables. `own` is the one that the verdict reads."""

    figure: str
    title: str
    reading: str
    own: bool
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """All that the section shows."""

    lead: Sequence[str]
    readings: Sequence[tuple[str, str]]
    window: str
    matrices: Sequence[Shown]
    effect_figures: Sequence[tuple[str, str]]
    """(figure's name, caption)."""
    judged_figures: Sequence[tuple[str, str]]
    beside_controls: Sequence[str]
    controls: Sequence[tuple[str, Table]]
    every_control: Sequence[Table]
    effect_doses: Table
    judged_doses: Table
    traits: Table
    no_traits: str
    agreement: Sequence[str]
    confirmation: Table
    steered_rule: str
    steered: Sequence[causal_examples.Group]
    items_rule: str
    items: Sequence[causal_examples.Group]
    notes: Sequence[str]


def _doses(table: pd.DataFrame) -> dict[str, bool]:
    """Of each target whether there are several coefficients."""
    return {str(name): part["coefficient"].nunique() > 1 for name, part in table.groupby("target", sort=False)}


def section(causal: CausalEvidence, questions: pd.DataFrame, figures: Mapping[str, object]) -> Section:
    """Everything shown; `figures` are those that were drawn."""
    targets = list(dict.fromkeys(causal.controls["target"].astype(str)))
    shown = {
        part: [
            (safe(f"{part}-{name}"), dose_wording.caption(part, str(name), several=several))
            for name, several in _doses(table).items()
            if safe(f"{part}-{name}") in figures
        ]
        for part, table in (("doses", causal.doses), ("steering", causal.steered[causal.steered["kind"] != UNSTEERED]))
    }
    led = None if causal.record is None else causal.record["target"]  # whose controls stand in the lead
    return Section(
        lead=causal_wording.lead(causal),
        readings=causal_wording.readings(causal),
        window=dose_wording.window(causal),
        matrices=[
            Shown(
                matrix_name(record),
                causal_wording.title(record),
                causal_wording.reading(causal, record),
                record is causal.measured[0],
                (
                    causal_tables.matrix_table(causal, record),
                    causal_tables.selectivity_table(causal, record),
                    causal_tables.random_table(causal, record),
                ),
            )
            for record in causal.measured
        ],
        effect_figures=shown["doses"],
        judged_figures=shown["steering"],
        beside_controls=[
            text
            for target in targets
            for text in (
                "" if target == led else causal_wording.beside_controls(causal, target),
                causal_controls.beside_wrong_clusters(causal, target),
            )
            if text
        ],
        controls=[
            (target, causal_controls.controls_table(causal, target, coefficient=causal.shown_at(target)))
            for target in targets
        ],
        every_control=[causal_controls.controls_table(causal, target, coefficient=None) for target in targets],
        effect_doses=dose_tables.effect_doses(causal),
        judged_doses=dose_tables.judged_doses(causal),
        traits=causal_traits.trait_table(causal),
        no_traits=causal_traits.no_traits(causal),
        agreement=readout_wording.agreement(causal),
        confirmation=causal_tables.confirmation_table(causal),
        steered_rule=causal_examples.STEERED_RULE,
        steered=causal_examples.steered_answers(causal, questions),
        items_rule=causal_examples.ITEMS_RULE,
        items=causal_examples.items(causal, questions),
        notes=[
            *(f"Directions: {note}" for note in causal.directed["notes"]),
            *(f"Effects: {kind}: no such direction was made" for kind in causal.summary.get("kinds_missing") or ()),
            *(
                f"Effects: {counted(int(count), 'question')} left out: {why}"
                for why, count in (causal.summary.get("left_out") or {}).items()
            ),
            *(f"Steering: {note}" for note in causal.steering["notes"]),
        ],
    )
