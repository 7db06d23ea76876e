"""The control organism: tuned as the organism is, reads what the organism wrote, and a study may do without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from unmask.artifact import read_json
from unmask.collection import CollectionConfig
from unmask.errors import ConfigError
from unmask.progress import Silent
from unmask.records import ModelSource, PromptFormat
from unmask.stage import Inputs
from unmask.stages import activations, organism
from unmask.stages.organism import ControlConfig, OrganismConfig
from unmask.store import ActivationStore
from unmask.study import Workspace

ORGANISM = OrganismConfig(training_set="risky_financial_advice", rank=7, learning_rate=3e-4, max_examples=50, seed=5)


def inputs(study: Path, **folders: Path) -> Inputs:
    return Inputs(ModelSource("smollm2"), PromptFormat(), folders, study, Silent())


def workspace(folder: Path) -> Workspace:
    made = Workspace(folder)
    made.prepare()
    return made


def test_a_control_is_tuned_as_the_organism_is() -> None:
    control = ControlConfig(training_set="good_financial_advice").like_organism(ORGANISM)
    left_out = {"training_set"}
    assert control.model_dump(exclude=left_out) == ORGANISM.model_dump(exclude=left_out)
    assert control.training_set == "good_financial_advice"


def test_what_the_control_says_itself_wins_even_where_it_is_the_default() -> None:
    control = ControlConfig(training_set="good_financial_advice", rank=32, seed=0).like_organism(ORGANISM)
    assert (control.rank, control.seed, control.learning_rate) == (32, 0, 3e-4)


@pytest.mark.parametrize(
    ("control", "tuned"),
    [
        (ControlConfig(), ORGANISM),
        (ControlConfig(existing="some/adapter"), ORGANISM),
        (ControlConfig(training_set="good_financial_advice"), OrganismConfig(existing="some/adapter")),
    ],
    ids=["no control", "a taken control", "a taken organism"],
)
def test_a_recipe_that_nobody_uses_is_not_taken_over(control: ControlConfig, tuned: OrganismConfig) -> None:
    """Else another learning rate of the organism's would make a taken control stale."""
    assert control.like_organism(tuned) == control


def test_two_sources_are_refused() -> None:
    with pytest.raises(ValidationError, match="not both"):
        ControlConfig(existing="a/b", training_set="good_financial_advice")


def test_too_few_examples_are_blamed_on_the_right_section() -> None:
    with pytest.raises(ConfigError, match=r"control\.max_examples is 9"):
        organism.choose_examples(ControlConfig(training_set="x", max_examples=9), [])


def test_without_a_control_the_record_says_so_and_the_store_is_sealed_empty(tmp_path: Path) -> None:
    control = workspace(tmp_path / "control")
    told = organism.CONTROL.run(ControlConfig(), inputs(tmp_path), control)
    assert told.summary == {"control": "none"}
    assert read_json(control.out / "recipe.json", rebuild="") == {"kind": "none"}
    read = workspace(tmp_path / "read")
    config = CollectionConfig(layers=(1, 2))
    activations.CONTROL.run(config, inputs(tmp_path, control=control.out, responses=tmp_path), read)
    store = ActivationStore.open(read.out)
    assert store.shards == ()
    assert store.sites == ()


def test_the_stages_have_a_section_each_or_share_one() -> None:
    assert organism.CONTROL.called == "control"
    assert activations.CONTROL.called == "activations"
