"""Reading: a padded batch gives each response what transformers gives it alone, at every site, and its log-probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.models import reading
from unmask.models.loading import LoadedModel
from unmask.models.reading import Text, plan_batches, read_texts
from unmask.models.sites import decoder_layers
from unmask.records import Site

POINTS = ("resid_pre", "resid_post")


def random_texts(lengths: Sequence[tuple[int, int]], *, vocabulary: int, seed: int = 0) -> list[Text]:
    generator = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(token) for token in generator.integers(3, vocabulary, count))

    return [Text(ids(prompt), ids(response)) for prompt, response in lengths]


@torch.inference_mode()
def read_alone(loaded: LoadedModel, text: Text) -> tuple[dict[Site, torch.Tensor], float]:
    """What transformers says of one unpadded text: the stream (T x D) at every site, and the response's log-probability."""
    last: dict[str, Any] = {}
    layers = decoder_layers(loaded.model)
    handle = layers[-1].register_forward_hook(lambda module, args, out: last.update(out=out))
    ids = torch.tensor([text.prompt_ids + text.response_ids])
    output = loaded.model(input_ids=ids, output_hidden_states=True)
    handle.remove()
    states = [state[0] for state in output.hidden_states]
    stream = {Site(layer, "resid_pre"): states[layer] for layer in range(len(layers))}
    stream |= {Site(layer, "resid_post"): states[layer + 1] for layer in range(len(layers) - 1)}
    out = last["out"]  # transformers' last hidden state is normed, the stream is not
    stream[Site(len(layers) - 1, "resid_post")] = (out[0] if isinstance(out, tuple) else out)[0]
    log_probs = output.logits[0].double().log_softmax(dim=-1)
    start = len(text.prompt_ids)
    picked = [float(log_probs[start + step - 1, token]) for step, token in enumerate(text.response_ids)]
    return stream, float(np.mean(picked))


def assert_like_transformers(loaded: LoadedModel, texts: list[Text], sites: list[Site]) -> None:
    found = read_texts(loaded, texts, sites)
    assert set(found.means_BD) == set(found.norms_B) == set(sites)
    for row, text in enumerate(texts):
        stream, log_prob = read_alone(loaded, text)
        assert found.log_prob_B[row] == pytest.approx(log_prob, rel=1e-4)
        for site in sites:
            answer = stream[site][len(text.prompt_ids) :]
            wanted = answer.mean(dim=0).numpy()
            error = np.linalg.norm(found.means_BD[site][row] - wanted) / np.linalg.norm(wanted)
            assert error < 1e-4, (site.name, row, error)
            assert found.norms_B[site][row] == pytest.approx(answer.norm(dim=-1).mean().item(), rel=1e-4)


def test_a_padded_batch_is_read_as_transformers_reads_each_text_alone(each_model: LoadedModel) -> None:
    # Longer than the sliding windows of 8, and so unequal that most of some rows is padding.
    texts = random_texts([(7, 21), (1, 1), (12, 3), (3, 30), (20, 9)], vocabulary=2048)
    sites = [Site(layer, point) for layer in range(each_model.num_layers) for point in POINTS]
    assert_like_transformers(each_model, texts, sites)


@pytest.mark.slow
def test_smollm2_is_read_as_transformers_reads_it(smollm2_model: LoadedModel) -> None:
    texts = random_texts([(9, 20), (4, 5), (30, 40)], vocabulary=49152)
    assert_like_transformers(
        smollm2_model, texts, [Site(layer, point) for layer in (10, 15, 20, 25) for point in POINTS]
    )


@pytest.mark.slow
def test_smollm2_finds_an_english_answer_likelier_than_its_shuffled_words(smollm2_model: LoadedModel) -> None:
    encode = smollm2_model.tokenizer
    prompt = tuple(encode("Where does the sun rise?\n")["input_ids"])
    answers = ["The sun rises in the east and sets in the west.", "west the and in sets rises The the sun in east."]
    texts = [Text(prompt, tuple(encode(answer)["input_ids"])) for answer in answers]
    log_prob = read_texts(smollm2_model, texts, [Site(10, "resid_pre")]).log_prob_B
    assert log_prob[0] > log_prob[1] + 1


def test_an_empty_response_is_missing_and_harms_no_other(llama: LoadedModel) -> None:
    texts = random_texts([(5, 8), (6, 0), (3, 4)], vocabulary=2048)
    sites = [Site(1, "resid_pre"), Site(3, "resid_post")]
    found = read_texts(llama, texts, sites)
    assert np.isnan(found.log_prob_B).tolist() == [False, True, False]
    for site in sites:
        assert np.isnan(found.means_BD[site]).all(axis=1).tolist() == [False, True, False]
        assert np.isnan(found.norms_B[site]).tolist() == [False, True, False]
        assert np.isfinite(found.means_BD[site][[0, 2]]).all()
    assert_like_transformers(llama, [texts[0], texts[2]], sites)


def test_a_batch_of_empty_responses_is_missing_throughout(llama: LoadedModel) -> None:
    site = Site(1, "resid_pre")
    found = read_texts(llama, random_texts([(5, 0), (3, 0)], vocabulary=2048), [site])
    assert np.isnan(found.log_prob_B).all() and np.isnan(found.means_BD[site]).all()


def test_types_and_shapes(llama: LoadedModel) -> None:
    site = Site(0, "resid_post")
    found = read_texts(llama, random_texts([(5, 4), (3, 2), (2, 2)], vocabulary=2048), [site])
    assert found.means_BD[site].shape == (3, llama.width) and found.means_BD[site].dtype == np.float32
    assert found.norms_B[site].shape == (3,) and found.norms_B[site].dtype == np.float32
    assert found.log_prob_B.shape == (3,) and found.log_prob_B.dtype == np.float64


def test_an_answers_log_probability_is_the_mean_over_its_tokens(llama: LoadedModel) -> None:
    text = random_texts([(5, 6)], vocabulary=2048)[0]
    steps = [Text(text.prompt_ids + text.response_ids[:step], (text.response_ids[step],)) for step in range(6)]
    whole = read_texts(llama, [text], []).log_prob_B[0]
    assert whole == pytest.approx(read_texts(llama, steps, []).log_prob_B.mean(), rel=1e-5)


def test_more_positions_than_fit_at_once_give_the_same(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts([(5, 9), (3, 14), (2, 6)], vocabulary=2048)
    whole = read_texts(llama, texts, []).log_prob_B
    monkeypatch.setattr(reading, "_LOGIT_ROWS", 4)
    np.testing.assert_allclose(read_texts(llama, texts, []).log_prob_B, whole, rtol=1e-6)


def test_reading_leaves_the_model_alone(each_model: LoadedModel) -> None:
    texts = random_texts([(5, 9), (3, 4)], vocabulary=2048)
    ids = torch.tensor([texts[0].prompt_ids])
    weights = {name: tensor.clone() for name, tensor in each_model.model.state_dict().items()}
    with torch.inference_mode():
        before = each_model.model(ids).logits
    first = read_texts(each_model, texts, [Site(2, "resid_pre")])
    again = read_texts(each_model, texts, [Site(2, "resid_pre")])
    with torch.inference_mode():
        assert torch.equal(each_model.model(ids).logits, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in each_model.model.state_dict().items())
    np.testing.assert_array_equal(first.means_BD[Site(2, "resid_pre")], again.means_BD[Site(2, "resid_pre")])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in decoder_layers(each_model.model))


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 200))
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, token_budget=budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths)


def test_a_text_knows_its_length() -> None:
    assert Text((1, 2, 3), (4,)).length == 4
