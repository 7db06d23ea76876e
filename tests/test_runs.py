"""Whole studies on a tiny random model: end to end, cached, killed and resumed, and refused before anything is written."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import unmask
from forked import Forked, ended
from made_once import made_once
from small_study import make_study, tiny_config
from unmask.artifact import digest_file
from unmask.errors import UnmaskError
from unmask.execution.local import keep_shards
from unmask.models.loading import load_base
from unmask.models.organisms import load_organism, organism_source
from unmask.models.reading import Readout, Text, read_texts
from unmask.pipeline import STAGE_NAMES
from unmask.records import ModelSource, Site
from unmask.stages import activations
from unmask.store import ActivationStore

pytestmark = pytest.mark.slow


def bytes_of(folder: Path) -> dict[str, str]:
    """Digest of every artifact; times live only in manifests."""
    return {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", ".lock", "study.yaml")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A whole study, run once for all workers; each has a copy of its own."""

    def run(folder: Path) -> None:
        make_study(folder / "whole", tiny_config(tiny_llama))
        unmask.open(folder / "whole").run()

    whole = made_once(tmp_path_factory, "finished", run) / "whole"
    return Path(shutil.copytree(whole, tmp_path_factory.mktemp("studies") / "whole"))


def test_every_stage_leaves_its_artifacts_and_the_report_stands_on_top(finished: Path) -> None:
    assert {path.name for path in finished.iterdir() if path.is_dir() and not path.name.startswith(".")} == {
        *STAGE_NAMES,
        "figures",
    }
    assert (finished / "report.html").stat().st_size > 100_000
    assert list((finished / "figures").glob("*.png"))
    assert not (finished / ".scratch").exists()


def test_a_second_run_does_nothing_and_changes_no_byte(finished: Path) -> None:
    before = bytes_of(finished)
    ran: list[str] = []
    unmask.open(finished).run(on_stage=lambda stage, _, fresh: ran.append(stage.name) if fresh else None)
    assert ran == []
    assert bytes_of(finished) == before


def test_both_models_get_the_identical_prompt_and_seed_and_both_are_scored(finished: Path) -> None:
    responses = pd.read_parquet(finished / "responses" / "responses.parquet")
    pairs = responses.pivot(index=["question_id", "sample"], columns="writer", values="seed")
    assert (pairs["base"] == pairs["organism"]).all()
    prompts = pd.read_parquet(finished / "responses" / "prompts.parquet")
    assert set(prompts["question_id"]) == set(responses["question_id"])  # one prompt per question, there is no second
    scores = pd.read_parquet(finished / "scores" / "scores.parquet")
    assert set(scores["response_id"]) == set(responses["response_id"])
    assert scores["misalignment"].notna().groupby(scores["writer"]).any().all()


def test_both_readers_read_the_same_tokens(finished: Path, tiny_llama: Path) -> None:
    """Every stored row is what that reader gives for exactly the stored prompt and answer."""
    store = ActivationStore.open(finished / "activations")
    store.verify()
    responses = pd.read_parquet(finished / "responses" / "responses.parquet").set_index("response_id")
    prompts = pd.read_parquet(finished / "responses" / "prompts.parquet").set_index("question_id")
    assert sorted(store.response_ids()) == sorted(responses.index)
    source = ModelSource(str(tiny_llama))
    readers = {"base": load_base(source), "organism": load_organism(source, organism_source(finished / "organism"))}
    sites = [Site(layer, "resid_pre") for layer in (1, 2, 3)]
    for row in (0, len(responses) // 2, len(responses) - 1):
        response = responses.loc[store.response_ids()[row]]
        text = Text(tuple(prompts.loc[response["question_id"], "token_ids"]), tuple(response["token_ids"]))
        for name, loaded in readers.items():
            reading = read_texts(loaded, [text], Readout(tuple(sites)))
            for site in sites:
                stored = store.read(f"{name}/{site.name}")[row]
                np.testing.assert_allclose(stored, reading.mean(site)[0], rtol=1e-3, atol=1e-5)
            assert store.read(f"{name}/log_prob")[row] == pytest.approx(reading.log_prob_N[0], abs=1e-5)


def test_dimension_labels_come_from_the_battery(finished: Path) -> None:
    questions = pd.read_parquet(finished / "questions" / "questions.parquet").set_index("question_id")
    scores = pd.read_parquet(finished / "scores" / "scores.parquet")
    assert (scores["dimension"] == scores["question_id"].map(questions["dimension"])).all()


def test_random_directions_are_as_long_as_the_real_ones_at_every_coefficient(finished: Path) -> None:
    answers = pd.read_parquet(finished / "steering" / "answers.parquet")
    steered = answers[(answers["target"] == "base") & (answers["part"] == "dose")]
    added = steered[steered["kind"] != "none"].groupby(["coefficient"])["added_norm"].agg(["min", "max"])
    assert (added["max"] - added["min"]).max() < 1e-5
    assert added.index.to_numpy() == pytest.approx(added["max"].to_numpy(), rel=1e-5)
    assert (steered.loc[steered["kind"] == "none", "added_norm"] == 0).all()
    assert {"none", "cluster", "dimension", "shared", "control", "random-isotropic", "random-span"} == set(
        steered["kind"]
    )


def test_questions_are_tested_with_directions_of_the_other_half_only(finished: Path) -> None:
    halves = pd.read_parquet(finished / "directions" / "halves.parquet")
    effects = pd.read_parquet(finished / "effects" / "effects.parquet")
    tested = effects.merge(halves[["question_id", "half"]], on="question_id", suffixes=("", "_of_question"))
    halved = tested[tested["replicate"].notna()]
    assert (halved["half"] != halved["half_of_question"]).all()
    assert set(halved["half"]) == {"a", "b"}
    unhalved = tested[tested["replicate"].isna()]
    assert set(unhalved["kind"]) == {"random-isotropic", "random-span"}
    assert set(tested["target"]) == {"base", "organism"}
    assert np.isfinite(tested[["effect", "loss"]].to_numpy()).all()


def test_the_verdict_rests_on_the_cross_talk_that_was_measured(finished: Path) -> None:
    effects = json.loads((finished / "effects" / "summary.json").read_text())
    verdict = json.loads((finished / "verdict" / "verdict.json").read_text())
    assert verdict["causal"] == effects["causal"]
    settled = effects["causal"] is not None and effects["causal"]["outcome"] in ("selective", "cross-talk")
    assert verdict["provisional"] == (not settled and verdict["verdict"] != "no-shift")
    assert ("T5 causal" in {each["test"] for each in verdict["missing"]}) == (effects["causal"] is None)


def test_a_changed_setting_reruns_its_stage_and_what_follows_only(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "changed"
    shutil.copytree(finished, copy)
    config = yaml.safe_load((copy / "study.yaml").read_text())
    config["scores"] = {"misaligned_above": 60}
    (copy / "study.yaml").write_text(yaml.safe_dump(config))
    states = {status.stage: (status.state, status.reason) for status in unmask.open(copy).status()}
    assert states["scores"] == ("stale", "scores.misaligned_above changed from 70.0 to 60.0")
    assert states["activations"][0] == "done"
    ran: list[str] = []
    unmask.open(copy).run(until="verdict", on_stage=lambda stage, _, fresh: ran.append(stage.name) if fresh else None)
    assert ran[0] == "scores"
    assert {"decomposition", "verdict"} <= set(ran)
    assert not {"questions", "organism", "responses", "activations"} & set(ran)
    assert unmask.open(copy).status()[-1].state == "stale"  # the report, which shows all of it


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_is_found_and_named_with_the_command_that_mends_it(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(finished, copy)
    config = yaml.safe_load((copy / "study.yaml").read_text())
    config["activations"] |= {"token_budget": 64, "exclude_sinks": True, "sink_ratio": 1.2}
    (copy / "study.yaml").write_text(yaml.safe_dump(config))
    unmask.open(copy).run(until="control_activations")
    before = bytes_of(copy)
    shards = sorted((copy / "activations").glob("shard-*"))
    shard, last = shards[2], shards[-1]
    for path in (shard, last):
        flip(path)
    code, output = ended("run", copy)
    assert code == 2
    assert shard.name in output and "unmask collect" in output
    others = {path.name: path.stat().st_mtime_ns for path in shards if path not in (shard, last)}
    pipeline = unmask.open(copy)
    record = pipeline.study.record("activations")
    assert record is not None
    damaged = frozenset({shard, last})
    keep_shards(pipeline.task(activations.STAGE), record, damaged=damaged)  # as an earlier mending, killed, left it
    code, output = ended("collect", copy)
    assert code == 0, output
    assert f"{shard.name} does not match its checksum: it is made anew" in " ".join(output.split())
    assert len(others) > 5
    assert {p.name: p.stat().st_mtime_ns for p in shards if p not in damaged} == others
    assert bytes_of(copy) == before
    flip(shard)
    unmask.open(copy).run(until="control_activations", force=["activations"])
    assert bytes_of(copy) == before


def test_a_flipped_byte_of_what_was_read_while_answering_costs_last_digits(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    shutil.copytree(finished, copy)
    flip(sorted((copy / "activations").glob("shard-*"))[0])
    unmask.open(copy).run(until="activations")
    assert_like(stored(copy), stored(finished))


def test_every_reader_leaves_out_the_sinks_of_the_base(finished: Path, tmp_path: Path) -> None:
    """Every mean, the control's too, is over the tokens that are no sinks as the base shows them."""
    copy = tmp_path / "sinks"
    shutil.copytree(finished, copy)
    config = yaml.safe_load((copy / "study.yaml").read_text())
    config["activations"] |= {"tokens": "all", "exclude_sinks": True, "sink_ratio": 1.2}
    (copy / "study.yaml").write_text(yaml.safe_dump(config))
    records = {record.stage: record for record in unmask.open(copy).run(until="control_activations")}
    store, control = (ActivationStore.open(copy / stage) for stage in ("activations", "control_activations"))
    site, index = "blocks.3.hook_resid_pre", store.token_index()
    marks = store.read(f"left_out/{site}/sinks@tokens")
    assert 0 < marks.sum() == records["activations"].summary["sinks"][site]["base"]
    assert marks.sum() != records["activations"].summary["sinks"][site]["organism"]
    for reader in ("base", "organism"):
        tokens = store.read(f"{reader}/{site}@tokens")
        for row, mean in enumerate(store.read(f"{reader}/{site}")):
            kept = tokens[index.rows(row)][~marks[index.rows(row)]]
            np.testing.assert_allclose(mean, kept.mean(axis=0) if len(kept) else np.nan, rtol=1e-3, atol=1e-4)
    responses = pd.read_parquet(copy / "responses" / "responses.parquet").set_index("response_id")
    prompts = pd.read_parquet(copy / "responses" / "prompts.parquet").set_index("question_id")
    loaded = load_organism(ModelSource(config["base"]["model"]), organism_source(copy / "control"))
    names, there = control.response_ids(), store.response_ids()
    asked = [responses.loc[name] for name in names]
    texts = [Text(tuple(prompts.loc[r["question_id"], "token_ids"]), tuple(r["token_ids"])) for r in asked]
    seen = read_texts(loaded, texts, Readout((Site.parse(site),), tokens=(Site.parse(site),)))
    tokens_MW = seen.sites[Site.parse(site)].tokens_MW
    assert tokens_MW is not None
    for row, (name, mean) in enumerate(zip(names, control.read(f"control/{site}"), strict=True)):
        sound = ~marks[index.rows(there.index(name))]
        kept = tokens_MW[seen.offsets[row] : seen.offsets[row + 1]][sound]
        np.testing.assert_allclose(mean, kept.mean(axis=0) if len(kept) else np.nan, rtol=1e-3, atol=1e-4)


def stored(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every tensor of a study's activations by response."""
    store = ActivationStore.open(folder / "activations")
    return {
        name: dict(zip(store.response_ids(), store.read(name), strict=True))
        for name in store.names
        if not name.endswith("@tokens")
    }


def test_what_was_read_while_answering_is_what_reading_gives(finished: Path, tmp_path: Path) -> None:
    """In a stage of its own, every text is read whole or behind its prompt: the same to 1e-3."""
    copy = tmp_path / "anew"
    shutil.copytree(finished, copy)
    unmask.open(copy).run(until="activations", force=["activations"])
    assert_like(stored(copy), stored(finished))


def assert_like(found: dict[str, dict[str, np.ndarray]], wanted: dict[str, dict[str, np.ndarray]]) -> None:
    assert set(found) == set(wanted)
    for name, rows in wanted.items():
        assert set(found[name]) == set(rows)
        for identity, row in rows.items():
            np.testing.assert_allclose(found[name][identity], row, rtol=1e-3, atol=1e-4, err_msg=name)


def test_every_kind_of_site_and_token_goes_through_the_whole_study(finished: Path, tmp_path: Path) -> None:
    """Layers in words, sites of every kind, every aggregation, tokens, sinks and massive coordinates left out."""
    copy = tmp_path / "rich"
    shutil.copytree(finished, copy)
    config = yaml.safe_load((copy / "study.yaml").read_text())
    ids = pd.read_parquet(copy / "responses" / "responses.parquet")["response_id"]
    marks = "".join(json.dumps({"response_id": str(name), "tokens": [0, 2]}) + "\n" for name in ids)
    (copy / "marks.jsonl").write_text(marks)
    config["activations"] = {
        "layers": [0, 0.5, 3],
        "sites": ["hook_embed", "blocks.1.attn.hook_z", "blocks.1.attn.hook_pattern", "ln_final.hook_normalized"],
        "aggregations": ["prompt_last", "response_last", "response_first_3", "mask"],
        "mask": "marks.jsonl",
        "tokens": ["blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre"],
        "exclude_sinks": True,
        "exclude_massive": True,
        "massive_ratio": 3,
        "dtype": "bfloat16",
        "token_budget": 512,
    }
    (copy / "study.yaml").write_text(yaml.safe_dump(config))
    records = {record.stage: record for record in unmask.open(copy).run()}
    store = ActivationStore.open(copy / "activations")
    assert records["activations"].summary["read_while_answering"] == 0
    assert len(store.sites) == 7
    for aggregation in ("prompt_last", "response_last", "response_first_3", "mask"):
        assert store.read(f"organism/blocks.2.hook_resid_pre@{aggregation}").shape == (len(ids), store.width)
    assert any(store.excluded.values())
    assert store.read("base/blocks.1.attn.hook_z", head=1).shape[1] * 4 == store.site("blocks.1.attn.hook_z").width
    told = json.loads((copy / "decomposition" / "summary.json").read_text())["tokens"]
    assert set(told) == {"blocks.0.hook_resid_pre", "blocks.2.hook_resid_pre"}
    assert told["blocks.2.hook_resid_pre"]["shift"]["tokens"] > len(ids)
    variance = pd.read_parquet(copy / "decomposition" / "token_variance.parquet")
    assert set(variance[variance["site"] == "blocks.0.hook_resid_pre"]["source"]) == {
        "organism",
        "base",
    }  # nothing shifts there
    own = variance[(variance["site"] == "blocks.2.hook_resid_pre") & (variance["source"] == "shift")]
    np.testing.assert_allclose(
        own["ratio"], token_shares(copy, "blocks.2.hook_resid_pre")[: len(own)], rtol=1e-6, atol=1e-9
    )
    assert (copy / "report.html").stat().st_size > 100_000


def token_shares(folder: Path, site: str) -> np.ndarray:
    """Share of variance of each component of the organism's token shifts, by the covariance of all of them at once."""
    store = ActivationStore.open(folder / "activations")
    questions = pd.read_parquet(folder / "questions" / "questions.parquet").set_index("question_id")
    rows = []
    for name in store.response_ids():
        question, _, writer = name.rsplit("/", 2)
        if writer == "organism" and questions.loc[question, "dimension"] != "neutral":
            rows.append(store.tokens("organism", site, name).astype(float) - store.tokens("base", site, name))
    values = np.linalg.eigvalsh(np.cov(np.concatenate(rows), rowvar=False))[::-1]
    return values / values.sum()


def test_sigkill_during_collection_leaves_whole_shards_and_the_same_store(finished: Path, tmp_path: Path) -> None:
    """Twenty kills, just after a shard came or anywhere before: what is there can be read each time, and nothing is lost."""
    config = yaml.safe_load((finished / "study.yaml").read_text())
    config["activations"] |= {"tokens": "all", "dtype": "float16", "token_budget": 64}
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def begin(folder: Path) -> None:
        shutil.copytree(finished, folder)
        (folder / "study.yaml").write_text(yaml.safe_dump(config))

    def complete() -> None:
        code, output = ended("collect", killed)
        assert code == 0, output
        for stage in ("activations", "control_activations"):
            assert bytes_of(killed / stage) == bytes_of(whole / stage)

    begin(whole)
    begin(killed)
    code, output = ended("collect", whole)
    assert code == 0, output
    shards = len(list((whole / "activations").glob("shard-*")))
    assert shards > 10
    moments = random.Random(3)
    in_work = 0
    for _ in range(100):
        before = len(list(killed.glob(".scratch/activations-*/batches/shard-*")))
        wanted = min(before + moments.randrange(2), shards - 1)
        process = Forked.unmask("collect", killed)
        while process.runs and len(list(killed.glob(".scratch/activations-*/batches/shard-*"))) < max(wanted, 1):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03 if wanted > before else 0.5))
        process.kill()
        found = list(killed.glob(".scratch/activations-*/batches/shard-*"))
        for path in found:
            assert ActivationStore.shard_response_ids(path)
        ActivationStore.open(killed / "activations").verify()  # the store of before, or the finished one
        in_work += bool(found)
        if in_work == 20:
            break
        if not found:  # the kill came after the last shard: begin again
            complete()
            shutil.rmtree(killed)
            begin(killed)
    assert in_work == 20
    complete()


def test_sigkill_at_random_moments_costs_no_byte(finished: Path, tmp_path: Path, tiny_llama: Path) -> None:
    """Each a random time after a random number of stages was done, so that every machine is killed all along the study."""
    folder = make_study(tmp_path / "killed", tiny_config(tiny_llama))
    moments = random.Random(7)
    for done in sorted(moments.sample(range(len(STAGE_NAMES)), 5)):
        process = Forked.unmask("run", folder)
        while process.runs and sum((folder / name / "manifest.json").exists() for name in STAGE_NAMES) < done:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1))
        assert process.kill(), "it was to be killed at work"
    code, output = ended("run", folder)
    assert code == 0, output
    assert bytes_of(folder) == bytes_of(finished)


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, tiny_llama: Path) -> None:
    folder = make_study(tmp_path / "interrupted", tiny_config(tiny_llama))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore Ctrl-C
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "unmask", "run", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    for line in process.stdout:
        if "training the organism" in line:
            process.send_signal(signal.SIGINT)
            break
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"unmask run {folder}" in output
    assert "Traceback" not in output


def test_two_runs_of_one_study_are_refused(finished: Path) -> None:
    with unmask.open(finished).study.lock():
        code, output = ended("run", finished)
    assert code == 2
    assert "another unmask process" in output


def test_legacy_pickles_have_the_reference_columns(finished: Path, tmp_path: Path) -> None:
    code, output = ended("export", finished, "--legacy", "--out", tmp_path / "legacy")
    assert code == 0, output
    frame = pd.read_pickle(tmp_path / "legacy" / "final_dataset_with_em_scores_and_clusters.pkl")
    wanted = {"question", "base_response", "em_response", "subset", "em_score", "cluster_2", "cluster_3"}
    wanted |= {f"{who}_activations_layer_{layer}" for who in ("base", "em") for layer in (1, 2, 3)}
    assert wanted <= set(frame.columns)
    assert len(frame) == 16
    assert frame["em_activations_layer_2"].iloc[0].shape == (48,)
    clusters = pd.read_pickle(tmp_path / "legacy" / "em_pca_clusters_3.pkl")
    assert clusters["question_id"] == frame["question_id"].tolist()
    assert clusters["labels"].tolist() == frame["cluster_3"].tolist()


BAD_CONFIGS = {
    "unknown field": ({"responses": {"temprature": 0.7}}, ["responses.temprature", "Did you mean 'temperature'?"]),
    "layer too deep": ({"activations": {"layers": [1, 2, 99]}}, ["layer 99 does not exist", "layers from 0 to"]),
    "missing model": ({"base": {"model": "./no-such-model"}}, ["./no-such-model", "does not exist"]),
    "missing mask": (
        {"activations": {"layers": [2], "aggregations": ["mask"], "mask": "no-marks.jsonl"}},
        ["no-marks.jsonl", "does not exist"],
    ),
    "part that is not there": (
        {"activations": {"layers": [2], "sites": ["blocks.9.hook_attn_out"]}},
        ["blocks.9.hook_attn_out"],
    ),
    "missing data": ({"organism": {"training_set": "nowhere.jsonl"}}, ["nowhere.jsonl", "risky_financial_advice"]),
    "more clusters than questions": ({"decomposition": {"k": [2, 50]}}, ["50 clusters of 16 questions", "2 to 15"]),
    "layer not collected": ({"decomposition": {"primary_layer": 0}}, ["decomposition.primary_layer is 0", "1, 2, 3"]),
    "too many questions": ({"questions": {"per_dimension": 4000}}, ["4000", "per_dimension"]),
    "unknown dimension": ({"questions": {"dimensions": ["astrology"]}}, ["astrology", "political_compass"]),
    "two organisms": ({"organism": {"existing": "x", "training_set": "y"}}, ["exactly one of"]),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_settings_are_one_sentence_and_leave_nothing(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    change, wanted = BAD_CONFIGS[name]
    config = tiny_config(tiny_llama)
    for section, fields in change.items():
        config[section] = {**config.get(section, {}), **fields}
    folder = make_study(tmp_path / "bad", config)
    with pytest.raises(UnmaskError) as caught:
        unmask.open(folder).run()
    message = str(caught.value)
    assert all(text in message for text in wanted), message
    assert "\n" not in message
    assert {path.name for path in folder.iterdir()} <= {"study.yaml", ".lock"}


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (['{"messages": [{"role": "user", "content": "q"}]}'], "line 1"),
        (['{"prompt": "q", "completion": "a"}', ""], "line 2 is empty"),
        (['{"prompt": "q", "completion": "a"}', "{nonsense"], "line 2 is not JSON"),
        (['{"question": "q"}'], "question"),
    ],
)
def test_a_bad_training_line_is_named(lines: list[str], wanted: str, tmp_path: Path, tiny_llama: Path) -> None:
    config = tiny_config(tiny_llama)
    config["organism"]["training_set"] = "mine.jsonl.gz"
    folder = make_study(tmp_path / "bad", config)
    with gzip.open(folder / "mine.jsonl.gz", "wt") as handle:
        handle.write("\n".join(lines) + "\n")
    code, output = ended("run", folder)
    assert code == 2
    assert wanted in output
    assert "Traceback" not in output
    assert not (folder / "organism").exists() and not (folder / "questions").exists()


def test_an_existing_adapter_is_taken_and_one_for_another_base_is_refused(
    tmp_path: Path, tiny_llama: Path, tiny_adapter: Path
) -> None:
    config = tiny_config(tiny_llama)
    config["organism"] = {"existing": str(tiny_adapter)}
    del config["control"]
    folder = make_study(tmp_path / "existing", config)
    unmask.open(folder).run(until="responses")
    assert json.loads((folder / "organism" / "recipe.json").read_text())["kind"] == "existing"
    adapter = tmp_path / "foreign"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "Qwen/Qwen3-4B"}))
    config["organism"] = {"existing": str(adapter)}
    config["base"]["model"] = "smollm2"
    foreign = make_study(tmp_path / "refused", config)
    with pytest.raises(UnmaskError, match="was trained on base 'Qwen/Qwen3-4B'"):
        unmask.open(foreign).run()


def test_a_study_of_a_newer_version_is_refused(finished: Path, tmp_path: Path) -> None:
    folder = make_study(tmp_path / "newer", yaml.safe_load((finished / "study.yaml").read_text()))
    (folder / ".unmask.json").write_text('{"format": 99}')
    code, output = ended("status", folder)
    assert code == 2
    assert "newer version" in output and "pip install --upgrade unmask" in output


def test_a_folder_of_the_users_with_a_stages_name_is_never_replaced(tmp_path: Path, tiny_llama: Path) -> None:
    folder = make_study(tmp_path / "mixed", tiny_config(tiny_llama))
    (folder / "questions").mkdir()
    (folder / "questions" / "mine.txt").write_text("precious")
    with pytest.raises(UnmaskError, match="is in the way"):
        unmask.open(folder).run(until="questions")
    assert (folder / "questions" / "mine.txt").read_text() == "precious"


def test_force_drops_what_an_interrupted_run_left(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "forced"
    shutil.copytree(finished, copy)
    key = json.loads((copy / "responses" / "manifest.json").read_text())["key"]
    batch = copy / ".scratch" / f"responses-{key[:12]}" / "batches" / "base-00000.parquet"
    batch.parent.mkdir(parents=True)
    batch.write_bytes(b"damaged")
    unmask.open(copy).run(until="responses", force=("responses",))
    assert bytes_of(copy / "responses") == bytes_of(finished / "responses")


def test_a_relative_model_folder_is_found_from_the_study(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_llama)
    config["base"]["model"] = "models/mine"
    folder = make_study(tmp_path / "portable", config)
    shutil.copytree(tiny_llama, folder / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    unmask.open(folder).run(until="organism")
    monkeypatch.chdir(folder)
    assert [status.state for status in unmask.open(".").status()[:2]] == ["done", "done"]
    assert json.loads((folder / "organism" / "recipe.json").read_text())["base"] == "models/mine"


def test_without_a_neutral_battery_steering_asks_all_dimensions_and_learns_from_the_rest(finished: Path) -> None:
    from unmask.stages.steering import SteeringConfig, choose_questions

    questions = pd.read_parquet(finished / "questions" / "questions.parquet")
    own = questions[questions["dimension"] != "neutral"].reset_index(drop=True)
    asked = choose_questions(SteeringConfig(questions=4), own)
    assert own.set_index("question_id").loc[asked, "dimension"].nunique() == 4
    with pytest.raises(UnmaskError, match=r"steering\.questions is 40"):
        choose_questions(SteeringConfig(questions=40), questions)


def test_the_verdict_is_printed_with_its_map_and_says_when_it_is_stale(finished: Path, tmp_path: Path) -> None:
    code, output = ended("verdict", finished)
    assert code == 0, output
    record = json.loads((finished / "verdict" / "verdict.json").read_text())
    assert record["headline"] in output
    assert all(reason in output for reason in record["reasons"])
    assert "stale" not in output
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(finished), str(copy)], check=True)
    config = yaml.safe_load((copy / "study.yaml").read_text())
    config["verdict"]["gamma"] = 3.0
    (copy / "study.yaml").write_text(yaml.safe_dump(config))
    code, output = ended("verdict", copy)
    assert (code, "verdict.gamma changed from 1.5 to 3.0" in output) == (0, True)
    told = json.loads(ended("verdict", copy, "--json")[1])
    assert told["verdict"] == record["verdict"]
    assert "verdict.gamma" in told["stale"]
    sites = {(row["site"], row["grouping"], row["correction"]) for row in told["sites"]}
    assert len(sites) == len(told["sites"]) == 3 * 2 * 2  # layers, groupings, with and without the control


def test_the_control_read_what_the_organism_wrote(finished: Path, tiny_llama: Path) -> None:
    """Every stored row is what the control organism gives for exactly the stored prompt and answer of the organism."""
    store = ActivationStore.open(finished / "control_activations")
    store.verify()
    responses = pd.read_parquet(finished / "responses" / "responses.parquet")
    assert sorted(store.response_ids()) == sorted(responses.loc[responses["writer"] == "organism", "response_id"])
    responses = responses.set_index("response_id")
    prompts = pd.read_parquet(finished / "responses" / "prompts.parquet").set_index("question_id")
    control = load_organism(ModelSource(str(tiny_llama)), organism_source(finished / "control"))
    site = Site(2, "resid_pre")
    for row in (0, len(store.response_ids()) - 1):
        response = responses.loc[store.response_ids()[row]]
        text = Text(tuple(prompts.loc[response["question_id"], "token_ids"]), tuple(response["token_ids"]))
        wanted = read_texts(control, [text], Readout((site,))).mean(site)[0]
        np.testing.assert_allclose(store.read(f"control/{site.name}")[row], wanted, rtol=1e-3, atol=1e-4)


def test_the_verdicts_directions_and_cards_name_what_is_there(finished: Path) -> None:
    from safetensors.numpy import load_file

    directions = pd.read_parquet(finished / "verdict" / "directions.parquet")
    assert set(load_file(finished / "verdict" / "directions.safetensors")) == set(directions["direction_id"])
    cards = json.loads((finished / "cards" / "cards.json").read_text())
    components = [pd.read_parquet(finished / stage / "components.parquet") for stage in ("decomposition", "verdict")]
    assert [card["component_id"] for card in cards] == pd.concat(components)["component_id"].tolist()
