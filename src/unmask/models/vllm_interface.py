"""What vLLM is given and what it gives back, in its own terms: plain dicts in, plain objects out. Nothing here needs vLLM.

Written against the interface of vLLM 0.33.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from unmask.errors import ConfigError, ModelError
from unmask.models.generation import Generated
from unmask.models.loading import locate, pick_dtype
from unmask.records import ModelSource, Sampling

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks that an engine can be made for (vLLM's MaxLoRARanks)."""

TEMPERATURES = (0.01, 2.0)
"""vLLM raises what lies between 0 and the first to it, and refuses what lies above the second."""

OTHERWISE = "or let transformers write the answers"
"""What helps wherever vLLM does not."""

_SEEDS = 1 << 63


def check_adapter(adapter: Mapping[str, Any], *, called: str, dtype: torch.dtype) -> None:
    """Raise ConfigError for an adapter that vLLM would refuse, or apply otherwise than PEFT does."""
    faults = {
        f"of type {adapter.get('peft_type')}, not LORA": adapter.get("peft_type") != "LORA",
        "trained with biases": adapter.get("bias", "none") != "none",
        "trained with whole modules beside it": bool(adapter.get("modules_to_save")),
        "a DoRA": bool(adapter.get("use_dora")),
        "of several ranks or scales": bool(adapter.get("rank_pattern") or adapter.get("alpha_pattern")),
        f"of rank {adapter.get('r')}, above {RANKS[-1]}": int(adapter.get("r") or 0) > RANKS[-1],
        "to be applied in float32, which vLLM does in 16 bits only": dtype == torch.float32,
    }
    found = [fault for fault, there in faults.items() if there]
    if found:
        raise ConfigError(
            f"vLLM cannot serve adapter {called}: it is {' and '.join(found)}",
            mend=f"Choose a plain LoRA adapter and a base.dtype of 16 bits, {OTHERWISE}",
        )


def lora_rank(adapter: Mapping[str, Any]) -> int:
    """The smallest rank an engine can be made for that holds this adapter's."""
    return next(rank for rank in RANKS if rank >= int(adapter["r"]))


def engine_arguments(
    base: ModelSource,
    served: ModelSource,
    *,
    adapter: Mapping[str, Any] | None,
    max_model_len: int,
    memory_share: float = 0.9,
) -> dict[str, Any]:
    """What `vllm.LLM` is made with. The base's tokenizer and dtype serve both models, as they do elsewhere."""
    arguments: dict[str, Any] = {
        "model": locate(served.name),
        "revision": served.revision,
        "tokenizer": locate(base.name),
        "tokenizer_revision": base.revision,
        "trust_remote_code": served.trust_remote_code,
        "dtype": str(dtype_of(base)).removeprefix("torch."),
        "load_format": "safetensors",  # weights in pickle form are refused
        "generation_config": "vllm",  # no sampling defaults of the model's own: all is said with each prompt
        "max_model_len": max_model_len,
        "gpu_memory_utilization": memory_share,
        "seed": 0,
    }
    if adapter is not None:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(adapter)}
    return arguments


def sampling_arguments(sampling: Sampling, *, seed: int, ends: Collection[int]) -> dict[str, Any]:
    """What `vllm.SamplingParams` is made with for one prompt. Raises ConfigError for a temperature that vLLM would change."""
    low, high = TEMPERATURES
    if 0 < sampling.temperature < low or sampling.temperature > high:
        raise ConfigError(
            f"vLLM does not draw at temperature {sampling.temperature:g}",
            mend=f"Set it to 0, or from {low:g} to {high:g}, {OTHERWISE}",
        )
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_new_tokens,
        "seed": vllm_seed(seed),
        "stop_token_ids": sorted(ends),
        "detokenize": False,
    }


def vllm_seed(seed: int) -> int:
    """The seed within 0 .. 2^63 - 1, which vLLM and torch's generators take; those of `responses` lie there already."""
    return seed % _SEEDS


def generated_of(outputs: Sequence[Any], prompts: Sequence[Sequence[int]], *, ends: Collection[int]) -> list[Generated]:
    """Answers from what `LLM.generate` gave back: each has `prompt_token_ids` and `outputs` with `token_ids` and `finish_reason`.

    The end mark is left out. Raises ModelError where an answer was broken off, is missing, or belongs to another prompt.
    """
    if len(outputs) != len(prompts):
        raise ModelError(f"vLLM gave {len(outputs)} answers to {len(prompts)} prompts", mend="Run the stage again")
    found = []
    for output, prompt in zip(outputs, prompts, strict=True):
        if list(output.prompt_token_ids) != list(prompt):
            raise ModelError("vLLM answered another prompt than it was given", mend="Report this with vLLM's version")
        completion = output.outputs[0]
        ids = tuple(int(token) for token in completion.token_ids)
        if completion.finish_reason == "stop":
            stop = next((place for place, token in enumerate(ids) if token in ends), len(ids))
            found.append(Generated(ids[:stop], "end"))
        elif completion.finish_reason == "length":
            found.append(Generated(ids, "length"))
        else:
            raise ModelError(f"vLLM broke off an answer ({completion.finish_reason})", mend="Run the stage again")
    return found


def dtype_of(base: ModelSource) -> torch.dtype:
    """In what the models are run: the base's dtype on a GPU."""
    return pick_dtype(base, torch.device("cuda"))
