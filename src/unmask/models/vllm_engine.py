"""Answers written by vLLM, which on a GPU writes many times faster than step-by-step generation here.

Base and adapter are served by one engine; a full model gets an engine of its own, after the other's memory was freed. Prompts go
in as the token ids that `prompts` rendered, so template and thinking switch are the same; temperature, top-k and top-p filter in
the same order; the same tokens end an answer. The random numbers are not the same: vLLM draws its own from each answer's seed, so
its texts differ from those of `generation`, and come out the same again only as far as vLLM promises it: with the same version on
the same hardware, and for any company in a batch only with its VLLM_BATCH_INVARIANT=1.

Written against the interface of vLLM 0.33 as its sources and documentation state it. The authors have not run it on a GPU; tests
cover what needs no vLLM (`vllm_interface`).
"""

from __future__ import annotations

import gc
import os
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unmask.errors import ConfigError, ModelError
from unmask.models.loading import first_line, load_config, load_tokenizer, locate
from unmask.models.organisms import check_adapter_base, read_adapter_config
from unmask.models.prompts import end_token_ids
from unmask.models.vllm_interface import (
    OTHERWISE,
    check_adapter,
    dtype_of,
    engine_arguments,
    generated_of,
    sampling_arguments,
)

if TYPE_CHECKING:
    from unmask.models.generation import Generated
    from unmask.records import ModelSource, Sampling, Writer

_WEIGHTS = "adapter_model.safetensors"
INSTALL = "Run pip install vllm==0.33.0 behind unmask in an environment of its own, as it wants an older transformers"
"""vLLM 0.33 asks for transformers below 5.21, unmask for 5.23: they cannot be resolved together."""


class VllmEngine:
    """Base and organism, ready to answer, inside a `with` block.

    No prompt may be longer than `longest_prompt` tokens, no answer than `max_new_tokens`: the engine makes room for both once.
    `memory_share` is the part of the GPU's memory that it takes. It does best with all prompts at once: it makes its own batches.

    Raises ConfigError without the package, without a CUDA device, or for an adapter that vLLM cannot serve; ModelError when it
    cannot load a model.
    """

    def __init__(
        self,
        base: ModelSource,
        organism: ModelSource,
        *,
        longest_prompt: int,
        max_new_tokens: int,
        memory_share: float = 0.9,
    ) -> None:
        self._sources: dict[Writer, ModelSource] = {"base": base, "organism": organism}
        self._longest_prompt, self._max_new_tokens, self._memory_share = longest_prompt, max_new_tokens, memory_share
        self._adapter: Mapping[str, Any] | None = None
        self._ends: frozenset[int] = frozenset()
        self._llm: Any = None
        self._serving: Writer | None = None

    def __enter__(self) -> VllmEngine:
        check_vllm()
        base, organism = self._sources["base"], self._sources["organism"]
        adapter = read_adapter_config(organism)
        if adapter is not None:
            check_adapter_base(base, organism, adapter)
            check_adapter(adapter, called=organism.called, dtype=dtype_of(base))
        self._adapter = adapter
        return self

    def __exit__(self, *exception: object) -> None:
        self._free()

    def answer(
        self, prompts: Sequence[Sequence[int]], *, writer: Writer, sampling: Sampling, seeds: Sequence[int]
    ) -> list[Generated]:
        """One model's answers to `prompts` (token ids), one seed each, in order.

        Raises ValueError for a prompt or an answer that is longer than there is room for.
        """
        if not prompts:
            return []
        longest = max(len(prompt) for prompt in prompts)
        if longest > self._longest_prompt or sampling.max_new_tokens > self._max_new_tokens:
            raise ValueError(
                f"{longest} + {sampling.max_new_tokens} tokens do not fit: this engine was made for "
                f"{self._longest_prompt} + {self._max_new_tokens}"
            )
        with_adapter = writer == "organism" and self._adapter is not None
        llm = self._engine(writer)
        return generate_vllm(
            llm,
            prompts,
            sampling=sampling,
            seeds=seeds,
            ends=self._ends,
            lora_request=self._lora_request() if with_adapter else None,
        )

    def _engine(self, writer: Writer) -> Any:
        """The engine that serves a model; another one's is freed first."""
        serving: Writer = "base" if self._adapter is not None else writer
        if self._serving != serving:
            self._free()
            base, served = self._sources["base"], self._sources[serving]
            arguments = engine_arguments(
                base,
                served,
                adapter=self._adapter,
                max_model_len=self._longest_prompt + self._max_new_tokens,
                memory_share=self._memory_share,
            )
            self._ends = ends_of(base, served)
            self._llm, self._serving = _start(served, arguments), serving
        return self._llm

    def _lora_request(self) -> Any:
        requests: Any = import_module("vllm.lora.request")
        return requests.LoRARequest("organism", 1, str(adapter_folder(self._sources["organism"])))

    def _free(self) -> None:
        """End the engine's processes and give its memory back."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = self._serving = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def generate_vllm(
    llm: Any,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    ends: Collection[int],
    lora_request: Any = None,
) -> list[Generated]:
    """Answer `prompts` (token ids), one seed each, with a `vllm.LLM`. Returns one answer per prompt, in order."""
    vllm: Any = import_module("vllm")
    given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    params = [vllm.SamplingParams(**sampling_arguments(sampling, seed=seed, ends=ends)) for seed in seeds]
    outputs = llm.generate(given, params, use_tqdm=False, lora_request=lora_request)
    return generated_of(outputs, prompts, ends=ends)


def check_vllm() -> None:
    """Raise ConfigError where vLLM is not installed, or there is no GPU for it."""
    if find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed", mend=f"{INSTALL}, {OTHERWISE}")
    if not torch.cuda.is_available():
        raise ConfigError(
            "vLLM needs a CUDA device, and this machine shows none",
            mend=f"Run on a machine with an NVIDIA GPU, {OTHERWISE}",
        )


def ends_of(base: ModelSource, served: ModelSource) -> frozenset[int]:
    """Tokens that end an answer of the served model: those of `generation`, without the weights being loaded."""
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(locate(served.name), revision=served.revision or "main")
    except OSError:
        generation = GenerationConfig.from_model_config(load_config(served))
    end: Any = generation.eos_token_id
    return end_token_ids(load_tokenizer(base), end)


def adapter_folder(organism: ModelSource) -> Path:
    """The local folder of an adapter, fetched where it is a Hugging Face id. Raises ModelError without safetensors weights."""
    place = Path(locate(organism.name))
    if not place.is_dir():
        from huggingface_hub import snapshot_download

        names = ["adapter_config.json", _WEIGHTS]
        place = Path(snapshot_download(organism.name, revision=organism.revision, allow_patterns=names))
    if not (place / _WEIGHTS).is_file():
        raise ModelError(
            f"adapter {organism.called} has no {_WEIGHTS}",
            mend="Save it with safe_serialization=True; pickled weights are refused",
        )
    return place


def _start(served: ModelSource, arguments: Mapping[str, Any]) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # vLLM reports on its use, unless told not to
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    vllm: Any = import_module("vllm")
    try:
        return vllm.LLM(**arguments)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"vLLM cannot serve {served.called} ({first_line(error)})",
            mend=f"Mend what it names (dtype, length, memory share), {OTHERWISE}",
        ) from error
