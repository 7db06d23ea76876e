"""Sites: the stack is found in every architecture, layers are those that were written, what a model lacks is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmask.errors import ConfigError, ModelError
from unmask.models.hook_points import hook_point
from unmask.models.loading import LoadedModel
from unmask.models.recording import observe
from unmask.models.sites import (
    SiteShape,
    body,
    check_sites,
    choose_layers,
    decoder_layers,
    head_logits,
    site_shape,
    unwrapped,
)
from unmask.records import LAYER_POINTS, Site


class Bare(torch.nn.Module):
    """Modules under a configuration that says how many layers there are."""

    def __init__(self, num_layers: int, **modules: torch.nn.Module) -> None:
        super().__init__()
        text = SimpleNamespace(num_hidden_layers=num_layers)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        for name, module in modules.items():
            self.add_module(name, module)


def stack(count: int) -> torch.nn.ModuleList:
    return torch.nn.ModuleList(torch.nn.Identity() for _ in range(count))


def test_the_stack_is_what_runs_layer_by_layer(each_model: LoadedModel) -> None:
    layers = decoder_layers(each_model.model)
    assert len(layers) == each_model.num_layers
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index)) for index, layer in enumerate(layers)
    ]
    each_model.model(torch.tensor([[5, 6, 7]]))
    for handle in handles:
        handle.remove()
    assert ran == list(range(each_model.num_layers))


def test_a_stack_of_another_length_or_deeper_down_is_not_taken() -> None:
    inner: Any = torch.nn.Module()
    inner.experts = stack(4)
    layers = torch.nn.ModuleList([inner, *stack(3)])
    assert decoder_layers(Bare(4, tower=stack(6), layers=layers)) is layers


def test_a_model_without_a_stack_is_refused() -> None:
    with pytest.raises(ModelError, match="no stack of 4 decoder layers was found in Bare"):
        decoder_layers(Bare(4, tower=stack(6)))


@pytest.mark.parametrize("layer", [-1, 4, 99])
def test_a_layer_that_the_model_lacks_is_named(layer: int) -> None:
    with pytest.raises(ModelError, match=rf"blocks\.{layer}\.hook_resid_pre.*tiny has 4 layers.*from 0 to 3"):
        check_sites([Site(0, "resid_pre"), Site(layer, "resid_pre")], num_layers=4, model_name="tiny")


def test_the_first_and_the_last_layer_exist() -> None:
    check_sites([Site(0, "resid_pre"), Site(3, "resid_post")], num_layers=4, model_name="tiny")


def test_sites_of_no_layer_exist_in_any_model() -> None:
    check_sites([Site(None, "embed"), Site(None, "normalized")], num_layers=1, model_name="tiny")


@pytest.mark.parametrize(
    ("specs", "layers"),
    [
        ([3, 1, 3], (1, 3)),
        ([0, 35], (0, 35)),
        ([0.55], (19,)),  # 19.8
        ([0.0, 0.25, 0.5, 0.75], (0, 9, 18, 27)),
        ([0.999999999999], (35,)),
        (["all"], tuple(range(36))),
        ("all", tuple(range(36))),
        ([2, "all", 0.5], tuple(range(36))),
        ([20, 0.1], (3, 20)),
        ([], ()),
    ],
)
def test_layers_as_they_are_written(specs: Any, layers: tuple[int, ...]) -> None:
    assert choose_layers(specs, num_layers=36) == layers


@pytest.mark.parametrize("num_layers", [1, 2, 3, 7, 12, 36, 100])
def test_the_fraction_of_a_layer_is_that_layer(num_layers: int) -> None:
    """Layer l stands at the fraction l / num_layers, however that is rounded in binary, written out or not."""
    for layer in range(num_layers):
        assert choose_layers([layer / num_layers], num_layers=num_layers) == (layer,)
    for hundredth in range(100):
        assert choose_layers([hundredth / 100], num_layers=num_layers) == (hundredth * num_layers // 100,)


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        (36, ModelError, "layer 36 does not exist: the model has 36 layers.*from 0 to 35"),
        (-1, ModelError, "layer -1 does not exist.*from 0 to 35"),
        (1.0, ConfigError, r"layer 1\.0 is no fraction.*\[0, 1\).*index from 0 to 35"),
        (-0.5, ConfigError, r"layer -0\.5 is no fraction"),
        (float("nan"), ConfigError, "layer nan is no fraction"),
        (True, ConfigError, 'layer True is not known.*from 0 to 35.*"all"'),
        (False, ConfigError, "layer False is not known"),
        ("last", ConfigError, "layer 'last' is not known"),
        (None, ConfigError, "layer None is not known"),
    ],
)
def test_what_is_no_layer_is_named(spec: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        choose_layers([0, spec], num_layers=36)


def test_another_word_for_all_is_refused_whole() -> None:
    with pytest.raises(ConfigError, match="layer 'every' is not known"):
        choose_layers("every", num_layers=4)  # ty: ignore[invalid-argument-type]


def test_shapes_are_what_a_pass_shows(each_model: LoadedModel) -> None:
    model = each_model.model
    sites = [Site(None, "embed"), Site(None, "normalized"), *(Site(1, point) for point in LAYER_POINTS)]
    shown: dict[Site, torch.Size] = {}
    for site in sites:
        try:
            hook_point(model, site)
        except ModelError:
            continue
        with torch.inference_mode(), observe(model, [site], lambda site, it: shown.update({site: it.shape}), stop=True):
            body(model)(torch.tensor([[5, 6, 7], [8, 9, 10]]))
    heads = model.config.num_attention_heads
    for site, shape in shown.items():
        expected = site_shape(model, site)
        assert site_shape(model.config, site) == expected
        assert expected.heads == (heads if site.point in ("z", "pattern") else None)
        assert tuple(shape) == ((2, heads, 3, 3) if site.point == "pattern" else (2, 3, expected.width))
    assert len(shown) >= 8


def test_heads_may_be_wider_than_the_stream() -> None:
    import transformers

    config = transformers.Qwen3Config(hidden_size=64, num_attention_heads=4, head_dim=128)
    assert site_shape(config, Site(0, "z")) == SiteShape(width=512, heads=4)
    assert site_shape(config, Site(0, "resid_mid")) == SiteShape(width=64, heads=None)
    assert site_shape(config, Site(0, "pattern")) == SiteShape(width=None, heads=4)


def test_the_body_and_the_head_together_are_the_model(each_model: LoadedModel) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]])
    with torch.inference_mode():
        hidden = body(each_model.model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = head_logits(each_model.model, hidden)
        torch.testing.assert_close(logits, each_model.model(input_ids=ids).logits[0], rtol=1e-5, atol=1e-5)
    assert logits.dtype == torch.float32


def test_an_adapter_is_part_of_body_and_head(llama: LoadedModel) -> None:
    from peft import LoraConfig, get_peft_model

    ids = torch.tensor([[5, 6, 7]])
    plain: Any = llama.model
    with torch.inference_mode():
        before = plain(input_ids=ids).logits[0]
    wrapped: Any = get_peft_model(plain, LoraConfig(r=2, target_modules=["o_proj", "lm_head"], init_lora_weights=False))
    assert unwrapped(wrapped) is plain and unwrapped(plain) is plain
    with torch.inference_mode():
        hidden = body(wrapped.eval())(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = wrapped(input_ids=ids).logits[0]
        torch.testing.assert_close(head_logits(wrapped, hidden), logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, before, rtol=1e-2)
    assert decoder_layers(wrapped) is decoder_layers(plain)


def test_a_soft_cap_is_felt(tiny_models: Any) -> None:
    from unmask.models.loading import load_base
    from unmask.records import ModelSource

    model = load_base(ModelSource(str(tiny_models("gemma2")))).model
    hidden = 5 * torch.ones(1, 48)
    with torch.inference_mode():
        bare = model.get_output_embeddings()(hidden)
        assert bare.abs().max() > 3
        torch.testing.assert_close(head_logits(model, hidden), 3 * torch.tanh(bare / 3))


@pytest.mark.parametrize(
    ("family", "fields"),
    [("Cohere", {"logit_scale": 0.0625}), ("Granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0})],
)
def test_scaled_logits_are_the_models_own(family: str, fields: dict[str, float]) -> None:
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, **fields,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        hidden = body(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(head_logits(model, hidden), model(input_ids=ids).logits[0], rtol=1e-5, atol=1e-6)
