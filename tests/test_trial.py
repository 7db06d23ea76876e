"""A model that is not what reading takes it for is refused when it is loaded; all that are read rightly pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unmask.errors import ModelError
from unmask.models import trial
from unmask.models.loading import LoadedModel, load_base, load_weights
from unmask.models.trial import try_out
from unmask.records import ModelSource

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
GEMMA3N: dict[str, Any] = {
    **SIZES, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64,
    "laurel_rank": 8, "altup_num_inputs": 2, "sliding_window": 8, "activation_sparsity_pattern": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_sound", set())


def made(kind: str, **fields: Any) -> Any:
    """A tiny random model of that type."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    ids = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = CONFIG_MAPPING[kind](**{"initializer_range": 0.15, **ids, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).float().eval()


def test_models_that_are_read_rightly_pass(each_model: LoadedModel) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        try_out(each_model.model.to(dtype), CPU)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("hyperclovax", {**SIZES, "logits_scaling": 0.25}),
        ("granite", {**SIZES, "logits_scaling": 4.0}),
        ("falcon_h1", {**SIZES, **MAMBA, "lm_head_multiplier": 0.05}),
        (
            "opt",
            {
                "hidden_size": 48,
                "ffn_dim": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "word_embed_proj_dim": 48,
            },
        ),
    ],
)
def test_heads_that_scale_in_their_own_way_are_known(kind: str, fields: dict[str, Any]) -> None:
    try_out(made(kind, **fields), CPU)


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("modernbert-decoder", SIZES, "ModernBertDecoderForCausalLM .*its output head does more"),
        ("gemma3n_text", GEMMA3N, r"Gemma3nForCausalLM .*blocks\.0\.hook_resid_pre is of shape \(2, 2, 6, 48\)"),
        ("llama4_text", {**SIZES, "num_local_experts": 2}, "Llama4ForCausalLM .*its body does not give"),
        ("openai-gpt", {"n_embd": 48, "n_layer": 3, "n_head": 4}, "OpenAIGPTLMHeadModel .*running it fails"),
        ("mamba", {"hidden_size": 48, "num_hidden_layers": 3, "state_size": 8}, "MambaForCausalLM .*kept past"),
        ("rwkv", {"hidden_size": 48, "num_hidden_layers": 3}, "RwkvForCausalLM .*kept past"),
        ("recurrent_gemma", {**SIZES, "lru_width": 48, "attention_window_size": 8}, "RecurrentGemma.*kept past"),
    ],
)  # fmt: skip
def test_what_would_be_read_wrongly_is_refused_by_name(kind: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        try_out(made(kind, **fields), CPU)


def test_a_model_is_tried_when_it_is_loaded(tmp_path: Path) -> None:
    made("modernbert-decoder", **SIZES).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="its output head does more"):
        load_weights(ModelSource(str(tmp_path)), device=CPU)


def test_an_architecture_is_tried_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_base(ModelSource(str(tiny_llama)))
    monkeypatch.setattr(trial, "_problem", lambda *_: "it is tried again")
    load_base(ModelSource(str(tiny_llama)))
    with pytest.raises(ModelError, match="tried again"):
        load_base(ModelSource(str(tiny_llama), dtype="bfloat16"))


def test_numbers_that_overflow_are_named(llama: LoadedModel) -> None:
    with torch.no_grad():
        llama.model.get_output_embeddings().weight.fill_(torch.inf)
    with pytest.raises(ModelError, match=r"logits of LlamaForCausalLM are not finite.*bfloat16"):
        try_out(llama.model, CPU)


def test_memory_that_runs_out_is_no_fault_of_the_model(llama: LoadedModel) -> None:
    def refuse(module: torch.nn.Module, args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    llama.model.get_input_embeddings().register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        try_out(llama.model, CPU)
