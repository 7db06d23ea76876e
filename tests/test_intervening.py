"""Intervening: what is added is exactly what the layer sees, row by row, and nothing stays behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmask.errors import ModelError
from unmask.models.intervening import Addition
from unmask.models.loading import LoadedModel
from unmask.models.recording import observe
from unmask.models.sites import decoder_layers
from unmask.records import Site

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]]).repeat(6, 1)

SITES = [Site(2, "resid_pre"), Site(1, "resid_post"), Site(0, "resid_pre")]


def deltas(rows: int, width: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def stream(model: Any, site: Site) -> torch.Tensor:
    """The stream at position t of row t: six copies of one text show it at every position."""
    found: list[torch.Tensor] = []
    with observe(model, [site], lambda _, hidden_BTD: found.append(hidden_BTD.diagonal(dim1=0, dim2=1).T.float())):
        model(IDS)
    return found[0]


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(ids).logits


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_nothing_added_changes_no_bit(each_model: LoadedModel, site: Site) -> None:
    before = logits(each_model.model)
    with Addition(each_model.model, site, 0 * deltas(6, each_model.width)):
        assert torch.equal(logits(each_model.model), before)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_the_stream_moves_by_exactly_what_is_added_at_every_position(each_model: LoadedModel, site: Site) -> None:
    delta = deltas(1, each_model.width)
    before = stream(each_model.model, site)
    with Addition(each_model.model, site, delta.expand(6, -1)):
        during = stream(each_model.model, site)
    assert torch.equal(during, before + delta)
    assert torch.equal(stream(each_model.model, site), before)


def test_what_leaves_a_layer_is_what_enters_the_next(each_model: LoadedModel) -> None:
    delta = deltas(6, each_model.width)
    with Addition(each_model.model, Site(1, "resid_post"), delta):
        after = logits(each_model.model)
    with Addition(each_model.model, Site(2, "resid_pre"), delta):
        assert torch.equal(logits(each_model.model), after)


def test_between_attention_and_mlp_the_stream_itself_moves(llama: LoadedModel) -> None:
    """What is added at resid_mid reaches the MLP of its layer and the stream behind it; what enters the layer stays."""
    delta, site = deltas(6, llama.width), Site(1, "resid_mid")
    before = {point: stream(llama.model, Site(1, point)) for point in ("resid_pre", "resid_mid", "mlp_out")}
    with Addition(llama.model, site, delta):
        during = {point: stream(llama.model, Site(1, point)) for point in (*before, "resid_post")}
    assert torch.equal(during["resid_pre"], before["resid_pre"])
    torch.testing.assert_close(during["resid_mid"], before["resid_mid"] + delta, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(during["resid_post"], during["resid_mid"] + during["mlp_out"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(during["mlp_out"], before["mlp_out"], rtol=1e-2)


def test_between_attention_and_mlp_every_family_moves_alike(each_model: LoadedModel) -> None:
    site = Site(1, "resid_mid")
    delta = deltas(6, each_model.width)
    if each_model.model.config.model_type in ("gpt_neox", "phi"):
        with pytest.raises(ModelError, match="side by side"):
            Addition(each_model.model, site, delta)
        return
    before = stream(each_model.model, site)
    with Addition(each_model.model, site, delta):
        torch.testing.assert_close(stream(each_model.model, site), before + delta, rtol=1e-4, atol=1e-4)
    assert torch.equal(stream(each_model.model, site), before)


@pytest.mark.parametrize("point", ["embed", "attn_out", "z", "pattern", "mlp_out", "normalized"])
def test_only_the_stream_can_be_added_to(llama: LoadedModel, point: Any) -> None:
    site = Site(None if point in ("embed", "normalized") else 1, point)
    with pytest.raises(ModelError, match=f"nothing can be added at {site.name}.*Choose hook_resid_pre"):
        Addition(llama.model, site, deltas(6, llama.width))


def test_a_layer_that_is_not_there_cannot_be_added_to(llama: LoadedModel) -> None:
    with pytest.raises(ModelError, match="has 4 layers"):
        Addition(llama.model, Site(4, "resid_pre"), deltas(6, llama.width))


def test_earlier_layers_do_not_feel_it(each_model: LoadedModel) -> None:
    before = stream(each_model.model, Site(1, "resid_pre"))
    with Addition(each_model.model, Site(2, "resid_pre"), deltas(6, each_model.width)):
        assert torch.equal(stream(each_model.model, Site(1, "resid_pre")), before)
    assert torch.equal(stream(each_model.model, Site(1, "resid_pre")), before)


def test_rows_do_not_feel_each_other(each_model: LoadedModel) -> None:
    delta = deltas(6, each_model.width)
    delta[[1, 4]] = 0
    before = logits(each_model.model)
    with Addition(each_model.model, Site(2, "resid_pre"), delta):
        together = logits(each_model.model)
    assert torch.equal(together[[1, 4]], before[[1, 4]])
    for row in (0, 2, 3, 5):
        assert not torch.allclose(together[row], before[row], atol=1e-3)
        with Addition(each_model.model, Site(2, "resid_pre"), delta[row : row + 1]):
            alone = logits(each_model.model, IDS[:1])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


def test_selected_rows_keep_their_own_delta(llama: LoadedModel) -> None:
    delta = deltas(6, llama.width)
    rows = torch.tensor([4, 1])
    with Addition(llama.model, Site(2, "resid_pre"), delta) as addition:
        whole = logits(llama.model)
        addition.select(rows)
        torch.testing.assert_close(logits(llama.model, IDS[:2]), whole[rows], rtol=1e-5, atol=1e-5)
        addition.select(torch.tensor([1]))
        torch.testing.assert_close(logits(llama.model, IDS[:1]), whole[[1]], rtol=1e-5, atol=1e-5)


def test_two_additions_add_up(llama: LoadedModel) -> None:
    site = Site(2, "resid_pre")
    first, second = deltas(6, llama.width, seed=1), deltas(6, llama.width, seed=2)
    before = stream(llama.model, site)
    with Addition(llama.model, site, first), Addition(llama.model, site, second):
        assert torch.equal(stream(llama.model, site), before + first + second)


def test_a_half_precision_model_gets_its_own_dtype(llama: LoadedModel) -> None:
    model = llama.model.to(torch.bfloat16)
    delta = deltas(6, llama.width)
    before = stream(model, SITES[0])
    with Addition(model, SITES[0], delta):
        during = stream(model, SITES[0])
    assert torch.equal(during, (before.bfloat16() + delta.bfloat16()).float())


class Layer(torch.nn.Module):
    """A decoder layer that multiplies by ten, and gives that back alone or in a tuple."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.given: list[Any] = []

    def forward(self, hidden_states: torch.Tensor, mask: str) -> Any:
        self.given.append(mask)
        out = hidden_states * 10
        return (out, "cache") if self.as_tuple else out


class Toy(torch.nn.Module):
    """Two such layers, called by position or by keyword."""

    def __init__(self, *, as_tuple: bool, by_keyword: bool) -> None:
        super().__init__()
        text = SimpleNamespace(num_hidden_layers=2)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.by_keyword = by_keyword
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.layers = torch.nn.ModuleList(Layer(as_tuple) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            out = layer(hidden_states=hidden, mask="mask") if self.by_keyword else layer(hidden, "mask")
            if isinstance(out, tuple):
                assert out[1] == "cache"
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("by_keyword", [False, True])
def test_layers_of_every_calling_convention(as_tuple: bool, by_keyword: bool) -> None:
    model: Any = Toy(as_tuple=as_tuple, by_keyword=by_keyword)
    hidden, delta = torch.randn(3, 4, 5), torch.randn(3, 5)
    kept = hidden.clone()
    with Addition(model, Site(1, "resid_pre"), delta):
        torch.testing.assert_close(model(hidden), (hidden * 10 + delta.unsqueeze(1)) * 10)
    with Addition(model, Site(0, "resid_post"), delta):
        torch.testing.assert_close(model(hidden), (hidden * 10 + delta.unsqueeze(1)) * 10)
    with Addition(model, Site(1, "resid_post"), delta):
        torch.testing.assert_close(model(hidden), hidden * 100 + delta.unsqueeze(1))
    torch.testing.assert_close(model(hidden), hidden * 100)
    assert torch.equal(hidden, kept)  # nothing is added in place
    assert all(mask == "mask" for layer in model.layers for mask in layer.given)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_hooks_go_however_the_block_ends(llama: LoadedModel, site: Site) -> None:
    weights = {name: tensor.clone() for name, tensor in llama.model.state_dict().items()}
    before = logits(llama.model)
    with pytest.raises(KeyboardInterrupt), Addition(llama.model, site, deltas(6, llama.width)):
        logits(llama.model)
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), Addition(llama.model, site, deltas(5, llama.width)):
        logits(llama.model)  # five deltas for six rows
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in decoder_layers(llama.model))
    assert torch.equal(logits(llama.model), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in llama.model.state_dict().items())
