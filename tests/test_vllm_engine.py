"""vLLM as an engine: what it is given and how its results are read. vLLM itself is never run here, and nothing pretends it was.

Classes called StandIn... are plain objects with the few attributes that are read of vLLM's; they compute nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmask.artifact import read_json
from unmask.errors import ConfigError, ModelError
from unmask.models import vllm_engine
from unmask.models.generation import Generated
from unmask.models.loading import LoadedModel
from unmask.models.prompts import end_token_ids
from unmask.models.vllm_engine import VllmEngine, adapter_folder, check_vllm, ends_of
from unmask.models.vllm_interface import (
    check_adapter,
    engine_arguments,
    generated_of,
    lora_rank,
    sampling_arguments,
    vllm_seed,
)
from unmask.records import ModelSource, Sampling, Writer
from unmask.stages.responses import sample_seed

SAMPLING = Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=200)
PLAIN = {"peft_type": "LORA", "r": 32, "lora_alpha": 64, "bias": "none", "target_modules": ["q_proj"]}


@dataclass
class StandInCompletion:
    """The attributes of vLLM's CompletionOutput that are read."""

    token_ids: Sequence[int]
    finish_reason: str | None


@dataclass
class StandInOutput:
    """The attributes of vLLM's RequestOutput that are read."""

    prompt_token_ids: Sequence[int]
    outputs: list[StandInCompletion]


def given_back(prompt: Sequence[int], ids: Sequence[int], reason: str | None) -> StandInOutput:
    return StandInOutput(list(prompt), [StandInCompletion(list(ids), reason)])


# what vLLM is given


def test_sampling_is_said_in_vllms_words() -> None:
    assert sampling_arguments(SAMPLING, seed=5, ends={9, 2}) == {
        "n": 1, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "max_tokens": 200, "seed": 5, "stop_token_ids": [2, 9],
        "detokenize": False,
    }  # fmt: skip


@pytest.mark.parametrize("temperature", [0.001, 0.0099, 2.01, 5.0])
def test_a_temperature_that_vllm_would_change_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        sampling_arguments(replace(SAMPLING, temperature=temperature), seed=0, ends=())


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0, 2.0])
def test_other_temperatures_stay_as_they_are(temperature: float) -> None:
    given = sampling_arguments(replace(SAMPLING, temperature=temperature), seed=0, ends=())
    assert given["temperature"] == temperature


def test_seeds_of_responses_stay_and_others_are_brought_into_range() -> None:
    seeds = [sample_seed(7, f"pc-{number:03d}", 0) for number in range(200)]
    assert [vllm_seed(seed) for seed in seeds] == seeds
    assert len(set(seeds)) == 200
    for seed in (-1, -(2**70), 2**63, 2**64 + 3):
        assert 0 <= vllm_seed(seed) < 2**63
    torch.Generator().manual_seed(vllm_seed(-1))


def test_the_engine_serves_an_adapter_beside_its_base(tiny_llama: Path) -> None:
    base = ModelSource(str(tiny_llama), dtype="float16")
    given = engine_arguments(base, base, adapter=PLAIN, max_model_len=321, memory_share=0.5)
    assert given["model"] == given["tokenizer"] == str(tiny_llama)
    assert (given["enable_lora"], given["max_loras"], given["max_lora_rank"]) == (True, 1, 32)
    assert (given["dtype"], given["max_model_len"], given["gpu_memory_utilization"]) == ("float16", 321, 0.5)
    assert (given["load_format"], given["generation_config"]) == ("safetensors", "vllm")


def test_a_full_model_is_served_with_the_bases_tokenizer_and_dtype(
    tiny_llama: Path, tiny_models: Callable[[str], Path]
) -> None:
    base, tuned = ModelSource(str(tiny_llama)), ModelSource(str(tiny_models("qwen3")), dtype="float32")
    given = engine_arguments(base, tuned, adapter=None, max_model_len=100)
    assert (given["model"], given["tokenizer"]) == (tuned.name, base.name)
    assert given["dtype"] == "bfloat16"  # `auto` of the base, on a GPU
    assert "enable_lora" not in given


@pytest.mark.parametrize(
    ("rank", "wanted"), [(1, 1), (2, 8), (8, 8), (9, 16), (32, 32), (33, 64), (300, 320), (512, 512)]
)
def test_room_is_made_for_the_adapters_rank(rank: int, wanted: int) -> None:
    assert lora_rank({"r": rank}) == wanted


def test_a_plain_adapter_is_served(tiny_adapter: Path) -> None:
    adapter = read_json(tiny_adapter / "adapter_config.json", rebuild="the adapter")
    check_adapter(adapter, called="a", dtype=torch.bfloat16)
    assert lora_rank(adapter) == 8
    assert adapter_folder(ModelSource(str(tiny_adapter))) == tiny_adapter


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"use_dora": True}, "DoRA"),
        ({"rank_pattern": {"q_proj": 4}}, "several ranks"),
        ({"alpha_pattern": {"q_proj": 4}}, "several ranks"),
        ({"r": 513}, "above 512"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_is_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as caught:
        check_adapter(PLAIN | fields, called="my-adapter", dtype=torch.bfloat16)
    assert "my-adapter" in str(caught.value) and "transformers" in str(caught.value)


def test_adapters_are_applied_in_16_bits_only() -> None:
    with pytest.raises(ConfigError, match="float32"):
        check_adapter(PLAIN, called="a", dtype=torch.float32)


def test_pickled_adapters_are_refused(tiny_adapter: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_adapter / "adapter_config.json", tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"not read")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        adapter_folder(ModelSource(str(tmp_path)))


@pytest.mark.parametrize("with_file", [True, False])
def test_answers_end_where_they_end_elsewhere(
    llama: LoadedModel, tiny_llama: Path, tmp_path: Path, with_file: bool
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    if not with_file:
        (folder / "generation_config.json").unlink()
    base = ModelSource(str(folder))
    assert ends_of(base, base) == end_token_ids(llama.tokenizer, llama.model.generation_config.eos_token_id)


# what it gives back

PROMPTS = [[1, 2], [3], [4, 5, 6]]


def test_the_end_mark_is_left_out_and_the_reason_kept() -> None:
    outputs = [
        given_back([1, 2], [10, 11, 7], "stop"),
        given_back([3], [12, 13, 14], "length"),
        given_back([4, 5, 6], [8], "stop"),
    ]
    assert generated_of(outputs, PROMPTS, ends={7, 8}) == [
        Generated((10, 11), "end"),
        Generated((12, 13, 14), "length"),
        Generated((), "end"),
    ]


def test_an_end_mark_that_was_not_given_back_is_no_fault() -> None:
    assert generated_of([given_back([3], [10, 11], "stop")], [[3]], ends={7}) == [Generated((10, 11), "end")]


def test_ids_become_plain_integers() -> None:
    (found,) = generated_of([given_back([3], torch.tensor([5, 6]), "length")], [[3]], ends={7})
    assert found.token_ids == (5, 6)
    assert all(type(token) is int for token in found.token_ids)


@pytest.mark.parametrize("reason", ["abort", "error", "repetition", None])
def test_an_answer_that_was_broken_off_is_an_error(reason: str | None) -> None:
    with pytest.raises(ModelError, match="broke off"):
        generated_of([given_back([3], [10], reason)], [[3]], ends={7})


def test_answers_to_other_prompts_or_too_few_are_errors() -> None:
    with pytest.raises(ModelError, match="another prompt"):
        generated_of([given_back([4], [10], "length")], [[3]], ends={7})
    with pytest.raises(ModelError, match="1 answers to 2 prompts"):
        generated_of([given_back([3], [10], "length")], [[3], [4]], ends={7})


# the engine around it


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install vllm==0\.33\.0"):
        check_vllm()


def test_a_machine_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA"), an_engine(ModelSource("a"), ModelSource("b")):
        pass


def test_too_long_a_prompt_or_answer_is_refused_before_anything_starts() -> None:
    engine = an_engine(ModelSource("a"), ModelSource("b"))
    with pytest.raises(ValueError, match="do not fit"):
        engine.answer([[1] * 11], writer="base", sampling=SAMPLING, seeds=[0])
    with pytest.raises(ValueError, match="do not fit"):
        engine.answer([[1]], writer="base", sampling=replace(SAMPLING, max_new_tokens=201), seeds=[0])


def test_no_prompts_need_no_engine() -> None:
    assert an_engine(ModelSource("a"), ModelSource("b")).answer([], writer="base", sampling=SAMPLING, seeds=[]) == []


def an_engine(base: ModelSource, organism: ModelSource) -> VllmEngine:
    return VllmEngine(base, organism, longest_prompt=10, max_new_tokens=200)


@dataclass
class StandInLLM:
    """Stands where a vllm.LLM would: it notes what it is asked for and answers every prompt with the token 5."""

    model: str
    events: list[str]

    def __post_init__(self) -> None:
        self.events.append(f"start {self.model}")
        shutdown = SimpleNamespace(shutdown=lambda: self.events.append(f"free {self.model}"))
        self.llm_engine = SimpleNamespace(engine_core=shutdown)

    def generate(
        self, prompts: list[dict[str, Any]], params: list[Any], *, use_tqdm: bool, lora_request: Any
    ) -> list[StandInOutput]:
        self.events.append(f"answer {len(prompts)} {'with' if lora_request else 'without'} adapter")
        assert len(params) == len(prompts) and not use_tqdm
        return [given_back(prompt["prompt_token_ids"], [5], "length") for prompt in prompts]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts stand-ins where vLLM's classes would be looked up; returns the list of what happens to them."""
    events: list[str] = []
    modules = {
        "vllm": SimpleNamespace(
            LLM=lambda **given: StandInLLM(given["model"], events), SamplingParams=lambda **given: given
        ),
        "vllm.lora.request": SimpleNamespace(LoRARequest=lambda *given: given),
    }
    monkeypatch.setattr(vllm_engine, "import_module", modules.__getitem__)
    monkeypatch.setattr(vllm_engine, "check_vllm", lambda: None)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
    return events


def ask(engine: VllmEngine, writers: Sequence[Writer]) -> None:
    for writer in writers:
        found = engine.answer([[1, 2], [3]], writer=writer, sampling=SAMPLING, seeds=[0, 1])
        assert found == [Generated((5,), "length")] * 2


def test_base_and_adapter_share_one_engine(stand_in: list[str], tiny_llama: Path, tiny_adapter: Path) -> None:
    with an_engine(ModelSource(str(tiny_llama)), ModelSource(str(tiny_adapter))) as engine:
        ask(engine, ["base", "organism", "base"])
    assert stand_in == [
        f"start {tiny_llama}",
        "answer 2 without adapter",
        "answer 2 with adapter",
        "answer 2 without adapter",
        f"free {tiny_llama}",
    ]


def test_a_full_model_is_started_after_the_first_was_freed(
    stand_in: list[str], tiny_llama: Path, tiny_models: Callable[[str], Path]
) -> None:
    tuned = tiny_models("mistral")
    with an_engine(ModelSource(str(tiny_llama)), ModelSource(str(tuned))) as engine:
        ask(engine, ["base", "base", "organism"])
    assert stand_in == [
        f"start {tiny_llama}",
        "answer 2 without adapter",
        "answer 2 without adapter",
        f"free {tiny_llama}",
        f"start {tuned}",
        "answer 2 without adapter",
        f"free {tuned}",
    ]


def test_the_engine_is_freed_when_something_raises(stand_in: list[str], tiny_llama: Path, tiny_adapter: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        an_engine(ModelSource(str(tiny_llama)), ModelSource(str(tiny_adapter))) as engine,
    ):
        ask(engine, ["base"])
        raise KeyboardInterrupt
    assert stand_in[-1] == f"free {tiny_llama}"


def test_what_keeps_vllm_from_starting_is_told(
    stand_in: list[str], monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tiny_adapter: Path
) -> None:
    def refuse(**given: Any) -> None:
        raise ValueError("max_model_len (210) is greater than 128\nand more")

    monkeypatch.setattr(vllm_engine, "import_module", lambda name: SimpleNamespace(LLM=refuse))
    with an_engine(ModelSource(str(tiny_llama)), ModelSource(str(tiny_adapter))) as engine:
        with pytest.raises(ModelError, match="greater than 128") as caught:
            engine.answer([[1]], writer="base", sampling=SAMPLING, seeds=[0])
        assert "and more" not in str(caught.value)
