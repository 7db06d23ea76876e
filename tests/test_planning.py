"""The plan of a collection: its counts are those of the passes that are then made, of the files that are then written."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hooks import hooks_of
from unmask.cli.planning import duration, flops, print_plan, scaled, size
from unmask.models import packed_weights
from unmask.models.answering import answer_and_read
from unmask.models.collecting import plan_chunks, shard_tensors, token_offsets
from unmask.models.loading import LoadedModel, load_config
from unmask.models.planning import (
    CollectionPlan,
    Speed,
    Workload,
    architecture_of,
    calibrate,
    cost_of,
    expected_seconds,
    together,
)
from unmask.models.planning import speed as planning_speed
from unmask.models.planning.needs import memory_of
from unmask.models.planning.work import Work, head_of, pass_of, work_of
from unmask.models.prompt_cache import PromptCache
from unmask.models.reading import Readout, Text, read_texts, worth_sharing
from unmask.models.sites import body
from unmask.records import WRITERS, ModelSource, Sampling, Site
from unmask.store import write_shard

ALL_LAYERS = Readout(tuple(Site(layer, "resid_pre") for layer in range(4)))
CUT = Readout((Site(2, "resid_pre"),), log_probs=False)
BUDGET = 64


@pytest.fixture(autouse=True)
def counted_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counter knows no operator of packed weights."""
    monkeypatch.setattr(packed_weights, "_works", lambda: False)


def random_texts(prompts: int, samples: int, *, seed: int = 0) -> list[Text]:
    """Prompts of 5 to 20 tokens, each with that many responses of 1 to 12."""
    generator = np.random.default_rng(seed)
    texts = []
    for length in generator.integers(5, 21, prompts):
        prompt = tuple(generator.integers(3, 2048, length).tolist())
        texts += [
            Text(prompt, tuple(generator.integers(3, 2048, generator.integers(1, 13)).tolist())) for _ in range(samples)
        ]
    return texts


@contextmanager
def counted_passes(loaded: LoadedModel) -> Iterator[list[int]]:
    """The padded tokens of every pass that the model's body makes inside the block."""
    seen: list[int] = []

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["input_ids"]).numel())

    handle = body(loaded.model).register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Notes every block of packed weights and packs none: of their operator torch's counter knows nothing."""
    opened: list[Any] = []

    @contextmanager
    def noted(*modules: Any) -> Iterator[None]:
        opened.append(modules)
        yield

    monkeypatch.setattr("unmask.models.generation.packed_weights", noted)
    return opened


def by_operator(run: Callable[[], object]) -> tuple[int, int]:
    """FLOPs of a run as torch counts them: of matrices that are weights, and of products of activations."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        run()
    counts = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    attention = counts.pop("aten.bmm", 0)
    return sum(counts.values()), attention


# architecture


def test_parameters_are_those_of_the_model(each_model: LoadedModel) -> None:
    found = architecture_of(each_model.model.config)
    assert found.parameters == sum(parameter.numel() for parameter in each_model.model.parameters())
    embedding, head = each_model.model.get_input_embeddings().weight, each_model.model.get_output_embeddings().weight
    assert found.tied == (head is embedding)
    assert found.embedding >= embedding.numel()
    assert found.head >= head.numel()
    assert len(found.layers) == each_model.num_layers


def test_counting_builds_nothing_and_changes_no_configuration(llama: LoadedModel) -> None:
    config = llama.model.config
    before = config.to_dict()
    architecture_of(config)
    assert config.to_dict() == before


def test_a_token_visits_some_of_the_experts() -> None:
    import transformers

    config = transformers.Qwen3MoeConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=100,
        moe_intermediate_size=16, num_experts=8, num_experts_per_tok=2, intermediate_size=64,
    )  # fmt: skip
    layer = architecture_of(config).layers[0]
    attention = 32 * 32 * 2 + 32 * 16 * 2
    assert layer.multiply_adds == attention + 32 * 8 + 2 * 3 * 32 * 16
    assert layer.parameters == attention + 32 * 8 + 8 * 3 * 32 * 16 + 2 * 32 + 2 * 8


@pytest.mark.parametrize("past", [0, 3, 20])
@pytest.mark.parametrize("length", [1, 7, 30])
def test_pairs_are_the_causal_half_within_the_window(past: int, length: int, tiny_models: Callable[..., Path]) -> None:
    architecture = architecture_of(load_config(ModelSource(str(tiny_models("gemma2")))))
    wanted = 0
    for layer in architecture.layers[:3]:
        window = math.inf if layer.window is None else layer.window
        wanted += sum(int(min(past + token + 1, window)) for token in range(length))
    assert {layer.window for layer in architecture.layers} == {8, None}
    assert architecture.attention_pairs(3, past=past, length=length) == wanted


# FLOPs


def test_flops_of_a_pass_are_those_that_torch_counts(each_model: LoadedModel) -> None:
    rows, length = 3, 40
    model: Any = each_model.model
    model.config._attn_implementation = "eager"  # of the fused attention torch's counter knows nothing on a CPU
    ids = torch.zeros(rows, length, dtype=torch.long)
    matrices, attention = by_operator(lambda: model(input_ids=ids, use_cache=False))
    architecture = architecture_of(model.config)
    work = pass_of(architecture, "texts", depth=each_model.num_layers, rows=rows, length=length)
    head = head_of(architecture, "texts", positions=rows * length)
    assert work.linear_flops + head.head_flops == matrices
    pairs = sum(rows * length * min(length, layer.window or length) for layer in architecture.layers)
    square = 2 * (architecture.query_width + architecture.value_width) * length * rows * length * each_model.num_layers
    assert square == pytest.approx(attention, rel=0.001)  # eager attention computes what the mask then hides
    if all(layer.window is None for layer in architecture.layers):
        assert work.attention_flops == pytest.approx(attention * (length + 1) / (2 * length), rel=0.001)
    else:
        assert work.attention_flops < 2 * (architecture.query_width + architecture.value_width) * pairs
    assert work.linear_flops + square + head.head_flops == pytest.approx(matrices + attention, rel=0.02)


def test_flops_of_a_cut_pass_are_those_of_its_layers(llama: LoadedModel) -> None:
    texts = random_texts(6, 1)
    counted, _ = by_operator(lambda: read_texts(llama, texts, CUT, token_budget=BUDGET))
    plan = cost_of(llama.model.config, Workload.of_texts(texts, CUT, readers=1, token_budget=BUDGET))
    (work,) = plan.work
    assert (work.kind, work.linear_flops, work.head_flops, plan.depth) == ("texts", counted, 0, 2)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("readout", [ALL_LAYERS, CUT], ids=["all", "cut"])
def test_a_plan_is_what_reading_then_does(llama: LoadedModel, samples: int, readout: Readout) -> None:
    texts = random_texts(7, samples)
    chunks = plan_chunks(texts, chunk_tokens=200)

    def read() -> None:
        for rows in chunks:
            read_texts(llama, [texts[row] for row in rows], readout, token_budget=BUDGET)

    with counted_passes(llama) as seen:
        matrices, _ = by_operator(read)
    workload = Workload.of_texts(texts, readout, readers=1, token_budget=BUDGET, chunk_tokens=200)
    plan = cost_of(llama.model.config, workload)
    assert sum(work.blocks for work in plan.work) == 0
    assert sum(work.passes for work in plan.work) == len(seen)
    assert sum(work.padded_tokens for work in plan.work) == sum(seen)
    assert sum(work.linear_flops + work.head_flops for work in plan.work) == matrices
    if readout is ALL_LAYERS:
        once = {text.prompt_ids: len(text.prompt_ids) for text in texts} if samples == 4 else {}
        prompts = sum(once.values()) if once else sum(len(text.prompt_ids) for text in texts)
        assert {work.kind for work in plan.work} == ({"prompts", "responses"} if once else {"texts"})
        assert plan.tokens == prompts + sum(len(text.response_ids) for text in texts)
    assert 0 <= plan.padding < 0.6
    two = cost_of(llama.model.config, dataclasses.replace(workload, readers=2))
    assert (two.flops, two.bytes_read, two.tokens) == (2 * plan.flops, 2 * plan.bytes_read, 2 * plan.tokens)


def test_long_prompts_of_many_short_responses_are_planned_as_they_are_read(llama: LoadedModel) -> None:
    """Ninety rows of one token fit into a batch, but not ninety copies of their prompts' keys and values."""
    generator = np.random.default_rng(0)
    prompts = [tuple(generator.integers(3, 2048, length).tolist()) for length in (90, 60, 30)]
    texts = [Text(prompts[row % 3], tuple(generator.integers(3, 2048, 1 + row % 2).tolist())) for row in range(90)]
    texts = [texts[row] for chunk in plan_chunks(texts, chunk_tokens=10_000) for row in chunk]
    longest: list[int] = []
    with counted_passes(llama) as seen:
        expand = PromptCache.expand

        def noted(cache: PromptCache, rows_B: torch.Tensor, *, room: int) -> Any:
            longest.append(len(rows_B) * (int(cache.lengths_P[rows_B].max()) + room))
            return expand(cache, rows_B, room=room)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(PromptCache, "expand", noted)
            read_texts(llama, texts, ALL_LAYERS, token_budget=BUDGET)
    plan = cost_of(llama.model.config, Workload.of_texts(texts, ALL_LAYERS, readers=1, token_budget=BUDGET))
    assert len(longest) > 5 and max(longest) <= 16 * BUDGET
    assert sum(work.passes for work in plan.work) == len(seen)
    assert sum(work.padded_tokens for work in plan.work) == sum(seen)
    per_token = plan.architecture.cache_width * 4 * 4
    assert plan.memory.caches == (3 * 90 + max(longest)) * per_token


def test_a_plan_is_what_answering_then_does(llama: LoadedModel, blocks: list[Any]) -> None:
    prompts = [text.prompt_ids for text in random_texts(5, 2, seed=3)]
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=6)
    models = dict.fromkeys(WRITERS, llama)
    answered = {}

    def answer() -> None:
        answered.update(
            answer_and_read(
                models, prompts, seeds=range(10), sampling=sampling, readout=ALL_LAYERS, token_budget=BUDGET
            )
        )

    with counted_passes(llama) as seen:
        matrices, _ = by_operator(answer)
    opened = len(blocks)
    assert {len(answer.token_ids) for side in answered.values() for answer in side.answers} == {6}
    workload = Workload.of_answers(prompts, ALL_LAYERS, new_tokens=6, batch_size=10, token_budget=BUDGET)
    plan = cost_of(llama.model.config, workload)
    work = {each.kind: each for each in plan.work}
    assert list(work) == ["prompts", "answers", "responses"]
    assert sum(each.blocks for each in plan.work) == opened == 2
    assert work["prompts"].tokens == 2 * sum(map(len, set(prompts)))
    assert work["answers"].tokens == work["responses"].tokens == 2 * 10 * 6
    assert sum(each.passes for each in plan.work) == len(seen)
    assert sum(each.padded_tokens for each in plan.work) == sum(seen)
    assert sum(each.linear_flops + each.head_flops for each in plan.work) == pytest.approx(matrices, rel=0.02)


def test_answers_alone_are_not_read(llama: LoadedModel) -> None:
    plan = cost_of(llama.model.config, Workload.of_answers([(5, 6, 7)] * 6, new_tokens=4, batch_size=3))
    assert [work.kind for work in plan.work] == ["prompts", "answers"]
    assert plan.work[1].passes == 2 * 2 * 4
    assert plan.disk.total == 0


def test_bytes_are_weights_once_a_pass_and_the_past_once_a_step(llama: LoadedModel) -> None:
    architecture = architecture_of(llama.model.config)
    workload = Workload.of_answers([(5,) * 9] * 3, new_tokens=4, batch_size=3, writers=1, weight_bytes=2)
    answers = {work.kind: work for work in work_of(architecture, workload)}["answers"]
    layers, head = architecture.layer_parameters(4), architecture.head
    assert answers.weight_bytes == 4 * 2 * (layers + head)
    assert answers.cache_bytes == 3 * (9 + 10 + 11 + 12) * 2 * 4 * architecture.cache_width
    assert architecture.cache_width == 2 * 2 * 12


# the workload


@pytest.mark.parametrize("seed", range(12))
def test_prompts_are_shared_where_reading_shares_them(llama: LoadedModel, seed: int) -> None:
    generator = np.random.default_rng(seed)
    texts = random_texts(4, int(generator.integers(1, 4)), seed=seed)
    sites = [
        (Site(int(generator.integers(4)), "resid_pre"),),
        (Site(1, "pattern"),),
        (Site(3, "resid_post"), Site(None, "normalized")),
    ]
    readout = Readout(sites[seed % 3], log_probs=seed % 2 == 0)
    (chunk,) = Workload.of_texts(texts, readout).chunks
    prompts = list(dict.fromkeys(text.prompt_ids for text in texts))
    wanted = worth_sharing(llama, texts, prompts, readout)
    assert Workload.of_texts(texts, readout).shares_prompts(chunk, num_layers=4) == wanted


def test_empty_responses_and_nothing_at_all(llama: LoadedModel) -> None:
    config = llama.model.config
    empty = cost_of(config, Workload.of_texts([Text((5, 6, 7), ())] * 3, ALL_LAYERS))
    assert sum(work.head_flops for work in empty.work) == 0
    nothing = cost_of(config, Workload.of_texts([], ALL_LAYERS))
    assert (nothing.flops, nothing.tokens, nothing.padding, nothing.disk.total) == (0, 0, 0.0, 0)


# needs


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [(), (Site(1, "resid_pre"), Site(2, "z"))], ids=["means", "tokens"])
@pytest.mark.parametrize("sink_ratio", [None, 4.0])
def test_disk_is_what_the_shards_take(
    llama: LoadedModel, tmp_path: Path, stored: Any, tokens: tuple[Site, ...], sink_ratio: float | None
) -> None:
    texts = random_texts(30, 4)
    sites = tuple(sorted({*ALL_LAYERS.sites, Site(2, "z"), Site(3, "mlp_out")}))
    readout = Readout(sites, aggregations=("response_mean", "prompt_last"), tokens=tokens, sink_ratio=sink_ratio)
    chunks = plan_chunks(texts, chunk_tokens=1200)
    for number, rows in enumerate(chunks):
        part = [texts[row] for row in rows]
        readings = {reader: read_texts(llama, part, readout, token_budget=400) for reader in ("base", "organism")}
        names = [f"question-{row:03d}/0/organism" for row in rows]
        offsets = token_offsets(readings, readout)
        write_shard(
            tmp_path,
            number,
            shard_tensors(readings, readout, sink_ratio=4),
            names,
            token_offsets=offsets,
            dtype=stored,
        )
    taken = sum(path.stat().st_size for path in tmp_path.iterdir())
    workload = Workload.of_texts(texts, readout, stored_bytes=4 if stored == "float32" else 2, chunk_tokens=1200)
    disk = cost_of(llama.model.config, workload).disk
    assert len(workload.chunks) == len(chunks) > 1
    assert disk.total == pytest.approx(taken, rel=0.02)
    assert (disk.tokens > 0) == bool(tokens or sink_ratio)


def test_memory_counts_copies_batches_logits_and_caches(llama: LoadedModel) -> None:
    config, architecture = llama.model.config, architecture_of(llama.model.config)
    texts = random_texts(6, 4)
    workload = Workload.of_texts(texts, ALL_LAYERS, token_budget=BUDGET)
    two, one = (
        memory_of(architecture, config, dataclasses.replace(workload, one_copy=copies == 1)) for copies in (2, 1)
    )
    assert (two.weights, one.weights) == (8 * architecture.parameters, 4 * architecture.parameters)
    assert two.larger(one) == one.larger(two) == two
    assert two.activations <= BUDGET * 4 * (3 * architecture.widest + 3 * 48 + 3 * 48 + 2 * 48)
    largest = max(len(text.response_ids) for text in texts)
    assert 2 * 4 * largest * architecture.vocabulary <= two.logits <= 2 * 4 * BUDGET * architecture.vocabulary
    longest = max(len(text.prompt_ids) for text in texts)
    assert two.caches >= 6 * longest * architecture.cache_width * 4 * 4
    half = memory_of(architecture, config, dataclasses.replace(workload, weight_bytes=2))
    assert (half.weights, 2 * half.activations, half.logits) == (one.weights, two.activations, two.logits)
    whole = memory_of(architecture, config, dataclasses.replace(workload, readout=CUT))
    assert (whole.caches, whole.logits) == (0, 0)
    assert whole.kept < two.kept
    asked = [text.prompt_ids for text in texts]
    answers = Workload.of_answers(asked, ALL_LAYERS, new_tokens=6, batch_size=8, one_copy=True)
    packed = 4 * (architecture.multiply_adds(4) + architecture.head)
    assert memory_of(architecture, config, answers).weights == one.weights + packed
    apart = dataclasses.replace(answers, one_copy=False)
    assert memory_of(architecture, config, apart).weights == two.weights + 2 * packed
    in_half = dataclasses.replace(apart, weight_bytes=2)
    assert memory_of(architecture, config, in_half).weights == one.weights


# speed


SPEED = Speed(
    device="cpu",
    block_seconds=3.0,
    pass_seconds=0.5,
    body_flops_per_second=1e9,
    head_flops_per_second=2e9,
    tokens_per_second=10.0,
)


def planned(llama: LoadedModel) -> CollectionPlan:
    return cost_of(llama.model.config, Workload.of_texts(random_texts(4, 1), ALL_LAYERS, token_budget=BUDGET))


def test_time_is_passes_and_flops_at_the_measured_speed(llama: LoadedModel) -> None:
    plan = planned(llama)
    (work,) = plan.work
    wanted = work.passes * 0.5 + (work.linear_flops + work.attention_flops) / 1e9 + work.head_flops / 2e9
    assert expected_seconds(plan, SPEED) == pytest.approx(wanted)
    assert plan.seconds is None
    assert plan.at(SPEED).seconds == pytest.approx(wanted)


def test_steps_of_answering_take_the_time_of_a_step(llama: LoadedModel) -> None:
    plan = cost_of(llama.model.config, Workload.of_answers([(5, 6, 7)] * 6, new_tokens=4, batch_size=3, writers=1))
    with pytest.raises(ValueError, match="calibrate"):
        expected_seconds(plan, SPEED)
    slow = dataclasses.replace(SPEED, step_seconds=2.0, pass_seconds=0.0)
    prompts = plan.work[0]
    reading = (prompts.linear_flops + prompts.attention_flops) / 1e9
    assert expected_seconds(plan, slow) == pytest.approx(2 * 3.0 + 2 * 4 * 2.0 + reading)


@pytest.mark.parametrize("answering", [False, True])
def test_measuring_takes_its_time_and_leaves_the_model_alone(each_model: LoadedModel, answering: bool) -> None:
    before = {name: tensor.clone() for name, tensor in each_model.model.state_dict().items()}
    texts = random_texts(4, 2)
    workload = Workload.of_texts(texts, CUT)
    if answering:
        workload = Workload.of_answers([text.prompt_ids for text in texts], CUT, new_tokens=5, batch_size=4)
    speed = calibrate(each_model, workload, seconds=0.2)
    assert speed.device == "cpu"
    numbers = (speed.body_flops_per_second, speed.head_flops_per_second, speed.tokens_per_second)
    assert all(number > 0 and math.isfinite(number) for number in numbers)
    assert speed.pass_seconds >= 0
    assert (speed.step_seconds is not None) == answering
    after = each_model.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    modules = list(each_model.model.modules())
    assert hooks_of(modules) == []
    assert not any("forward" in vars(module) for module in modules)


@pytest.mark.parametrize("sites", [(), (Site(None, "embed"),), (Site(1, "pattern"),)], ids=["none", "embed", "pattern"])
def test_whatever_is_read_can_be_measured(llama: LoadedModel, sites: tuple[Site, ...]) -> None:
    workload = Workload.of_texts(random_texts(3, 2), Readout(sites))
    plan = cost_of(llama.model.config, workload).at(calibrate(llama, workload, seconds=0.1))
    assert plan.seconds is not None and plan.seconds > 0


def test_nothing_to_read_is_nothing_to_measure(llama: LoadedModel) -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        calibrate(llama, Workload.of_texts([], ALL_LAYERS))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other would count as work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_expected_time_is_within_a_factor_of_two_of_what_reading_takes(
    smollm2_model: LoadedModel, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in seconds of processor time, which other processes do not take away; the middle of three tries counts."""
    monkeypatch.setattr(planning_speed, "time", SimpleNamespace(perf_counter=time.process_time))
    texts = random_texts(16, 1)
    readout = Readout((Site(16, "resid_pre"),))
    workload = Workload.of_texts(texts, readout, readers=1)
    ratios = []
    for _ in range(3):
        plan = cost_of(smollm2_model.model.config, workload).at(calibrate(smollm2_model, workload, seconds=1.0))
        began = time.process_time()
        read_texts(smollm2_model, texts, readout)
        took = time.process_time() - began
        assert plan.seconds is not None
        ratios.append(plan.seconds / took)
    assert 0.5 < statistics.median(ratios) < 2


# plans together, and printed


def test_plans_in_turn_add_their_work_and_keep_the_higher_peak(llama: LoadedModel) -> None:
    config = llama.model.config
    first = cost_of(config, Workload.of_answers([(5, 6, 7)] * 6, new_tokens=4, batch_size=3))
    second, third = planned(llama), planned(llama)
    whole = together([first, second, third])
    assert whole.flops == first.flops + second.flops + third.flops
    assert [work.kind for work in whole.work] == ["prompts", "answers", "texts"]
    assert whole.disk.total == 2 * second.disk.total
    assert whole.memory.total == max(first.memory.total, second.memory.total)
    assert whole.texts == first.texts + 2 * second.texts
    with pytest.raises(ValueError, match="nothing"):
        together([])


def test_json_holds_every_number(llama: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(llama).at(SPEED)
    print_plan(plan, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record == plan.as_record()
    assert record["flops"] == sum(work["flops"] for work in record["work"]) == plan.flops
    assert record["seconds"] == pytest.approx(sum(work["seconds"] for work in record["work"]))
    assert record["memory_bytes"]["total"] == plan.memory.total
    assert record["disk_bytes"]["total"] == plan.disk.total
    assert record["parameters"]["total"] == plan.architecture.parameters
    print_plan(planned(llama), as_json=True)
    assert json.loads(capsys.readouterr().out)["seconds"] is None


def test_the_table_says_what_and_how_much(
    llama: LoadedModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    plan = planned(llama)
    print_plan(plan, as_json=False)
    out = capsys.readouterr().out
    for word in (
        "texts, read whole",
        "peak memory",
        "disk",
        "not measured",
        "a plan",
        flops(plan.flops),
        size(plan.disk.total),
    ):
        assert word in out
    print_plan(plan.at(SPEED), as_json=False)
    assert duration(plan.at(SPEED).seconds) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("amount", "wanted"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.7, "1.00 k"),
        (1500, "1.50 k"),
        (134_515_008, "135 M"),
        (12.34e12, "12.3 T"),
    ],
)
def test_three_digits_and_a_prefix(amount: float, wanted: str) -> None:
    assert scaled(amount) == wanted


def test_units() -> None:
    assert (flops(1.28e12), size(538e6), size(12)) == ("1.28 TFLOP", "538 MB", "12 B")
    found = [duration(seconds) for seconds in (None, 3.26, 90, 600, 20_000, 400_000)]
    assert found == ["not measured", "3.3 s", "90 s", "10 min", "5.6 h", "4.6 days"]


def test_work_of_different_kinds_is_not_added() -> None:
    with pytest.raises(AssertionError):
        Work("texts") + Work("prompts")
