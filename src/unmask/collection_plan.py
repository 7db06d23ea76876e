"""What collecting a study's activations will cost, from its study file and what is done of it; nothing is run or written."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from unmask.collection import Recorded
from unmask.records import WRITERS
from unmask.stages import questions
from unmask.stages.activations import CHUNK, study_texts
from unmask.store import ActivationStore

if TYPE_CHECKING:
    from unmask.models.passes import Text
    from unmask.models.planning import CollectionPlan, Workload
    from unmask.records import ModelSource
    from unmask.study import Study
    from unmask.study_file import StudyConfig


def plan_collection(
    config: StudyConfig, study: Study, base: ModelSource, *, done: Collection[str], seconds: float | None = 2.0
) -> CollectionPlan | None:
    """The plan of what is left once the stages `done` are: answers, readings, the control's readings.

    Answers are taken to be as long as `responses.max_new_tokens` allows. The base model is run for `seconds` to say how long all
    will take; None leaves that out. Returns None where nothing is left to be read.
    """
    from unmask.models.loading import load_base, load_config
    from unmask.models.planning import calibrate, cost_of, together

    model = load_config(base)
    workloads = _workloads(config, study, base, done=done, model=model)
    if not workloads:
        return None
    plan = together([cost_of(model, workload, trust_remote_code=base.trust_remote_code) for workload in workloads])
    return plan if seconds is None else plan.at(calibrate(load_base(base), workloads[0], seconds=seconds))


def _workloads(
    config: StudyConfig, study: Study, base: ModelSource, *, done: Collection[str], model: Any
) -> list[Workload]:
    from unmask.models.collecting import readout_of
    from unmask.models.loading import pick_device, pick_dtype
    from unmask.models.passes import Readout, Text
    from unmask.models.planning import Workload

    wanted, responses = config.activations, config.responses
    readout = readout_of(wanted, num_layers=int(model.num_hidden_layers))
    weight_bytes = pick_dtype(base, pick_device()).itemsize
    one_copy = _adapter(config) and (weight_bytes < 4 if wanted.one_copy is None else wanted.one_copy)
    sizes: dict[str, Any] = {
        "weight_bytes": weight_bytes,
        "stored_bytes": 4 if wanted.dtype == "float32" else 2,
        "token_budget": wanted.token_budget,
    }
    chunk = CHUNK * wanted.token_budget
    found: list[Workload] = []
    if "responses" in done:
        texts, organisms = _left(config, study)
    else:
        prompts = _prompts(config, study, base)
        texts = [Text(prompt, (0,) * responses.max_new_tokens) for prompt in prompts for _ in WRITERS]
        organisms = texts[:: len(WRITERS)]
        riding = responses.recording(wanted).reads_while_answering(readout, model)
        answering = {"new_tokens": responses.max_new_tokens, "batch_size": responses.batch_size}
        on_the_way = readout if riding else Readout((), log_probs=False)
        found.append(Workload.of_answers(prompts, on_the_way, **answering, one_copy=one_copy, **sizes))
        texts = [] if riding else texts
    if texts and "activations" not in done:
        found.append(Workload.of_texts(texts, readout, one_copy=one_copy, chunk_tokens=chunk, **sizes))
    if config.control.wanted and organisms and "control_activations" not in done:
        bare = Readout(readout.sites, log_probs=False)
        found.append(Workload.of_texts(organisms, bare, readers=1, chunk_tokens=chunk, **sizes))
    return found


def _adapter(config: StudyConfig) -> bool:
    """Whether the organism is likely an adapter: one that is tuned as such, or any existing model until it is looked at."""
    return config.organism.existing is not None or config.organism.method == "lora"


def _prompts(config: StudyConfig, study: Study, base: ModelSource) -> list[tuple[int, ...]]:
    """The prompt of every answer that one model will give."""
    from unmask.models.loading import load_tokenizer
    from unmask.models.prompts import render_question

    tokenizer = load_tokenizer(base)
    asked = questions.select(config.questions, study.folder)
    return [
        prompt
        for question in asked
        for prompt in [render_question(tokenizer, question.text, config.base.prompt_format).token_ids]
        * config.responses.samples_of(question.dimension)
    ]


def _left(config: StudyConfig, study: Study) -> tuple[list[Text], list[Text]]:
    """Texts that no reader has read while answering, and the organism's texts, of answers that are there."""
    record = study.record("responses")
    assert record is not None
    folder = study.stage_folder("responses")
    responses, texts = study_texts(folder, rebuild=f"unmask run {study.folder} --force responses")
    recorded = Recorded(study.scratch, responses_key=record.key, collection=config.activations)
    shards = recorded.shards(folder / "responses.parquet")
    taken = {identity for path in shards for identity in ActivationStore.shard_response_ids(path)}
    rows = list(zip(responses["response_id"], responses["writer"], texts, strict=True))
    left = [text for identity, _, text in rows if identity not in taken]
    return left, [text for _, writer, text in rows if writer == "organism"]
