"""Intervening: what is changed is exactly what the layer sees, row by row and where it is meant, and nothing stays behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hooks import hooks_of
from unmask.errors import ModelError
from unmask.models.intervening import Ablate, Add, Clamp, Erase, Intervening, Intervention, Replace, intervene
from unmask.models.interventions import orthonormal
from unmask.models.loading import LoadedModel
from unmask.models.recording import observe
from unmask.models.sites import decoder_layers
from unmask.records import Site

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]]).repeat(6, 1)

SITES = [Site(2, "resid_pre"), Site(1, "resid_post"), Site(0, "resid_pre")]


def adding(model: Any, site: Site, delta_BD: torch.Tensor) -> Intervening:
    return intervene(model, [Add(site, delta_BD.numpy())])


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
    with adding(each_model.model, site, 0 * deltas(6, each_model.width)):
        assert torch.equal(logits(each_model.model), before)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_the_stream_moves_by_exactly_what_is_added_at_every_position(each_model: LoadedModel, site: Site) -> None:
    delta = deltas(1, each_model.width)
    before = stream(each_model.model, site)
    with adding(each_model.model, site, delta.expand(6, -1)):
        during = stream(each_model.model, site)
    assert torch.equal(during, before + delta)
    assert torch.equal(stream(each_model.model, site), before)


def test_what_leaves_a_layer_is_what_enters_the_next(each_model: LoadedModel) -> None:
    delta = deltas(6, each_model.width)
    with adding(each_model.model, Site(1, "resid_post"), delta):
        after = logits(each_model.model)
    with adding(each_model.model, Site(2, "resid_pre"), delta):
        assert torch.equal(logits(each_model.model), after)


def test_between_attention_and_mlp_the_stream_itself_moves(llama: LoadedModel) -> None:
    """What is added at resid_mid reaches the MLP of its layer and the stream behind it; what enters the layer stays."""
    delta, site = deltas(6, llama.width), Site(1, "resid_mid")
    before = {point: stream(llama.model, Site(1, point)) for point in ("resid_pre", "resid_mid", "mlp_out")}
    with adding(llama.model, site, delta):
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
            adding(each_model.model, site, delta)
        return
    before = stream(each_model.model, site)
    with adding(each_model.model, site, delta):
        torch.testing.assert_close(stream(each_model.model, site), before + delta, rtol=1e-4, atol=1e-4)
    assert torch.equal(stream(each_model.model, site), before)


@pytest.mark.parametrize("point", ["embed", "attn_out", "z", "pattern", "mlp_out", "normalized"])
def test_only_the_stream_can_be_intervened_on(llama: LoadedModel, point: Any) -> None:
    site = Site(None if point in ("embed", "normalized") else 1, point)
    with pytest.raises(ModelError, match=f"nothing can be changed at {site.name}.*Choose hook_resid_pre"):
        adding(llama.model, site, deltas(6, llama.width))


def test_a_layer_that_is_not_there_cannot_be_intervened_on(llama: LoadedModel) -> None:
    with pytest.raises(ModelError, match="has 4 layers"):
        adding(llama.model, Site(4, "resid_pre"), deltas(6, llama.width))


def test_earlier_layers_do_not_feel_it(each_model: LoadedModel) -> None:
    before = stream(each_model.model, Site(1, "resid_pre"))
    with adding(each_model.model, Site(2, "resid_pre"), deltas(6, each_model.width)):
        assert torch.equal(stream(each_model.model, Site(1, "resid_pre")), before)
    assert torch.equal(stream(each_model.model, Site(1, "resid_pre")), before)


def test_rows_do_not_feel_each_other(each_model: LoadedModel) -> None:
    delta = deltas(6, each_model.width)
    delta[[1, 4]] = 0
    before = logits(each_model.model)
    with adding(each_model.model, Site(2, "resid_pre"), delta):
        together = logits(each_model.model)
    assert torch.equal(together[[1, 4]], before[[1, 4]])
    for row in (0, 2, 3, 5):
        assert not torch.allclose(together[row], before[row], atol=1e-3)
        with adding(each_model.model, Site(2, "resid_pre"), delta[row : row + 1]):
            alone = logits(each_model.model, IDS[:1])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


def test_selected_rows_keep_their_own_delta(llama: LoadedModel) -> None:
    delta = deltas(6, llama.width)
    rows = torch.tensor([4, 1])
    with adding(llama.model, Site(2, "resid_pre"), delta) as addition:
        whole = logits(llama.model)
        addition.select(rows)
        torch.testing.assert_close(logits(llama.model, IDS[:2]), whole[rows], rtol=1e-5, atol=1e-5)
        addition.select(torch.tensor([1]))
        torch.testing.assert_close(logits(llama.model, IDS[:1]), whole[[1]], rtol=1e-5, atol=1e-5)


def test_two_additions_add_up(llama: LoadedModel) -> None:
    site = Site(2, "resid_pre")
    first, second = deltas(6, llama.width, seed=1), deltas(6, llama.width, seed=2)
    before = stream(llama.model, site)
    with adding(llama.model, site, first), adding(llama.model, site, second):
        assert torch.equal(stream(llama.model, site), before + first + second)
    with intervene(llama.model, [Add(site, first.numpy()), Add(site, second.numpy())]):
        assert torch.equal(stream(llama.model, site), before + first + second)


def test_a_half_precision_model_gets_its_own_dtype(llama: LoadedModel) -> None:
    model = llama.model.to(torch.bfloat16)
    delta = deltas(6, llama.width)
    before = stream(model, SITES[0])
    with adding(model, SITES[0], delta):
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
    with adding(model, Site(1, "resid_pre"), delta):
        torch.testing.assert_close(model(hidden), (hidden * 10 + delta.unsqueeze(1)) * 10)
    with adding(model, Site(0, "resid_post"), delta):
        torch.testing.assert_close(model(hidden), (hidden * 10 + delta.unsqueeze(1)) * 10)
    with adding(model, Site(1, "resid_post"), delta):
        torch.testing.assert_close(model(hidden), hidden * 100 + delta.unsqueeze(1))
    torch.testing.assert_close(model(hidden), hidden * 100)
    assert torch.equal(hidden, kept)  # nothing is added in place
    assert all(mask == "mask" for layer in model.layers for mask in layer.given)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_hooks_go_however_the_block_ends(llama: LoadedModel, site: Site) -> None:
    weights = {name: tensor.clone() for name, tensor in llama.model.state_dict().items()}
    before = logits(llama.model)
    with pytest.raises(KeyboardInterrupt), adding(llama.model, site, deltas(6, llama.width)):
        logits(llama.model)
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), adding(llama.model, site, deltas(5, llama.width)):
        logits(llama.model)  # five deltas for six rows
    assert hooks_of(decoder_layers(llama.model)) == []
    assert torch.equal(logits(llama.model), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in llama.model.state_dict().items())


# What is done to the stream

SIX = Site(2, "resid_pre")
POINTS = ("resid_pre", "resid_mid", "resid_post")


def randoms(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def kinds(site: Site, rows: int, width: int, *, strength: float = 1.0, positions: Any = "all") -> list[Intervention]:
    """One of each operation, every row another; `strength` 0 leaves all of them without effect."""
    strengths = np.full(rows, strength, np.float32)
    basis, unit = randoms(rows, 2, width, seed=1), randoms(rows, width, seed=2)
    low = np.linspace(-1, 0.5, rows).astype(np.float32)
    return [
        Add(site, strength * randoms(rows, width), positions=positions),
        Ablate(site, basis, strengths, positions=positions),
        Erase(
            site, randoms(rows, width, 2, seed=3) / 5, randoms(rows, 2, width, seed=4) / 5,
            randoms(rows, width, seed=5), strengths, positions=positions,
        ),
        Clamp(site, unit, low, low + 0.25, strengths, positions=positions),
        Replace(site, basis, strengths, positions=positions),
    ]  # fmt: skip


def by_hand(intervention: Intervention, row: int, hidden_TD: np.ndarray, reference_TD: np.ndarray) -> np.ndarray:
    """The changed stream of one row, from the definitions, position by position in float64."""
    arrays = {name: array[row].astype(np.float64) for name, array in intervention.arrays.items()}
    strength, out = arrays.get("strength_B"), []
    for x, r in zip(hidden_TD.astype(np.float64), reference_TD.astype(np.float64), strict=True):
        match intervention:
            case Add():
                out.append(x + arrays["delta_BD"])
            case Ablate():
                out.append(x - strength * sum((x @ u) * u for u in arrays["basis_BKD"]))
            case Erase():
                out.append(
                    x - strength * arrays["left_BDK"] @ (arrays["right_BKD"] @ (x - arrays["centre_BD"]))
                )  # fmt: skip
            case Clamp():
                u = arrays["unit_BD"]
                out.append(x + strength * (np.clip(x @ u, arrays["low_B"], arrays["high_B"]) - x @ u) * u)
            case Replace():
                out.append(x + strength * sum(((r - x) @ u) * u for u in arrays["basis_BKD"]))
    return np.stack(out)


@torch.inference_mode()
def streams(model: Any, site: Site, ids_BT: torch.Tensor = IDS) -> torch.Tensor:
    found: list[torch.Tensor] = []
    with observe(model, [site], lambda _, hidden_BTD: found.append(hidden_BTD.clone())):
        model(ids_BT)
    return found[0]


@pytest.mark.parametrize("kind", range(5), ids=["add", "ablate", "erase", "clamp", "replace"])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_every_operation_is_its_formula_row_by_row(kind: int, strength: float) -> None:
    intervention = kinds(SIX, 4, 7, strength=strength)[kind]
    hidden, reference = randoms(4, 5, 7, seed=8), randoms(4, 5, 7, seed=9)
    compiled = intervention.on(torch.device("cpu"), torch.float32)
    stream_BTD, reference_BTD = torch.from_numpy(hidden), torch.from_numpy(reference)
    found = (stream_BTD + compiled.change(stream_BTD, reference_BTD)).numpy()
    wanted = np.stack([by_hand(intervention, row, hidden[row], reference[row]) for row in range(4)])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    picked = intervention.rows([3, 3, 0])
    np.testing.assert_array_equal(picked.arrays["strength_B" if kind else "delta_BD"][1], next(
        array for name, array in intervention.arrays.items() if name == ("strength_B" if kind else "delta_BD")
    )[3])  # fmt: skip
    found = picked.on(torch.device("cpu"), torch.float32).change(stream_BTD[[3, 3, 0]], reference_BTD[[3, 3, 0]])
    np.testing.assert_allclose(found + stream_BTD[[3, 3, 0]], wanted[[3, 3, 0]], atol=1e-5)
    again = compiled.rows(torch.tensor([2])).change(stream_BTD[2:3], reference_BTD[2:3])
    np.testing.assert_allclose(again + stream_BTD[2:3], wanted[2:3], atol=1e-5)


@pytest.mark.parametrize("point", POINTS)
def test_the_models_stream_is_changed_by_the_formula_and_at_strength_0_by_no_bit(
    each_model: LoadedModel, point: Any
) -> None:
    site, model = Site(1, point), each_model.model
    if point == "resid_mid" and model.config.model_type in ("gpt_neox", "phi"):
        with pytest.raises(ModelError, match="side by side"):
            intervene(model, kinds(site, 6, each_model.width)[1:2])
        return
    ids = torch.from_numpy(np.random.default_rng(3).integers(3, 2048, (6, 6)))
    before, plain = streams(model, site, ids), logits(model, ids)
    reference = before + torch.from_numpy(randoms(*before.shape, seed=7))
    for something in kinds(site, 6, each_model.width, strength=0.8):
        with intervene(model, [something], references={site: reference}):
            found, moved = streams(model, site, ids), logits(model, ids)
        wanted = [by_hand(something, row, before[row].numpy(), reference[row].numpy()) for row in range(6)]
        torch.testing.assert_close(found, torch.from_numpy(np.stack(wanted)).float(), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(moved, plain, atol=1e-3)
    assert torch.equal(logits(model, ids), plain)
    for something in kinds(site, 6, each_model.width):
        something.arrays.get("strength_B", something.arrays.get("delta_BD"))[[1, 4]] = 0
        with intervene(model, [something], references={site: reference}):
            together = logits(model, ids)
        assert torch.equal(together[[1, 4]], plain[[1, 4]])
        assert all(not torch.allclose(together[row], plain[row], atol=1e-3) for row in (0, 2, 3, 5))
        assert [bool(each) for each in something.digests()] == [True, False, True, True, False, True]
    for nothing in kinds(site, 6, each_model.width, strength=0):
        with intervene(model, [nothing], references={site: reference}):
            assert torch.equal(logits(model, ids), plain)


def test_what_is_ablated_is_gone_and_what_is_orthogonal_stays() -> None:
    basis, hidden = randoms(3, 4, 9), torch.from_numpy(randoms(3, 5, 9, seed=1))
    basis[1, 2] = 2 * basis[1, 0] - basis[1, 1]  # a row in the span of others takes nothing more out
    basis[2, 3] = 0
    ablate = Ablate(SIX, basis, np.ones(3, np.float32))
    ranks = [int(np.any(each, axis=1).sum()) for each in ablate.basis_BKD]
    assert ranks == [4, 3, 3]
    compiled = ablate.on(torch.device("cpu"), torch.float32)
    left = hidden + compiled.change(hidden)
    np.testing.assert_allclose(torch.einsum("btd,bkd->btk", left, torch.from_numpy(basis)), 0, atol=1e-5)
    torch.testing.assert_close(left + compiled.change(left), left, rtol=0, atol=1e-5)  # a projection: twice is once
    for row in range(3):
        outside = torch.from_numpy(np.linalg.svd(basis[row])[2][ranks[row] :].T.copy())
        torch.testing.assert_close(left[row] @ outside, hidden[row] @ outside, rtol=0, atol=1e-5)


def test_an_orthonormal_basis_stays_as_it_is_and_others_span_the_same() -> None:
    basis = randoms(5, 3, 8).astype(np.float64) * np.array([1e-9, 1.0, 1e9])[:, None]
    done = orthonormal(basis)
    np.testing.assert_allclose(done @ done.transpose(0, 2, 1), np.tile(np.eye(3), (5, 1, 1)), atol=1e-12)
    for row in range(5):
        assert (
            np.linalg.matrix_rank(np.vstack([done[row], basis[row] / np.linalg.norm(basis[row], axis=1)[:, None]])) == 3
        )
    assert orthonormal(done) is done
    zeros = np.zeros((2, 3, 8), np.float32)
    assert not orthonormal(zeros).any()


def test_erasing_with_an_orthogonal_projector_about_zero_is_ablating() -> None:
    basis = orthonormal(randoms(2, 3, 9))
    hidden, strength = torch.from_numpy(randoms(2, 5, 9, seed=1)), np.array([1, 0.3], np.float32)
    ablate = Ablate(SIX, basis, strength)
    erase = Erase(SIX, basis.transpose(0, 2, 1), basis, np.zeros((2, 9), np.float32), strength)
    found = [each.on(torch.device("cpu"), torch.float32).change(hidden) for each in (ablate, erase)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_a_clamped_component_is_set_floored_or_left_and_nothing_else_moves() -> None:
    unit, hidden = randoms(4, 9), torch.from_numpy(randoms(4, 50, 9, seed=1))
    low, high = np.array([0.7, 0.0, -np.inf, -99.0]), np.array([0.7, np.inf, 0.5, 99.0])
    clamp = Clamp(SIX, 3 * unit, low, high, np.ones(4))
    left = hidden + clamp.on(torch.device("cpu"), torch.float32).change(hidden)
    normed = torch.from_numpy(unit / np.linalg.norm(unit, axis=1, keepdims=True))
    before, after = (torch.einsum("btd,bd->bt", each, normed) for each in (hidden, left))
    for row in range(4):
        wanted = before[row].clamp(float(low[row]), float(high[row]))
        torch.testing.assert_close(after[row], wanted, rtol=0, atol=1e-5)
    rest = [each - component[:, :, None] * normed[:, None, :] for each, component in ((hidden, before), (left, after))]
    torch.testing.assert_close(*rest, rtol=0, atol=1e-5)
    assert torch.equal(left[3], hidden[3])


def test_replacing_by_the_streams_own_component_or_all_of_another_model() -> None:
    hidden, reference = (torch.from_numpy(randoms(1, 5, 9, seed=seed)) for seed in (1, 2))
    whole = Replace(SIX, np.eye(9, dtype=np.float32)[None], np.ones(1)).on(torch.device("cpu"), torch.float32)
    torch.testing.assert_close(hidden + whole.change(hidden, reference), reference, rtol=0, atol=1e-6)
    assert torch.equal(hidden + whole.change(hidden, hidden), hidden)


def test_a_replaced_component_is_the_other_models(llama: LoadedModel, tiny_adapter: Any) -> None:
    """With the base's whole stream put in, what the organism's layers above the site see is the base's."""
    from peft import PeftModel

    site, width = Site(3, "resid_post"), llama.width
    theirs = streams(llama.model, site)
    wanted = logits(llama.model)
    organism: Any = PeftModel.from_pretrained(llama.model, tiny_adapter).eval()
    assert not torch.allclose(logits(organism), wanted, atol=1e-2)
    whole = Replace(site, np.eye(width, dtype=np.float32)[None], np.ones(1, np.float32))
    with intervene(organism, [whole], references={site: theirs}):
        torch.testing.assert_close(logits(organism), wanted, rtol=1e-4, atol=1e-4)


def test_replacing_needs_a_reference_of_the_pass(llama: LoadedModel) -> None:
    replace = kinds(SIX, 6, llama.width)[4]
    with intervene(llama.model, [replace]) as running:
        with pytest.raises(ValueError, match=r"no reference stream was given for blocks\.2\.hook_resid_pre"):
            logits(llama.model)
        running.expect(references={SIX: torch.zeros(6, 5, llama.width)})
        with pytest.raises(ValueError, match=r"must be of the shape \(6, 6, 48\), not \(6, 5, 48\)"):
            logits(llama.model)


# Where and on whom


@pytest.mark.parametrize("kind", range(5), ids=["add", "ablate", "erase", "clamp", "replace"])
@pytest.mark.parametrize("point", POINTS)
def test_only_the_meant_positions_move_and_prompt_and_response_make_all(
    llama: LoadedModel, kind: int, point: Any
) -> None:
    site, model = Site(1, point), llama.model
    response = torch.arange(6) >= torch.tensor([0, 1, 2, 4, 5, 6])[:, None]
    before = streams(model, site)
    reference = before + torch.from_numpy(randoms(*before.shape, seed=7))
    found = {}
    for positions in ("all", "prompt", "response"):
        meant = kinds(site, 6, llama.width, positions=positions)[kind]
        with intervene(model, [meant], response_BT=response, references={site: reference}):
            found[positions] = streams(model, site)
    assert torch.equal(found["prompt"][response], before[response])
    assert torch.equal(found["response"][~response], before[~response])
    torch.testing.assert_close(found["prompt"][~response], found["all"][~response], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["response"][response], found["all"][response], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found["all"], before, atol=1e-2)


def test_without_a_mask_everything_is_response(llama: LoadedModel) -> None:
    before, model = logits(llama.model), llama.model
    everywhere, prompt, response = (
        kinds(SIX, 6, llama.width, positions=positions)[0] for positions in ("all", "prompt", "response")
    )
    with intervene(model, [everywhere]):
        wanted = logits(model)
    with intervene(model, [response]):
        assert torch.equal(logits(model), wanted)
    with intervene(model, [prompt]) as running:
        assert torch.equal(logits(model), before)
        running.expect(response_BT=torch.zeros(6, 6, dtype=torch.bool))
        torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)


def test_the_mask_of_another_pass_is_refused(llama: LoadedModel) -> None:
    response = kinds(SIX, 6, llama.width, positions="response")[0]
    with (
        intervene(llama.model, [response], response_BT=torch.ones(6, 5, dtype=torch.bool)),
        pytest.raises(ValueError, match=r"of a pass of \(6, 5\) were given for one of \(6, 6\)"),
    ):
        logits(llama.model)


@pytest.mark.parametrize("point", POINTS)
def test_rows_follow_their_masks_and_references_when_a_batch_shrinks(llama: LoadedModel, point: Any) -> None:
    site, model, rows = Site(1, point), llama.model, torch.tensor([4, 1, 1])
    response = torch.arange(6) >= torch.tensor([0, 1, 2, 4, 5, 6])[:, None]
    reference = streams(model, site) + torch.from_numpy(randoms(6, 6, llama.width, seed=7))
    several = kinds(site, 6, llama.width, strength=0.5, positions="response")
    with intervene(model, several, response_BT=response, references={site: reference}) as running:
        whole = logits(model)
        other = running.on_rows(rows, response_BT=response[rows])
        running.select(rows)
        torch.testing.assert_close(logits(model, IDS[:3]), whole[rows], rtol=1e-5, atol=1e-5)
    other.expect(response_BT=response[rows], references={site: reference[rows]})
    with other:
        torch.testing.assert_close(logits(model, IDS[:3]), whole[rows], rtol=1e-5, atol=1e-5)


def test_several_sites_and_operations_are_felt_one_after_the_other(each_model: LoadedModel) -> None:
    """Together as block within block; at one site in the order given, which matters."""
    model, width = each_model.model, each_model.width
    first = [*kinds(Site(1, "resid_pre"), 6, width)[:4], kinds(Site(2, "resid_post"), 6, width)[1]]
    with intervene(model, first):
        together = logits(model)
    with intervene(model, first[:1]), intervene(model, first[1:3]), intervene(model, first[3:]):
        torch.testing.assert_close(logits(model), together, rtol=1e-4, atol=1e-4)
    add, ablate = first[:2]
    orders = []
    for order in ([add, ablate], [ablate, add]):
        with intervene(model, order):
            orders.append(streams(model, add.site))
    gone = torch.einsum("btd,bkd->btk", orders[0], torch.from_numpy(ablate.arrays["basis_BKD"]))
    torch.testing.assert_close(gone, torch.zeros_like(gone), rtol=0, atol=1e-4)
    assert not torch.allclose(*orders, atol=1e-2)


def test_in_the_middle_of_a_layer_the_stream_is_what_enters_it_changed(llama: LoadedModel) -> None:
    """What was added before attention is there to be taken out behind it."""
    enters, middle = Site(1, "resid_pre"), Site(1, "resid_mid")
    basis = randoms(6, 1, llama.width, seed=1)
    add = Add(enters, 5 * basis[:, 0])
    ablate = Ablate(middle, basis, np.ones(6, np.float32))
    with intervene(llama.model, [ablate, add]):
        found = streams(llama.model, middle)
    gone = torch.einsum("btd,bkd->btk", found, torch.from_numpy(basis))
    torch.testing.assert_close(gone, torch.zeros_like(gone), rtol=0, atol=1e-4)


def test_one_row_serves_every_row(llama: LoadedModel) -> None:
    for one in kinds(SIX, 1, llama.width)[:4]:
        with intervene(llama.model, [one.rows([0] * 6)]):
            wanted = logits(llama.model)
        with intervene(llama.model, [one]) as running:
            torch.testing.assert_close(logits(llama.model), wanted, rtol=1e-5, atol=1e-5)
            running.select(torch.tensor([3, 2]))
            torch.testing.assert_close(logits(llama.model, IDS[:2]), wanted[:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("point", POINTS)
def test_in_half_precision_what_is_ablated_is_gone_but_for_rounding(llama: LoadedModel, point: Any) -> None:
    model, site = llama.model.to(torch.bfloat16), Site(1, point)
    before = streams(model, site)
    ablate = Ablate(site, 100 * randoms(1, 2, llama.width), np.ones(1, np.float32))
    with intervene(model, [ablate]):
        during = streams(model, site)
    assert during.dtype == torch.bfloat16
    gone = during.float() @ torch.from_numpy(ablate.basis_BKD[0].T)
    assert gone.abs().max() < 0.02 * before.float().norm(dim=2).max()
    with intervene(model, [Ablate(site, randoms(1, 2, llama.width), np.zeros(1, np.float32))]):
        assert torch.equal(streams(model, site), before)


def test_interventions_that_do_nothing_hook_nothing(llama: LoadedModel) -> None:
    with intervene(llama.model, kinds(SIX, 6, llama.width, strength=0)):
        assert hooks_of(decoder_layers(llama.model)) == []


@pytest.mark.parametrize("kind", range(5), ids=["add", "ablate", "erase", "clamp", "replace"])
def test_nothing_is_changed_in_place_and_nothing_stays(llama: LoadedModel, kind: int) -> None:
    for point in ("resid_pre", "resid_post"):
        site = Site(1, point)
        every = [kinds(site, 3, 5)[kind], kinds(site, 3, 5)[0]]
        model: Any = Toy(as_tuple=point == "resid_pre", by_keyword=True)
        hidden = torch.randn(3, 4, 5)
        kept = hidden.clone()
        with pytest.raises(KeyboardInterrupt), intervene(model, every, references={site: torch.zeros(3, 4, 5)}):
            model(hidden)
            raise KeyboardInterrupt
        assert torch.equal(hidden, kept)
        assert hooks_of(model.layers) == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Add(SIX, randoms(3)), "delta_BD must hold numbers of 2 dimensions"),
        (lambda: Add(SIX, np.full((1, 3), np.nan)), "delta_BD must hold numbers"),
        (lambda: Add(SIX, np.full((1, 3), np.inf)), "delta_BD must hold finite numbers"),
        (lambda: Add(SIX, randoms(1, 3), positions="last"), "positions are all, prompt or response, not 'last'"),
        (lambda: Ablate(SIX, randoms(2, 1, 3), np.ones(3)), "do not fit each other"),
        (
            lambda: Erase(SIX, randoms(1, 3, 2), randoms(1, 1, 3), randoms(1, 3), np.ones(1)),
            "two sides of an eraser must be of one rank",
        ),
        (
            lambda: Erase(SIX, randoms(1, 3, 2), randoms(1, 2, 4), randoms(1, 3), np.ones(1)),
            "do not fit each other",
        ),
        (lambda: Clamp(SIX, randoms(1, 3), np.ones(1), np.zeros(1), np.ones(1)), "low <= high"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_directions_of_another_model_are_refused(llama: LoadedModel) -> None:
    with pytest.raises(ModelError, match="has 47 coordinates, the model's stream 48"):
        intervene(llama.model, [Add(SIX, randoms(6, 47))])
