"""Recording: the weighted mean of what a layer is given or gives back, and no trace of it afterwards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmask.models.loading import LoadedModel
from unmask.models.recording import record_means
from unmask.records import Site

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
WEIGHTS = torch.tensor([[0, 0, 0.25, 0.25, 0.5, 0], [0, 1.0, 0, 0, 0, 0]])


def num_hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Doubling(torch.nn.Module):
    """A decoder layer that doubles the stream, and gives it back alone or in a tuple with something else."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: torch.Tensor) -> Any:
        out = hidden_states * 2
        return (out, "something else") if self.as_tuple else out


class Toy(torch.nn.Module):
    """Three doubling layers, called by position or by keyword."""

    def __init__(self, *, as_tuple: bool, by_keyword: bool) -> None:
        super().__init__()
        text = SimpleNamespace(num_hidden_layers=3)
        self.config = SimpleNamespace(get_text_config=lambda: text)
        self.by_keyword = by_keyword
        self.layers = torch.nn.ModuleList(Doubling(as_tuple) for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            out = layer(hidden_states=hidden) if self.by_keyword else layer(hidden)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("by_keyword", [False, True])
def test_means_and_norms_however_layers_are_called(as_tuple: bool, by_keyword: bool) -> None:
    model: Any = Toy(as_tuple=as_tuple, by_keyword=by_keyword)
    hidden = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    sites = [Site(1, "resid_pre"), Site(1, "resid_post"), Site(2, "resid_post")]
    with record_means(model, sites, WEIGHTS) as recorded:
        model(hidden)
    for site, factor in zip(sites, (2, 4, 8), strict=True):
        wanted = (WEIGHTS.unsqueeze(-1) * hidden * factor).sum(dim=1)
        torch.testing.assert_close(recorded.means_BD[site], wanted)
        torch.testing.assert_close(recorded.norms_B[site], (WEIGHTS * hidden.norm(dim=-1) * factor).sum(dim=1))


def test_one_heavy_token_is_recorded_exactly() -> None:
    model: Any = Toy(as_tuple=False, by_keyword=False)
    hidden = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(2, 6)
    weights[:, 3] = 1
    with record_means(model, [Site(0, "resid_pre")], weights) as recorded:
        model(hidden)
    assert torch.equal(recorded.means_BD[Site(0, "resid_pre")], hidden[:, 3])


def test_half_precision_is_averaged_in_float32() -> None:
    model: Any = Toy(as_tuple=False, by_keyword=False)
    hidden = torch.full((1, 4096, 1), 1 + 2**-7, dtype=torch.bfloat16)
    with record_means(model, [Site(0, "resid_pre")], torch.full((1, 4096), 1 / 4096)) as recorded:
        model(hidden)
    mean = recorded.means_BD[Site(0, "resid_pre")]
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(1 + 2**-7, rel=1e-6)


def test_the_model_is_as_it_was(each_model: LoadedModel) -> None:
    model = each_model.model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sites = [Site(layer, point) for layer in range(each_model.num_layers) for point in ("resid_pre", "resid_post")]
    hooks = num_hooks(model)
    with torch.inference_mode():
        before = model(IDS).logits
        with record_means(model, sites, WEIGHTS) as recorded:
            assert num_hooks(model) == hooks + len(sites)
            during = model(IDS).logits
        after = model(IDS).logits
    assert set(recorded.means_BD) == set(recorded.norms_B) == set(sites)
    assert torch.equal(before, during) and torch.equal(before, after)
    assert num_hooks(model) == hooks
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_nothing_is_recorded_after_the_block(llama: LoadedModel) -> None:
    site = Site(1, "resid_pre")
    with torch.inference_mode(), record_means(llama.model, [site], WEIGHTS) as recorded:
        llama.model(IDS)
    kept = recorded.means_BD[site].clone()
    with torch.inference_mode():
        llama.model(IDS.flip(1))
    assert torch.equal(recorded.means_BD[site], kept)


def test_hooks_go_when_the_block_raises(llama: LoadedModel) -> None:
    with pytest.raises(KeyboardInterrupt), record_means(llama.model, [Site(1, "resid_post")], WEIGHTS):
        raise KeyboardInterrupt
    assert num_hooks(llama.model) == 0


def test_hooks_go_when_the_model_raises(llama: LoadedModel) -> None:
    with pytest.raises(RuntimeError), record_means(llama.model, [Site(1, "resid_post")], WEIGHTS[:, :3]):
        llama.model(IDS)  # weights of another length
    assert num_hooks(llama.model) == 0


def test_hooks_go_when_a_later_site_does_not_exist(llama: LoadedModel) -> None:
    sites = [Site(0, "resid_pre"), Site(99, "resid_pre")]
    with pytest.raises(IndexError), record_means(llama.model, sites, WEIGHTS):
        pass
    assert num_hooks(llama.model) == 0


def test_two_blocks_at_once_record_both(llama: LoadedModel) -> None:
    site = Site(2, "resid_pre")
    with (
        torch.inference_mode(),
        record_means(llama.model, [site], WEIGHTS) as first,
        record_means(llama.model, [site], WEIGHTS) as second,
    ):
        llama.model(IDS)
    assert torch.equal(first.means_BD[site], second.means_BD[site])
