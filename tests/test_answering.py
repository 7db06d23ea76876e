"""Reading while answering agrees with one teacher-forced pass over the same answers, by both models, whatever is wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask.models.answering import answer, answer_and_read, can_read_while_answering
from unmask.models.generation import generate
from unmask.models.loading import LoadedModel, load_base
from unmask.models.organisms import load_readers
from unmask.models.passes import Readout, Text
from unmask.models.reading import read_texts
from unmask.models.sites import decoder_layers
from unmask.records import READERS, WRITERS, ModelSource, Sampling, Site, Writer

SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=12)
SITES = (Site(1, "resid_pre"), Site(2, "resid_post"), Site(2, "attn_out"), Site(3, "mlp_out"))
WANTED = Readout(
    sites=SITES, aggregations=("response_mean", "prompt_last", "response_last", "response_first_4"), tokens=(SITES[1],)
)


def jobs() -> tuple[list[tuple[int, ...]], list[int]]:
    """Six prompts of unequal lengths, on both sides of windows of 8, three answered twice."""
    rng = np.random.default_rng(0)
    prompts = [tuple(int(token) for token in rng.integers(3, 2048, length)) for length in (3, 17, 8, 1, 12, 25)]
    return [*prompts, *prompts[:3]], list(range(9))


def ending_early(loaded: LoadedModel) -> LoadedModel:
    """One token in sixteen ends an answer."""
    loaded.model.generation_config.eos_token_id = [2, *range(3, 2048, 16)]
    return loaded


def assert_agrees(models: dict[Writer, LoadedModel]) -> None:
    prompts, seeds = jobs()
    found = answer_and_read(models, prompts, seeds=seeds, sampling=SAMPLING, readout=WANTED)
    for writer in WRITERS:
        answers = found[writer].answers
        texts = [Text(prompt, answer.token_ids) for prompt, answer in zip(prompts, answers, strict=True)]
        lengths = [len(text.response_ids) for text in texts]
        assert min(lengths) < max(lengths) == SAMPLING.max_new_tokens
        for reader in READERS:
            wanted = read_texts(models[reader], texts, WANTED, share_prompts=False)
            reading = found[writer].readings[reader]
            np.testing.assert_array_equal(reading.offsets, wanted.offsets)
            np.testing.assert_allclose(reading.log_prob_N, wanted.log_prob_N, rtol=1e-3, atol=1e-5)
            for site in SITES:
                one, other = reading.sites[site], wanted.sites[site]
                for name in WANTED.aggregations:
                    assert_close(one.means_NW[name], other.means_NW[name])
                np.testing.assert_allclose(one.norms_N, other.norms_N, rtol=1e-3)
                np.testing.assert_allclose(one.token_norms_M, other.token_norms_M, rtol=1e-3)
            kept = reading.sites[SITES[1]].tokens_MW
            assert kept is not None
            assert_close(kept, wanted.sites[SITES[1]].tokens_MW)


def assert_close(found: np.ndarray, wanted: np.ndarray | None) -> None:
    """Row by row to 1e-3 relative, in float32; missing where the other is."""
    assert wanted is not None and found.shape == wanted.shape
    missing = np.isnan(wanted).any(axis=1)
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), missing)
    error = np.linalg.norm((found - wanted)[~missing], axis=1) / np.linalg.norm(wanted[~missing], axis=1)
    assert (error < 1e-3).all(), error.max()


def test_both_routes_agree(architecture: Path, fresh: Callable[[Path], LoadedModel]) -> None:
    models: dict[Writer, LoadedModel] = {writer: ending_early(fresh(architecture)) for writer in WRITERS}
    _perturb(models["organism"])
    assert_agrees(models)


def _perturb(loaded: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def test_two_readers_on_one_copy_of_the_weights(tiny_llama: Path, tiny_adapter: Path) -> None:
    base, organism = load_readers(ModelSource(str(tiny_llama)), ModelSource(str(tiny_adapter)), one_copy=True)
    assert base.model is organism.model
    assert_agrees({"base": ending_early(base), "organism": organism})


def test_one_copy_reads_as_two_do(tiny_llama: Path, tiny_adapter: Path) -> None:
    source, adapter = ModelSource(str(tiny_llama)), ModelSource(str(tiny_adapter))
    prompts, _ = jobs()
    texts = [Text(prompt, (5, 6, 7, 8)) for prompt in prompts]
    plain = read_texts(load_base(source), texts, WANTED)
    pairs = [load_readers(source, adapter, one_copy=one_copy) for one_copy in (True, False)]
    assert pairs[1][0].model is not pairs[1][1].model
    shared, apart = ([read_texts(loaded, texts, WANTED) for loaded in pair] for pair in pairs)
    np.testing.assert_array_equal(shared[0].mean(SITES[1]), plain.mean(SITES[1]))
    for site in SITES:
        np.testing.assert_allclose(shared[1].mean(site), apart[1].mean(site), rtol=1e-3, atol=1e-4)
    assert np.abs(shared[1].mean(SITES[1]) - shared[0].mean(SITES[1])).max() > 1e-2


def test_answers_are_those_of_answering_alone(llama: LoadedModel) -> None:
    ending_early(llama)
    prompts, seeds = jobs()
    found = answer_and_read({"base": llama, "organism": llama}, prompts, seeds=seeds, sampling=SAMPLING, readout=WANTED)
    assert found["base"].answers == generate(llama, prompts, sampling=SAMPLING, seeds=seeds)
    assert found["base"].answers == found["organism"].answers


def test_rows_that_memory_does_not_hold_are_halved_and_no_answer_or_reading_changes(llama: LoadedModel) -> None:
    """A device that holds three rows of one token: a model begins again with fewer, and nothing is counted twice."""
    ending_early(llama)
    prompts, seeds = jobs()
    models: dict[Writer, LoadedModel] = {"base": llama, "organism": llama}
    wanted = answer_and_read(models, prompts, seeds=seeds, sampling=SAMPLING, readout=WANTED)
    most = 0

    def refuse(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal most
        rows, tokens = (args[0] if args else kwargs["hidden_states"]).shape[:2]
        if tokens == 1 and rows > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")
        most = max(most, rows if tokens == 1 else 0)

    handle = decoder_layers(llama.model)[3].register_forward_pre_hook(refuse, with_kwargs=True)
    found = answer_and_read(models, prompts, seeds=seeds, sampling=SAMPLING, readout=WANTED, rows=8)
    assert answer(llama, prompts, seeds=seeds, sampling=SAMPLING, rows=8) == wanted["base"].answers
    handle.remove()
    assert most == 2
    for writer in WRITERS:
        assert found[writer].answers == wanted[writer].answers
        for reader in READERS:
            one, other = found[writer].readings[reader], wanted[writer].readings[reader]
            np.testing.assert_allclose(one.log_prob_N, other.log_prob_N, rtol=1e-4)
            for site in SITES:
                for name in WANTED.aggregations:
                    assert_close(one.sites[site].means_NW[name], other.sites[site].means_NW[name])


def test_one_row_that_memory_does_not_hold_raises(llama: LoadedModel) -> None:
    def refuse(module: torch.nn.Module, args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    decoder_layers(llama.model)[0].register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        answer(llama, [(5, 6)] * 4, seeds=range(4), sampling=SAMPLING, rows=4)


def test_all_answers_may_be_empty(llama: LoadedModel) -> None:
    llama.model.generation_config.eos_token_id = list(range(2048))
    prompts, seeds = jobs()
    found = answer_and_read({"base": llama, "organism": llama}, prompts, seeds=seeds, sampling=SAMPLING, readout=WANTED)
    for reader in READERS:
        reading = found["base"].readings[reader]
        assert np.isnan(reading.mean(SITES[0])).all() and np.isnan(reading.log_prob_N).all()
        assert np.isfinite(reading.sites[SITES[0]].means_NW["prompt_last"]).all()


@pytest.mark.parametrize(
    "readout",
    [
        Readout(sites=(Site(1, "pattern"),)),
        Readout(sites=SITES, aggregations=("mask",)),
        Readout(sites=SITES, sink_ratio=10.0),
    ],
)
def test_what_needs_whole_answers_is_refused(readout: Readout, llama: LoadedModel) -> None:
    assert not can_read_while_answering(readout, llama.model.config)
    with pytest.raises(ValueError, match="whole answers"):
        answer_and_read({"base": llama, "organism": llama}, [(5,)], seeds=[0], sampling=SAMPLING, readout=readout)
