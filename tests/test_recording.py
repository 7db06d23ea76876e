"""Recording: `observe` shows what a site holds in every pass, ends a pass where it may, and leaves no trace."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hooks import hooks_of
from unmask.errors import ModelError
from unmask.models.hook_points import hook_point
from unmask.models.loading import LoadedModel
from unmask.models.recording import observe
from unmask.models.sites import body, decoder_layers
from unmask.records import LAYER_POINTS, Site

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def num_hooks(model: torch.nn.Module) -> int:
    return len(hooks_of(model.modules()))


def existing(model: Any, num_layers: int) -> list[Site]:
    """Every site that the model has."""
    sites = [Site(layer, point) for layer in range(num_layers) for point in LAYER_POINTS]
    found = []
    for site in [Site(None, "embed"), *sites, Site(None, "normalized")]:
        try:
            hook_point(model, site)
        except ModelError:
            continue
        found.append(site)
    return found


class Seen(dict[Site, torch.Tensor]):
    """The last activation of every site, and how often each was handed over."""

    def __init__(self) -> None:
        self.times: dict[Site, int] = {}

    def keep(self, site: Site, activation: torch.Tensor) -> None:
        assert not activation.requires_grad
        self[site] = activation.clone()
        self.times[site] = self.times.get(site, 0) + 1


class Doubling(torch.nn.Module):
    """A decoder layer that doubles the stream, and gives it back alone or in a tuple with something else."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.runs = 0

    def forward(self, hidden_states: torch.Tensor) -> Any:
        self.runs += 1
        out = hidden_states * 2 + self.bias
        return (out, "something else") if self.as_tuple else out


class Toy(torch.nn.Module):
    """Three doubling layers, called by position or by keyword; exceptions of layers are swallowed."""

    def __init__(self, *, as_tuple: bool = False, by_keyword: bool = False) -> None:
        super().__init__()
        text = SimpleNamespace(num_hidden_layers=3)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.by_keyword = by_keyword
        self.layers = torch.nn.ModuleList(Doubling(as_tuple) for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            try:
                out = layer(hidden_states=hidden) if self.by_keyword else layer(hidden)
            except Exception:
                continue
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("by_keyword", [False, True])
def test_the_stream_however_layers_are_called(as_tuple: bool, by_keyword: bool) -> None:
    model: Any = Toy(as_tuple=as_tuple, by_keyword=by_keyword)
    hidden = torch.randn(2, 6, 5)
    sites = [Site(2, "resid_post"), Site(1, "resid_pre"), Site(1, "resid_post")]
    seen = Seen()
    with observe(model, sites, seen.keep):
        assert torch.equal(model(hidden), hidden * 8)
    for site, factor in zip(sites, (8, 2, 4), strict=True):
        assert torch.equal(seen[site], hidden * factor)


def test_every_pass_is_seen_and_nothing_is_copied() -> None:
    model: Any = Toy()
    handed: list[torch.Tensor] = []
    first, second = torch.randn(2, 6, 5), torch.randn(1, 1, 5)
    with observe(model, [Site(0, "resid_pre")], lambda _, activation: handed.append(activation)):
        model(first)
        model(second)
    assert [activation.data_ptr() for activation in handed] == [first.data_ptr(), second.data_ptr()]


def test_a_site_asked_for_twice_is_seen_once() -> None:
    model: Any = Toy()
    seen = Seen()
    with observe(model, [Site(0, "resid_pre")] * 2, seen.keep, stop=True):
        model(torch.ones(1, 2, 3))
    assert seen.times == {Site(0, "resid_pre"): 1}


def test_the_model_is_as_it_was(each_model: LoadedModel) -> None:
    model = each_model.model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sites = [site for site in existing(model, each_model.num_layers) if site.point != "pattern"]
    seen = Seen()
    with torch.inference_mode():
        before = model(IDS).logits
        with observe(model, sites, seen.keep):
            assert num_hooks(model) == len(sites)
            during = model(IDS).logits
        after = model(IDS).logits
    assert set(seen) == set(sites)
    assert torch.equal(before, during) and torch.equal(before, after)
    assert num_hooks(model) == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_pattern_moves_the_numbers_by_rounding_and_attention_is_put_back(each_model: LoadedModel) -> None:
    model = each_model.model
    kind = model.config._attn_implementation
    with torch.inference_mode():
        before = model(IDS).logits
        with observe(model, [Site(1, "pattern")], lambda *_: None):
            during = model(IDS).logits
        with pytest.raises(KeyboardInterrupt), observe(model, [Site(1, "pattern")], lambda *_: None):
            raise KeyboardInterrupt
        assert model.config._attn_implementation == kind
        assert torch.equal(model(IDS).logits, before)
    torch.testing.assert_close(during, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))


def test_the_last_site_ends_the_pass(each_model: LoadedModel) -> None:
    """Whatever single site is asked for, what is seen is what a whole pass shows, and no deeper layer is run."""
    model = each_model.model
    sites = existing(model, each_model.num_layers)
    whole = Seen()
    ran: list[int] = []
    handles = [
        part.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, parts in enumerate(decoder_layers(model))
        for part in parts.children()
    ]
    with torch.inference_mode():
        with observe(model, sites, whole.keep):
            model(IDS)
        for site in sites:
            ran.clear()
            seen, behind = Seen(), False
            with observe(model, [site], seen.keep, stop=True):
                body(model)(IDS)
                behind = True
            assert not behind
            assert set(seen) == {site}
            torch.testing.assert_close(seen[site], whole[site], rtol=1e-4, atol=1e-4 * float(whole[site].abs().max()))
            if site.layer is not None:
                assert max(ran, default=-1) == site.layer - (site.point == "resid_pre")
    for handle in handles:
        handle.remove()
    assert num_hooks(model) == 0


def test_of_several_sites_the_deepest_ends_the_pass() -> None:
    model: Any = Toy()
    seen = Seen()
    with observe(model, [Site(1, "resid_post"), Site(0, "resid_pre"), Site(1, "resid_pre")], seen.keep, stop=True):
        model(torch.ones(1, 2, 3))
    assert [layer.runs for layer in model.layers] == [1, 1, 0]
    assert len(seen) == 3


def test_stopping_needs_a_site(llama: LoadedModel) -> None:
    with pytest.raises(ValueError, match="needs a site"), observe(llama.model, [], lambda *_: None, stop=True):
        pass
    with observe(llama.model, [], lambda *_: None):
        llama.model(IDS)


def test_a_model_that_swallows_exceptions_is_stopped_too() -> None:
    model: Any = Toy()
    with observe(model, [Site(0, "resid_post")], lambda *_: None, stop=True):
        model(torch.ones(1, 2, 3))
    assert [layer.runs for layer in model.layers] == [1, 0, 0]


def test_nothing_is_seen_after_the_block(llama: LoadedModel) -> None:
    site = Site(1, "resid_pre")
    seen = Seen()
    with torch.inference_mode():
        with observe(llama.model, [site], seen.keep):
            llama.model(IDS)
        llama.model(IDS)
    assert seen.times[site] == 1


def test_hooks_go_when_the_block_raises(llama: LoadedModel) -> None:
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), observe(llama.model, [Site(1, "resid_post")], lambda *_: None, stop=True):
            raise error
        assert num_hooks(llama.model) == 0


def test_hooks_go_when_what_is_kept_raises(llama: LoadedModel) -> None:
    def refuse(site: Site, activation: torch.Tensor) -> None:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"), observe(llama.model, [Site(1, "pattern")], refuse):
        llama.model(IDS)
    assert num_hooks(llama.model) == 0
    assert llama.model.config._attn_implementation == "sdpa"


def test_no_hook_is_left_when_a_later_site_does_not_exist(llama: LoadedModel) -> None:
    sites = [Site(0, "pattern"), Site(99, "resid_pre")]
    with pytest.raises(ModelError, match="has 4 layers"), observe(llama.model, sites, lambda *_: None):
        pass
    assert num_hooks(llama.model) == 0
    assert llama.model.config._attn_implementation == "sdpa"


def test_two_blocks_at_once_see_both(llama: LoadedModel) -> None:
    site = Site(2, "resid_pre")
    first, second = Seen(), Seen()
    with (
        torch.inference_mode(),
        observe(llama.model, [site, Site(1, "pattern")], first.keep),
        observe(llama.model, [site, Site(2, "pattern")], second.keep),
    ):
        llama.model(IDS)
    assert torch.equal(first[site], second[site])
    assert len(first) == len(second) == 2
    assert llama.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("outer", [0, 2])
def test_of_two_blocks_that_stop_the_first_to_have_all_ends_the_pass(outer: int) -> None:
    model: Any = Toy()
    first, second = Seen(), Seen()
    inner = 2 - outer
    reached = False
    with observe(model, [Site(outer, "resid_post")], first.keep, stop=True):
        with observe(model, [Site(inner, "resid_post")], second.keep, stop=True):
            model(torch.ones(1, 2, 3))
        reached = True
    assert [layer.runs for layer in model.layers] == [1, 0, 0]
    assert (len(first), len(second)) == ((1, 0) if outer == 0 else (0, 1))
    assert reached == (inner == 0)  # each block swallows its own ending only
    assert num_hooks(model) == 0


def test_attention_without_weights_is_refused(llama: LoadedModel) -> None:
    attention = hook_point(llama.model, Site(0, "pattern")).module
    handle = attention.register_forward_hook(lambda _, args, output: (output[0], None))
    with (
        pytest.raises(ModelError, match="gives back no weights"),
        observe(llama.model, [Site(0, "pattern")], lambda *_: None),
    ):
        llama.model(IDS)
    handle.remove()
    assert num_hooks(llama.model) == 0


def test_a_cache_is_read_step_by_step(llama: LoadedModel) -> None:
    """Tokens that are read one after another show what one pass over all shows, each pattern with all keys so far."""
    sites = [Site(2, "resid_mid"), Site(2, "z"), Site(None, "normalized")]
    pattern = Site(3, "pattern")
    whole, step = Seen(), Seen()
    with torch.inference_mode():
        with observe(llama.model, [*sites, pattern], whole.keep):
            llama.model(IDS)
        past = None
        with observe(llama.model, [*sites, pattern], step.keep):
            for column in range(IDS.shape[1]):
                past = llama.model(IDS[:, column : column + 1], past_key_values=past, use_cache=True).past_key_values
                for site in sites:
                    torch.testing.assert_close(step[site][:, 0], whole[site][:, column], rtol=1e-4, atol=1e-4)
                assert step[pattern].shape[-1] == column + 1
                torch.testing.assert_close(step[pattern][:, :, 0], whole[pattern][:, :, column, : column + 1])
