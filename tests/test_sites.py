"""Sites: the decoder stack is found in every architecture, and what the model lacks is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmask.errors import ModelError
from unmask.models.loading import LoadedModel
from unmask.models.sites import body, check_sites, decoder_layers, head_logits
from unmask.records import Site


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


def test_the_body_and_the_head_together_are_the_model(each_model: LoadedModel) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]])
    with torch.inference_mode():
        hidden = body(each_model.model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = head_logits(each_model.model, hidden)
        torch.testing.assert_close(logits, each_model.model(input_ids=ids).logits[0], rtol=1e-5, atol=1e-5)
    assert logits.dtype == torch.float32


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
