"""Forced answers, run from the site's layer on, are as likely as in whole passes: every operation, every position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hooks import hooks_of
from unmask.errors import ModelError
from unmask.models.forcing import Forcing, start_layer
from unmask.models.intervening import intervene
from unmask.models.interventions import Ablate, Add, Erase, Intervention, Positions, Replace
from unmask.models.loading import LoadedModel
from unmask.models.recording import observe
from unmask.records import Site

SITE = Site(2, "resid_pre")
PROMPTS = [(5, 6, 7, 8, 9), (11, 12, 13), (20, 21, 22, 23, 24, 25, 26)]
ANSWERS = [((30, 31, 32), (40, 41)), ((33, 34, 35, 36, 37), (42,)), ((38,), (43, 44, 45, 46))]
ROWS = [(0, 0), (2, 1), (1, 2), (0, 2), (1, 0), (2, 2)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def added(width: int, positions: Positions = "response", site: Site = SITE) -> Add:
    """Three rows; the first adds nothing."""
    delta_VD = rng().standard_normal((3, width)).astype(np.float32)
    delta_VD[0] = 0
    return Add(site, delta_VD, positions=positions)


def operations(width: int, positions: Positions) -> list[Intervention]:
    draw, strength_V = rng(), np.array([0.0, 0.5, 1.0])
    basis_VKD = draw.standard_normal((3, 1, width))
    left_VDK, right_VKD = draw.standard_normal((3, width, 2)) / width, draw.standard_normal((3, 2, width))
    return [
        added(width, positions),
        Ablate(SITE, basis_VKD, strength_V, positions=positions),
        Erase(SITE, left_VDK, right_VKD, draw.standard_normal((3, width)), strength_V, positions=positions),
        Replace(SITE, basis_VKD, strength_V, positions=positions),
    ]


@torch.inference_mode()
def whole(
    loaded: LoadedModel, n: int, intervention: Intervention, v: int, *, other: LoadedModel | None = None
) -> list[float]:
    """The slow way: prompt and answer in one pass under hooks."""
    found = []
    for answer in ANSWERS[n]:
        ids_1T = torch.tensor([[*PROMPTS[n], *answer]])
        first = len(PROMPTS[n]) - 1
        response_1T = (torch.arange(ids_1T.shape[1]) >= first)[None]
        references = None
        if other is not None:
            kept: list[torch.Tensor] = []
            with observe(other.model, [SITE], lambda _, stream, kept=kept: kept.append(stream.clone())):
                other.model(ids_1T)
            references = {SITE: kept[0]}
        rows = intervention.rows([v])
        with intervene(loaded.model, [rows], response_BT=response_1T, references=references):
            logits_TV = loaded.model(ids_1T).logits[0].float()
        log_TV = logits_TV.log_softmax(dim=-1)
        found.append(float(np.mean([float(log_TV[first + t, token]) for t, token in enumerate(answer)])))
    return found


def forced(
    loaded: LoadedModel, intervention: Intervention, rows: Sequence[tuple[int, int]] = ROWS, **options
) -> np.ndarray:
    with Forcing(loaded, intervention.site, PROMPTS, ANSWERS, token_budget=options.pop("budget", 32)) as forcing:
        return forcing.under(intervention, rows, **options)


@pytest.mark.parametrize("positions", ["response", "all", "prompt"])
def test_forced_answers_are_as_likely_as_in_whole_passes(each_model: LoadedModel, positions: Positions) -> None:
    intervention = added(each_model.width, positions)
    expected = [whole(each_model, n, intervention, v) for n, v in ROWS]
    np.testing.assert_allclose(forced(each_model, intervention), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["response", "all", "prompt"])
def test_every_operation_agrees_with_whole_passes(llama: LoadedModel, tiny_models, fresh, positions: Positions) -> None:
    other = fresh(tiny_models("llama"))
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(1.1)
    for intervention in operations(llama.width, positions):
        replaces = isinstance(intervention, Replace)
        expected = [whole(llama, n, intervention, v, other=other if replaces else None) for n, v in ROWS]
        with Forcing(other, SITE, PROMPTS, ANSWERS) as reference:
            found = forced(llama, intervention, reference=reference if replaces else None)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=type(intervention).__name__)


def test_what_leaves_a_layer_is_what_enters_the_next(llama: LoadedModel) -> None:
    one = forced(llama, added(llama.width))
    other = forced(llama, added(llama.width, site=Site(1, "resid_post")))
    np.testing.assert_array_equal(one, other)


def test_nothing_added_is_the_plain_model(llama: LoadedModel) -> None:
    with Forcing(llama, SITE, PROMPTS, ANSWERS) as forcing:
        under = forcing.under(added(llama.width), [(n, 0) for n in range(3)])
        np.testing.assert_allclose(under, forcing.plain_NA, atol=1e-6)


def test_company_and_order_change_nothing_but_rounding(llama: LoadedModel) -> None:
    intervention = added(llama.width)
    together = forced(llama, intervention, budget=4096)
    apart = np.concatenate([forced(llama, intervention, [row], budget=1) for row in ROWS])
    np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5)
    backwards = forced(llama, intervention, ROWS[::-1], budget=4096)
    np.testing.assert_allclose(backwards, together[::-1], rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was(llama: LoadedModel) -> None:
    ids = torch.tensor([PROMPTS[2]])
    with torch.inference_mode():
        before = llama.model(ids).logits
        with pytest.raises(KeyboardInterrupt), Forcing(llama, SITE, PROMPTS, ANSWERS) as forcing:
            forcing.under(added(llama.width), ROWS)
            raise KeyboardInterrupt
        assert torch.equal(llama.model(ids).logits, before)
    modules = list(llama.model.modules())
    assert hooks_of(modules) == []
    assert not any("forward" in module.__dict__ for module in modules)


@pytest.mark.parametrize("site", [Site(3, "resid_post"), Site(1, "resid_mid"), Site(None, "embed"), Site(1, "mlp_out")])
def test_a_site_that_enters_no_layer_is_refused(llama: LoadedModel, site: Site) -> None:
    with pytest.raises(ModelError, match=r"not the stream that enters a layer.*hook_resid_pre"):
        start_layer(site, num_layers=llama.num_layers)
