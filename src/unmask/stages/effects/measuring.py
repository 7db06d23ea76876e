"""Effects are measured: every item under every intervention that may test it, on base and organism.

Shapes: R effects, A answers of an item.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from unmask.artifact import read_table, write_table
from unmask.records import Site
from unmask.stage import Inputs, Make, Shard, Told, Work
from unmask.stages.effects.config import EffectsConfig
from unmask.stages.effects.items import Answer, Item
from unmask.stages.effects.plan import Directions, Group, Tested, interventions_of, plan_added, plan_removed
from unmask.study import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from unmask.models.loading import LoadedModel

ITEMS_AT_ONCE = 4
"""Items of a batch: what a kill loses. Interventions, not items, fill the rows of a pass."""

EFFECTS = pa.schema(
    [
        *((name, pa.string()) for name in ("target", "direction_id", "kind", "label", "grouping", "group")),
        ("replicate", pa.int32()),
        ("half", pa.string()),
        ("operation", pa.string()),
        ("coefficient", pa.float64()),
        ("question_id", pa.string()),
        ("effect", pa.float64()),
        ("loss", pa.float64()),
    ]
)
PLAIN = pa.schema(
    [*((name, pa.string()) for name in ("target", "question_id")), ("log_odds", pa.float64()), ("tokens", pa.int32())]
)


def measuring_work(
    config: EffectsConfig,
    inputs: Inputs,
    workspace: Workspace,
    *,
    items: Sequence[Item],
    directions: Directions,
    site: Site,
    typical_norm: float,
) -> Work:
    """A shard is a batch of items on one target: two files, with rows of EFFECTS and of PLAIN."""
    rows = directions.chosen(config.kinds)
    plans = {"base": plan_added(config, rows), **({"organism": plan_removed(config, rows)} if config.removals else {})}
    places = {
        f"{target}-{place:05d}": (target, items[start : start + ITEMS_AT_ONCE])
        for target in plans
        for place, start in enumerate(range(0, len(items), ITEMS_AT_ONCE))
    }
    shards = tuple(
        Shard(name, len(batch), tuple(workspace.batches / f"{kind}-{name}.parquet" for kind in ("effects", "plain")))
        for name, (_, batch) in places.items()
    )

    @contextmanager
    def opened() -> Generator[Make]:
        from unmask.models.packed_weights import packed_weights

        models = _models(inputs, list(plans))
        interventions = {
            target: interventions_of(plan, directions, site, typical_norm, positions=config.positions)
            for target, plan in plans.items()
        }

        def make(shard: Shard, told: Told) -> None:
            target, chosen = places[shard.name]
            batch = [_tokenised(item, models["base"]) for item in chosen]
            measurement = _Measurement(site, plans[target], interventions[target], directions.half_of)
            for path, found, schema in zip(
                shard.files, measurement.run(target, models, batch), (EFFECTS, PLAIN), strict=True
            ):
                write_table(path, found, schema=schema)
            told(len(batch))

        with packed_weights(*(loaded.model for loaded in models.values())):
            yield make

    return Work("effects", shards, opened)


def measured(shards: Sequence[Shard], *, rebuild: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables EFFECTS and PLAIN of all items on every target."""
    import pandas as pd

    found = [pd.concat([read_table(shard.files[kind], rebuild=rebuild) for shard in shards]) for kind in (0, 1)]
    return found[0].reset_index(drop=True), found[1].reset_index(drop=True)


@dataclass(frozen=True, slots=True)
class _Measurement:
    """What is to be measured on one target: the plan, as interventions, and the half of each question by replicate."""

    site: Site
    plan: Sequence[Tested]
    groups: Sequence[Group]
    half_of: Mapping[str, Mapping[int, str]]

    def run(
        self, target: str, models: Mapping[str, LoadedModel], batch: Sequence[Item]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of EFFECTS and PLAIN for a batch of items."""
        from contextlib import ExitStack

        from unmask.models.forcing import Forcing

        prompts = [item.prompt_ids for item in batch]
        answers = [(item.misaligned.token_ids, item.aligned.token_ids) for item in batch]
        effects: list[dict[str, Any]] = []
        with ExitStack() as stack:
            reference = None
            if any(self._replaces(group) for group in self.groups):
                reference = stack.enter_context(Forcing(models["base"], self.site, prompts, answers))
            forcing = stack.enter_context(Forcing(models[target], self.site, prompts, answers))
            for group in self.groups:
                asked = self._asked(group, batch)
                if not asked:
                    continue
                wanted = reference if self._replaces(group) else None
                under_RA = forcing.under(group.intervention, asked, reference=wanted)
                for (n, v), under_A in zip(asked, under_RA, strict=True):
                    tested = self.plan[group.places[v]]
                    effects.append(_effect(target, tested, batch[n].question_id, forcing.plain_NA[n], under_A))
            plain = [
                {
                    "target": target,
                    "question_id": item.question_id,
                    "log_odds": float(plain_A[0] - plain_A[1]),
                    "tokens": len(item.misaligned.token_ids) + len(item.aligned.token_ids),
                }
                for item, plain_A in zip(batch, forcing.plain_NA, strict=True)
            ]
        return effects, plain

    def _asked(self, group: Group, batch: Sequence[Item]) -> list[tuple[int, int]]:
        """Which items (rows of the batch) are tested with which of the group's interventions."""
        return [
            (n, v)
            for v, place in enumerate(group.places)
            for n, item in enumerate(batch)
            if self.plan[place].may_test(self.half_of[item.question_id])
        ]

    def _replaces(self, group: Group) -> bool:
        return self.plan[group.places[0]].operation == "replace"


def _effect(target: str, tested: Tested, question_id: str, plain_A: np.ndarray, under_A: np.ndarray) -> dict[str, Any]:
    """Positive: the persona installed (added to the base), or taken away (removed from the organism)."""
    change = float((under_A[0] - under_A[1]) - (plain_A[0] - plain_A[1]))
    names = ("direction_id", "kind", "label", "grouping", "group", "replicate", "half")
    return {
        "target": target,
        **{name: tested.direction[name] for name in names},
        "operation": tested.operation,
        "coefficient": tested.coefficient,
        "question_id": question_id,
        "effect": change if tested.operation == "add" else -change,
        "loss": float((plain_A - under_A).mean()),
    }


def _models(inputs: Inputs, targets: Sequence[str]) -> dict[str, LoadedModel]:
    from unmask.models.loading import load_base
    from unmask.models.organisms import load_readers, organism_source

    if "organism" not in targets:
        return {"base": load_base(inputs.base, progress=inputs.progress)}
    source = organism_source(inputs.folders["organism"])
    return dict(zip(("base", "organism"), load_readers(inputs.base, source, progress=inputs.progress), strict=True))


def _tokenised(item: Item, loaded: LoadedModel) -> Item:
    """Packaged words get their tokens from the base's tokenizer."""

    def known(answer: Answer) -> Answer:
        if answer.token_ids:
            return answer
        return replace(answer, token_ids=tuple(loaded.tokenizer(answer.text, add_special_tokens=False)["input_ids"]))

    return replace(item, misaligned=known(item.misaligned), aligned=known(item.aligned))
