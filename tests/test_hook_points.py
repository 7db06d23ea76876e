"""Hook points: what is read at a site is what its name says, in every architecture; what cannot be told is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from unmask.errors import ModelError
from unmask.models.hook_points import _LAYOUTS, check_on_architecture, hook_point
from unmask.models.loading import LoadedModel
from unmask.models.recording import observe
from unmask.models.sites import body, decoder_layers
from unmask.records import LAYER_POINTS, Site

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28]])

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
    "initializer_range": 0.2,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("Gemma", {"head_dim": 8}),
    "ministral": ("Ministral", {"head_dim": 8}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "olmo": ("Olmo", {}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {}),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS),
    "smollm3": ("SmolLM3", {}),
    "stablelm": ("StableLm", {}),
    "stablelm, parallel": ("StableLm", {"use_parallel_residual": True}),
    "starcoder2": ("Starcoder2", {"residual_dropout": 0.0, "embedding_dropout": 0.0}),
    "cohere": ("Cohere", {}),
    "cohere2": ("Cohere2", {}),
    "gpt_bigcode": ("GPTBigCode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox, one after the other": ("GPTNeoX", {"use_parallel_residual": False}),
}
"""Small models of the other architectures of `_LAYOUTS`: family and fields of the configuration."""
PARALLEL = ("gpt_neox", "phi", "cohere", "cohere2", "stablelm, parallel")


def small(family: str, **fields: Any) -> Any:
    import transformers

    config = getattr(transformers, f"{family}Config")(**{**SMALL, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def read(model: Any, *sites: Site) -> dict[Site, torch.Tensor]:
    found: dict[Site, torch.Tensor] = {}
    with (
        torch.inference_mode(),
        observe(model, sites, lambda site, activation: found.update({site: activation.clone()})),
    ):
        body(model)(IDS)
    return {site: found[site] for site in sites}


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def assert_adds_up(model: Any, *, parallel: bool) -> None:
    """The parts of every layer add up to the stream, and every layer goes on where the last one ended."""
    num_layers = len(decoder_layers(model))
    points = [
        point for point in LAYER_POINTS if point not in ("z", "pattern") and not (parallel and point == "resid_mid")
    ]
    found = read(model, *(Site(layer, point) for layer in range(num_layers) for point in points))
    for layer in range(num_layers):
        at = {point: found[Site(layer, point)] for point in points}
        assert min(float(at[point].abs().max()) for point in points) > 1e-3
        if parallel:
            assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"])
        else:
            assert_close(at["resid_pre"] + at["attn_out"], at["resid_mid"])
            assert_close(at["resid_mid"] + at["mlp_out"], at["resid_post"])
        if layer:
            assert torch.equal(at["resid_pre"], found[Site(layer - 1, "resid_post")])


def test_the_parts_add_up_to_the_stream(each_model: LoadedModel) -> None:
    assert_adds_up(each_model.model, parallel=each_model.model.config.model_type in PARALLEL)


@pytest.mark.parametrize("name", OTHERS)
def test_the_parts_add_up_in_other_architectures_too(name: str) -> None:
    family, fields = OTHERS[name]
    model = small(family, **fields)
    assert_adds_up(model, parallel=name in PARALLEL)
    if name in PARALLEL:
        with pytest.raises(ModelError, match="side by side"):
            hook_point(model, Site(0, "resid_mid"))


def test_no_architecture_is_named_untested() -> None:
    from conftest import ARCHITECTURES

    named = {name for layout in _LAYOUTS for name in layout.architectures}
    tested = {"gemma3_text" if name == "gemma3" else name for name in ARCHITECTURES}
    assert named == tested | {name.partition(",")[0] for name in OTHERS}


def test_hidden_states_and_attentions_are_the_models_own(each_model: LoadedModel) -> None:
    """By a way without hooks of ours: what transformers gives back on request."""
    model, num_layers = each_model.model, each_model.num_layers
    streams, patterns = (
        [Site(layer, "resid_pre") for layer in range(num_layers)],
        [Site(layer, "pattern") for layer in range(num_layers)],
    )
    found = read(model, *streams, *patterns)
    own = copy.deepcopy(model)
    own.set_attn_implementation("eager")
    with torch.inference_mode():
        output = body(own)(IDS, output_hidden_states=True, output_attentions=True)
    for layer in range(num_layers):
        assert torch.equal(found[streams[layer]], output.hidden_states[layer])
        assert torch.equal(found[patterns[layer]], output.attentions[layer])


def test_a_pattern_is_a_causal_average(each_model: LoadedModel) -> None:
    sites = [Site(layer, "pattern") for layer in range(each_model.num_layers)]
    for weights in read(each_model.model, *sites).values():
        assert weights.shape == (2, 4, 12, 12)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 12))
        assert torch.equal(weights.tril(), weights)


def test_heads_weigh_values_and_are_projected(llama: LoadedModel) -> None:
    """z is the pattern's average of the values, attn_out is z through the output projection."""
    model: Any = llama.model
    layer = model.model.layers[1]
    sites = [Site(1, point) for point in ("resid_pre", "pattern", "z", "attn_out", "resid_mid", "mlp_out")]
    stream, pattern, z, attention_out, middle, mlp_out = read(model, *sites).values()
    with torch.inference_mode():
        values = layer.self_attn.v_proj(layer.input_layernorm(stream)).view(2, 12, 2, 12).transpose(1, 2)
        mixed = pattern @ values.repeat_interleave(2, dim=1)
        assert_close(z, mixed.transpose(1, 2).flatten(start_dim=2))
        assert_close(attention_out, layer.self_attn.o_proj(z))
        assert_close(mlp_out, layer.mlp(layer.post_attention_layernorm(middle)))


def test_the_embedding_is_what_enters_the_first_layer(each_model: LoadedModel) -> None:
    """With Gemma's scale; GPT-2 alone adds its positions first."""
    model: Any = each_model.model
    embedded, stream = read(model, Site(None, "embed"), Site(0, "resid_pre")).values()
    if model.config.model_type == "gpt2":
        embedded = embedded + model.transformer.wpe.weight[: IDS.shape[1]].detach()
    assert_close(stream, embedded)


def test_the_final_norm_is_read_before_weight_and_bias(each_model: LoadedModel) -> None:
    model = each_model.model
    norm: Any = hook_point(model, Site(None, "normalized")).module
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    (found,) = read(model, Site(None, "normalized")).values()
    with torch.inference_mode():
        hidden = body(model)(IDS).last_hidden_state
        weight = norm.weight + (1 if model.config.model_type.startswith("gemma") else 0)
        assert_close(found * weight + getattr(norm, "bias", 0), hidden)
    torch.testing.assert_close(found.pow(2).mean(dim=-1), torch.ones(2, 12), rtol=1e-3, atol=1e-3)


def test_side_by_side_there_is_no_middle(each_model: LoadedModel) -> None:
    site = Site(2, "resid_mid")
    if each_model.model.config.model_type in PARALLEL:
        with pytest.raises(
            ModelError, match=r"blocks\.2\.hook_resid_mid does not exist: in \w+ attention and MLP read"
        ):
            hook_point(each_model.model, site)
    else:
        assert hook_point(each_model.model, site).side == "input"


@pytest.mark.parametrize("family", ["Granite", "Bloom", "OPT", "Doge"])
def test_an_unknown_architecture_shows_what_structure_tells(family: str) -> None:
    """Granite and Doge scale what they add, BLOOM adds inside attention, OPT has no MLP: their parts look like others' parts."""
    model = small(family, **({"residual_multiplier": 0.5} if family == "Granite" else {}))
    found = read(model, Site(0, "resid_post"), Site(1, "resid_pre"), Site(1, "z"), Site(1, "pattern"))
    assert torch.equal(found[Site(0, "resid_post")], found[Site(1, "resid_pre")])
    assert found[Site(1, "z")].shape == (2, 12, 32)
    for point in ("attn_out", "resid_mid", "mlp_out"):
        words = rf"site blocks\.1\.hook_{point} was not found: how \w+ is made is not known.*Llama.*GPT-NeoX"
        with pytest.raises(ModelError, match=words):
            hook_point(model, Site(1, point))


def test_a_model_without_attention_has_only_its_stream() -> None:
    import transformers

    model = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, pad_token_id=0)
    ).eval()
    assert len(read(model, Site(0, "resid_post"), Site(None, "embed"), Site(None, "normalized"))) == 3
    for point in ("z", "pattern", "attn_out"):
        with pytest.raises(ModelError, match="was not found: how MambaBlock is made"):
            hook_point(model, Site(1, point))


def test_a_known_name_on_other_parts_is_not_trusted(llama: LoadedModel) -> None:
    """An architecture's layers are known by their parts, too: one norm more, and sums may be others."""
    model: Any = llama.model
    model.model.layers[1].post_feedforward_layernorm = torch.nn.Identity()
    assert hook_point(model, Site(0, "attn_out"))
    with pytest.raises(ModelError, match="was not found"):
        hook_point(model, Site(1, "attn_out"))


def refusal(check: Callable[..., object], *args: Any) -> str | None:
    """What a check says against a site, None where it is there."""
    try:
        check(*args)
    except ModelError as error:
        return error.what
    return None


def test_what_a_configuration_promises_is_what_its_model_has(each_model: LoadedModel) -> None:
    config = each_model.model.config
    before = config.to_dict()
    sites = [*(Site(0, point) for point in LAYER_POINTS), Site(5, "z"), Site(None, "embed"), Site(None, "normalized")]
    for site in sites:
        assert refusal(check_on_architecture, config, [site]) == refusal(hook_point, each_model.model, site)
    assert refusal(check_on_architecture, config, sites)  # no tiny model has six layers
    assert config.to_dict() == before


def test_every_adapter_layer_is_seen_through(each_model: LoadedModel) -> None:
    """A live adapter on every linear layer shows what the weights it is folded into show; switched off, what the base shows."""
    from peft import LoraConfig, get_peft_model

    base = each_model.model
    num_layers = each_model.num_layers
    sites = [Site(layer, point) for layer in range(num_layers) for point in LAYER_POINTS]
    if base.config.model_type in PARALLEL:
        sites = [site for site in sites if site.point != "resid_mid"]
    sites += [Site(None, "embed"), Site(None, "normalized")]
    before = read(base, *sites)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        wrapped: Any = get_peft_model(base, config).eval()
    outside, inside = read(wrapped, *sites), read(wrapped.get_base_model(), *sites)
    with wrapped.disable_adapter():
        off = read(wrapped, *sites)
    folded = read(copy.deepcopy(wrapped).merge_and_unload(), *sites)
    for site in sites:
        assert torch.equal(outside[site], inside[site])
        torch.testing.assert_close(outside[site], folded[site], rtol=1e-3, atol=1e-4 * float(folded[site].abs().max()))
        assert torch.equal(off[site], before[site])
        if site != Site(0, "resid_pre") and site.point != "embed":
            assert not torch.allclose(outside[site], before[site], rtol=1e-3)
