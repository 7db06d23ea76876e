"""The `activations` section: what can be asked for, what is refused, and readings that wait in scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from unmask.collection import CollectionConfig, Recorded
from unmask.errors import ConfigError, DataError, ModelError
from unmask.models.collecting import plan_chunks, readout_of, shard_tensors
from unmask.models.passes import Readout, Text
from unmask.models.pooling import Reading, SiteReading
from unmask.records import Site
from unmask.stages.activations import _mean, check_masks, read_masks
from unmask.store import write_shard
from unmask.study import Study, drop_scratch


def sites(**fields: Any) -> list[str]:
    return [site.name for site in readout_of(CollectionConfig(**fields), num_layers=20).sites]


def test_layers_by_index_fraction_and_all() -> None:
    assert sites(layers=[3, 0.55, 3]) == ["blocks.3.hook_resid_pre", "blocks.11.hook_resid_pre"]
    assert sites(layers=7) == ["blocks.7.hook_resid_pre"]
    assert len(sites(layers="all")) == len(sites(layers=["all", 2])) == 20


def test_further_sites_join_in_the_order_of_a_pass() -> None:
    found = sites(layers=[1], sites=["ln_final.hook_normalized", "hook_embed", "blocks.1.attn.hook_z"])
    assert found == ["hook_embed", "blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "ln_final.hook_normalized"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": [1.0]}, "index of a layer"),
        ({"layers": [-1]}, "index of a layer"),
        ({"layers": ["most", True]}, "index of a layer"),
        ({"layers": []}, "at least 1"),
        ({"layers": [1], "aggregations": ["median"]}, "response_first_K"),
        ({"layers": [1], "aggregations": ["response_first_0"]}, "response_first_K"),
        ({"layers": [1], "aggregations": ["mask"]}, "either needs the other"),
        ({"layers": [1], "mask": "marks.jsonl"}, "either needs the other"),
        ({"layers": [1], "sink_ratio": 1}, "greater than 1"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CollectionConfig(**fields)


def test_a_layer_out_of_range_is_named() -> None:
    with pytest.raises((ConfigError, ModelError), match="20"):
        sites(layers=[20])


def test_tokens_are_kept_of_collected_sites() -> None:
    config = CollectionConfig(layers=(2, 4), tokens=("blocks.4.hook_resid_pre",))
    assert readout_of(config, num_layers=20).tokens == (Site(4, "resid_pre"),)
    assert readout_of(CollectionConfig(layers=(2, 4), tokens="all"), num_layers=20).tokens == (
        Site(2, "resid_pre"),
        Site(4, "resid_pre"),
    )
    with pytest.raises(ConfigError, match="which is not collected"):
        readout_of(CollectionConfig(layers=(2,), tokens=("blocks.3.hook_resid_pre",)), num_layers=20)


def texts(lengths: list[tuple[int, int]]) -> list[Text]:
    """Texts by (prompt, response length); the same prompt length means the same prompt."""
    return [Text(tuple(range(prompt)), tuple(range(response))) for prompt, response in lengths]


def test_chunks_hold_every_text_once_and_keep_a_prompt_together() -> None:
    rng = np.random.default_rng(0)
    made = texts([(int(p), int(r)) for p, r in zip(rng.integers(5, 25, 80), rng.integers(0, 40, 80), strict=True)])
    chunks = plan_chunks(made, chunk_tokens=300)
    assert sorted(row for chunk in chunks for row in chunk) == list(range(80))
    for prompt in {text.prompt_ids for text in made}:
        assert (
            len({index for index, chunk in enumerate(chunks) for row in chunk if made[row].prompt_ids == prompt}) == 1
        )
    for chunk in chunks:
        prompts = {made[row].prompt_ids for row in chunk}
        assert len(prompts) == 1 or sum(made[row].length for row in chunk) <= 300


def test_what_is_left_of_a_plan_is_planned_as_before() -> None:
    rng = np.random.default_rng(1)
    made = texts([(int(p), int(r)) for p, r in zip(rng.integers(5, 60, 50), rng.integers(0, 40, 50), strict=True)])
    chunks = plan_chunks(made, chunk_tokens=300)
    for done in range(len(chunks)):
        rest = sorted(row for chunk in chunks[done:] for row in chunk)
        again = plan_chunks([made[row] for row in rest], chunk_tokens=300)
        assert [[rest[place] for place in chunk] for chunk in again] == chunks[done:]


@pytest.mark.parametrize(
    ("masks", "message"),
    [({"q/0/base": {0, 3}}, "token 3 of response 'q/0/base', which has 3 tokens"), ({"x/0/base": {0}}, "'x/0/base'")],
)
def test_a_mask_that_fits_no_response_is_named(masks: dict[str, set[int]], message: str) -> None:
    responses = pd.DataFrame({"response_id": ["q/0/base"], "tokens": [3]})
    check_masks({"q/0/base": frozenset({0, 2})}, responses, called="marks.jsonl")
    with pytest.raises(DataError, match=message):
        check_masks({name: frozenset(marks) for name, marks in masks.items()}, responses, called="marks.jsonl")


@pytest.mark.parametrize(
    "row",
    [
        '{"response_id": "q"}',
        '{"response_id": "q", "tokens": [1.5]}',
        '{"response_id": "q", "tokens": "12"}',
        '{"response_id": 3, "tokens": [1]}',
        '{"response_id": "q", "tokens": [-1]}',
        '{"response_id": "q", "tokens": [true]}',
    ],
)
def test_a_bad_row_of_masks_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "marks.jsonl"
    path.write_text('{"response_id": "p", "tokens": []}\n' + row + "\n")
    with pytest.raises(DataError, match="row 2"):
        read_masks(path)


def shard(folder: Path, number: int = 0) -> None:
    write_shard(folder, number, {"base/log_prob": np.zeros(1)}, [f"q{number}"])


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """The table of answers that were read."""
    path = tmp_path / "responses.parquet"
    path.write_bytes(b"answers")
    return path


def recorded(scratch: Path, **fields: Any) -> Recorded:
    return Recorded(scratch, responses_key="abcdef0123456789", collection=CollectionConfig(layers=(1,), **fields))


def test_recorded_shards_are_found_once_all_are_there(tmp_path: Path, answers: Path) -> None:
    made = recorded(tmp_path)
    assert made.shards(answers) == []
    made.begin()
    shard(made.folder)
    assert made.shards(answers) == []
    made.finish(answers)
    assert [path.name for path in recorded(tmp_path).shards(answers)] == ["shard-00000.safetensors"]


def test_what_was_recorded_for_another_collection_is_not_taken_and_goes(tmp_path: Path, answers: Path) -> None:
    made = recorded(tmp_path)
    made.begin()
    shard(made.folder)
    made.finish(answers)
    other = recorded(tmp_path, point="resid_post")
    assert other.shards(answers) == []
    other.begin()
    assert not list(other.folder.glob("shard-*"))


def test_a_run_that_goes_on_keeps_what_it_recorded(tmp_path: Path, answers: Path) -> None:
    made = recorded(tmp_path)
    made.begin()
    shard(made.folder)
    recorded(tmp_path).begin()
    shard(made.folder, 1)
    recorded(tmp_path).finish(answers)
    assert len(made.shards(answers)) == 2


def test_a_damaged_shard_is_left_out(tmp_path: Path, answers: Path) -> None:
    made = recorded(tmp_path)
    made.begin()
    shard(made.folder)
    shard(made.folder, 1)
    made.finish(answers)
    path = made.folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert [each.name for each in made.shards(answers)] == ["shard-00000.safetensors"]


def test_readings_of_other_answers_are_not_taken(tmp_path: Path, answers: Path) -> None:
    made = recorded(tmp_path)
    made.begin()
    shard(made.folder)
    made.finish(answers)
    answers.write_bytes(b"others")
    assert made.shards(answers) == []


def test_what_was_recorded_goes_with_the_stage_that_takes_it(tmp_path: Path) -> None:
    study = Study(tmp_path)
    made = recorded(study.scratch)
    made.begin()
    drop_scratch(study, "responses")
    assert made.folder.is_dir()
    drop_scratch(study, "activations")
    assert not study.scratch.exists()
    made.begin()
    Recorded.drop(study.scratch)
    assert not made.folder.exists()


def test_a_response_that_is_masked_twice_is_named_by_its_second_row(tmp_path: Path) -> None:
    path = tmp_path / "marks.jsonl"
    path.write_text('{"response_id": "p", "tokens": [0]}\n{"response_id": "p", "tokens": [1]}\n')
    with pytest.raises(DataError, match="row 2: response 'p' stands there for the second time"):
        read_masks(path)


def test_readings_that_are_no_numbers_are_refused() -> None:
    site = Site(1, "resid_pre")
    means, nothing = np.array([[1.0, np.inf], [np.nan, np.nan]], dtype=np.float32), np.zeros(0, dtype=np.float32)

    def reading(offsets: list[int], log_probs: list[float]) -> Reading:
        norms = np.ones(offsets[-1], dtype=np.float32)
        seen = SiteReading({"response_mean": means}, nothing, norms, None)
        return Reading({site: seen}, np.array(offsets), np.array(log_probs))

    with pytest.raises(ModelError, match=r"blocks\.1\.hook_resid_pre of base are not finite.*bfloat16"):
        shard_tensors({"base": reading([0, 3, 3], [-1.0, np.nan])}, Readout((site,)), sink_ratio=10)
    means[0] = 1
    shard_tensors({"base": reading([0, 3, 3], [-1.0, np.nan])}, Readout((site,)), sink_ratio=10)  # the second is empty
    with pytest.raises(ModelError, match="log-probabilities of base are not finite"):
        shard_tensors({"base": reading([0, 3, 3], [np.nan, np.nan])}, Readout((site,)), sink_ratio=10)


def test_the_mean_of_nothing_is_missing() -> None:
    assert _mean(pd.Series([np.nan, np.nan])) is None and _mean(pd.Series([], dtype=float)) is None
    assert _mean(pd.Series([1.0, np.nan, 2.00004])) == 1.5
