"""Reading: a padded batch gives each response what transformers gives it alone, at every site, and its log-probability."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from hooks import hooks_of
from unmask.models import passes, reading
from unmask.models.answering import can_read_while_answering
from unmask.models.loading import LoadedModel
from unmask.models.outlying import find_sinks
from unmask.models.pooling import Reading
from unmask.models.reading import Readout, Text, read_texts, read_with_each, worth_sharing
from unmask.models.recording import observe
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
    found = read_texts(loaded, texts, Readout(tuple(sites)))
    assert set(found.sites) == set(sites)
    for row, text in enumerate(texts):
        stream, log_prob = read_alone(loaded, text)
        assert found.log_prob_N[row] == pytest.approx(log_prob, rel=1e-4)
        for site in sites:
            answer = stream[site][len(text.prompt_ids) :]
            wanted = answer.mean(dim=0).numpy()
            error = np.linalg.norm(found.mean(site)[row] - wanted) / np.linalg.norm(wanted)
            assert error < 1e-4, (site.name, row, error)
            assert found.norms(site)[row] == pytest.approx(answer.norm(dim=-1).mean().item(), rel=1e-4)


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
    log_prob = read_texts(smollm2_model, texts, Readout((Site(10, "resid_pre"),))).log_prob_N
    assert log_prob[0] > log_prob[1] + 1


def test_an_empty_response_is_missing_and_harms_no_other(llama: LoadedModel) -> None:
    texts = random_texts([(5, 8), (6, 0), (3, 4)], vocabulary=2048)
    sites = [Site(1, "resid_pre"), Site(3, "resid_post")]
    found = read_texts(llama, texts, Readout(tuple(sites)))
    assert np.isnan(found.log_prob_N).tolist() == [False, True, False]
    for site in sites:
        assert np.isnan(found.mean(site)).all(axis=1).tolist() == [False, True, False]
        assert np.isnan(found.norms(site)).tolist() == [False, True, False]
        assert np.isfinite(found.mean(site)[[0, 2]]).all()
    assert_like_transformers(llama, [texts[0], texts[2]], sites)


def test_a_batch_of_empty_responses_is_missing_throughout(llama: LoadedModel) -> None:
    site = Site(1, "resid_pre")
    found = read_texts(llama, random_texts([(5, 0), (3, 0)], vocabulary=2048), Readout((site,)))
    assert np.isnan(found.log_prob_N).all() and np.isnan(found.mean(site)).all()


def test_types_and_shapes(llama: LoadedModel) -> None:
    site = Site(0, "resid_post")
    found = read_texts(llama, random_texts([(5, 4), (3, 2), (2, 2)], vocabulary=2048), Readout((site,)))
    assert found.mean(site).shape == (3, llama.width) and found.mean(site).dtype == np.float32
    assert found.norms(site).shape == (3,) and found.norms(site).dtype == np.float32
    assert found.log_prob_N.shape == (3,) and found.log_prob_N.dtype == np.float64


def test_an_answers_log_probability_is_the_mean_over_its_tokens(llama: LoadedModel) -> None:
    text = random_texts([(5, 6)], vocabulary=2048)[0]
    steps = [Text(text.prompt_ids + text.response_ids[:step], (text.response_ids[step],)) for step in range(6)]
    whole = read_texts(llama, [text], Readout(())).log_prob_N[0]
    assert whole == pytest.approx(read_texts(llama, steps, Readout(())).log_prob_N.mean(), rel=1e-5)


def test_more_positions_than_fit_at_once_give_the_same(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = random_texts([(5, 9), (3, 14), (2, 6)], vocabulary=2048)
    whole = read_texts(llama, texts, Readout(())).log_prob_N
    monkeypatch.setattr(passes, "LOGITS", 4 * 2048)
    np.testing.assert_allclose(read_texts(llama, texts, Readout(())).log_prob_N, whole, rtol=1e-6)


def test_reading_leaves_the_model_alone(each_model: LoadedModel) -> None:
    texts = random_texts([(5, 9), (3, 4)], vocabulary=2048)
    ids = torch.tensor([texts[0].prompt_ids])
    weights = {name: tensor.clone() for name, tensor in each_model.model.state_dict().items()}
    with torch.inference_mode():
        before = each_model.model(ids).logits
    first = read_texts(each_model, texts, Readout((Site(2, "resid_pre"),)))
    again = read_texts(each_model, texts, Readout((Site(2, "resid_pre"),)))
    with torch.inference_mode():
        assert torch.equal(each_model.model(ids).logits, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in each_model.model.state_dict().items())
    np.testing.assert_array_equal(first.mean(Site(2, "resid_pre")), again.mean(Site(2, "resid_pre")))
    assert hooks_of(decoder_layers(each_model.model)) == []


SITES = (Site(1, "resid_pre"), Site(2, "resid_post"), Site(2, "attn_out"))


def shared_texts(*, prompts: int = 4, each: int = 3) -> list[Text]:
    """Prompts of unequal lengths with several responses, in no order."""
    rng = np.random.default_rng(4)
    texts = []
    for _ in range(prompts):
        prompt = tuple(int(token) for token in rng.integers(3, 2048, rng.integers(1, 25)))
        texts += [
            Text(prompt, tuple(int(token) for token in rng.integers(3, 2048, rng.integers(0, 20)))) for _ in range(each)
        ]
    return [texts[place] for place in rng.permutation(len(texts))]


def assert_same(one: Reading, other: Reading, *, rtol: float = 1e-4) -> None:
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_allclose(one.log_prob_N, other.log_prob_N, rtol=rtol, atol=1e-6)
    for site, seen in one.sites.items():
        for name, mean_NW in seen.means_NW.items():
            np.testing.assert_allclose(mean_NW, other.sites[site].means_NW[name], rtol=rtol, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(seen.token_norms_M, other.sites[site].token_norms_M, rtol=rtol)


EVERYTHING = Readout(SITES, ("response_mean", "prompt_last", "response_last", "response_first_4"), tokens=SITES[:1])


def test_sharing_prompts_changes_nothing(each_model: LoadedModel) -> None:
    texts = shared_texts()
    sites = (Site(1, "resid_pre"), Site(2, "resid_post"))
    readout = Readout(sites, EVERYTHING.aggregations, tokens=sites[:1])
    apart = read_texts(each_model, texts, readout, share_prompts=False)
    assert_same(read_texts(each_model, texts, readout, token_budget=60), apart)


def test_prompts_are_shared_where_it_pays(llama: LoadedModel) -> None:
    texts = shared_texts()
    prompts = list(dict.fromkeys(text.prompt_ids for text in texts))
    assert worth_sharing(llama, texts, prompts, EVERYTHING)
    alone = random_texts([(9, 5), (4, 8)], vocabulary=2048)
    assert not worth_sharing(llama, alone, [text.prompt_ids for text in alone], EVERYTHING)
    assert not worth_sharing(llama, texts, prompts, Readout((Site(0, "resid_pre"),), log_probs=False))
    assert not worth_sharing(llama, texts, prompts, Readout((Site(1, "pattern"),)))


def test_a_past_that_is_more_than_keys_and_values_is_not_shared(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = shared_texts()
    wanted = read_texts(llama, texts, EVERYTHING)
    monkeypatch.setattr(llama.model.config, "layer_types", ["full_attention", "linear_attention"] * 2, raising=False)
    prompts = list(dict.fromkeys(text.prompt_ids for text in texts))
    assert not worth_sharing(llama, texts, prompts, EVERYTHING)
    assert not can_read_while_answering(EVERYTHING, llama.model.config)
    monkeypatch.setattr(reading, "run_prompts", None)
    assert_same(read_texts(llama, texts, EVERYTHING), wanted)


def test_a_pass_without_logits_ends_at_the_deepest_site(llama: LoadedModel) -> None:
    ran: list[int] = []
    for number, layer in enumerate(decoder_layers(llama.model)):
        layer.register_forward_hook(lambda module, args, out, number=number: ran.append(number))
    texts = random_texts([(5, 6)], vocabulary=2048)
    bare = read_texts(llama, texts, Readout((Site(0, "resid_pre"), Site(2, "resid_pre")), log_probs=False))
    assert ran == [0, 1]
    assert np.isnan(bare.log_prob_N).all()
    full = read_texts(llama, texts, Readout((Site(0, "resid_pre"), Site(2, "resid_pre"))))
    np.testing.assert_array_equal(full.mean(Site(2, "resid_pre")), bare.mean(Site(2, "resid_pre")))
    assert ran[2:] == [0, 1, 2, 3]


@pytest.mark.parametrize("share", [True, False])
def test_out_of_memory_halves_the_batch_and_goes_on(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    """A device that holds three rows: every larger pass fails as torch's does, some of it done already."""
    texts = shared_texts()
    wanted = read_texts(llama, texts, EVERYTHING, share_prompts=share)
    failed = 0

    def refuse(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal failed
        if len(args[0] if args else kwargs["hidden_states"]) > 3:
            failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    decoder_layers(llama.model)[3].register_forward_pre_hook(refuse, with_kwargs=True)
    assert_same(read_texts(llama, texts, EVERYTHING, share_prompts=share), wanted)
    assert failed


def test_a_single_text_that_does_not_fit_raises(llama: LoadedModel) -> None:
    def refuse(module: torch.nn.Module, args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    decoder_layers(llama.model)[0].register_forward_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        read_texts(llama, shared_texts(), EVERYTHING)


def test_other_errors_are_not_taken_for_memory(llama: LoadedModel) -> None:
    def refuse(module: torch.nn.Module, args: Any) -> None:
        raise RuntimeError("shapes differ")

    decoder_layers(llama.model)[0].register_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="shapes differ"):
        read_texts(llama, shared_texts(), EVERYTHING)


def test_special_tokens_inside_a_response_do_not_count_but_are_read(llama: LoadedModel) -> None:
    special = llama.tokenizer.all_special_ids[0]
    text = Text((5, 6, 7), (8, special, 9))
    found = read_texts(llama, [text], EVERYTHING)
    stream, log_prob = read_alone(llama, text)
    site = Site(1, "resid_pre")
    wanted = stream[site][[3, 5]]
    np.testing.assert_allclose(found.mean(site)[0], wanted.mean(dim=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.sites[site].tokens_MW, wanted, rtol=1e-4, atol=1e-5)
    assert found.log_prob_N[0] == pytest.approx(log_prob, rel=1e-4)


@pytest.mark.parametrize("share", [True, False])
def test_every_reader_leaves_out_the_same_tokens(share: bool, llama: LoadedModel, fresh: Any, tiny_llama: Any) -> None:
    """What the first reader takes for sinks leaves both means, so that a shift is over identical tokens."""
    other = fresh(tiny_llama)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    site, ratio = Site(3, "resid_post"), 1.2
    special = llama.tokenizer.all_special_ids[0]
    texts = shared_texts(each=4 if share else 1)
    texts += [Text(texts[0].prompt_ids, (special, *range(40, 60)))]
    models = {"base": llama, "organism": other}
    tokens = {name: read_texts(loaded, texts, Readout((site,), tokens=(site,))) for name, loaded in models.items()}
    found = read_with_each(models, texts, Readout((site,), sink_ratio=ratio))
    offsets = tokens["base"].offsets
    left_out = {
        name: find_sinks(seen.sites[site].token_norms_M, offsets, ratio=ratio).found_M for name, seen in tokens.items()
    }
    assert (left_out["base"] != left_out["organism"]).any() and left_out["base"].any()
    for name, seen in tokens.items():
        hidden = seen.sites[site].tokens_MW
        assert hidden is not None
        for row, (start, stop) in enumerate(pairwise(offsets)):
            kept = hidden[start:stop][~left_out["base"][start:stop]]
            wanted = kept.mean(axis=0) if len(kept) else np.full(llama.width, np.nan)
            np.testing.assert_allclose(found[name].mean(site)[row], wanted, rtol=1e-3, atol=1e-4)


def test_a_users_mask_is_a_mean_over_its_tokens(llama: LoadedModel) -> None:
    text = Text((5, 6, 7), (8, 9, 10, 11), mask=(False, True, False, True))
    site = Site(1, "resid_pre")
    found = read_texts(llama, [text, Text((5, 6, 7), (8, 9), mask=(False, False))], Readout((site,), ("mask",)))
    stream, _ = read_alone(llama, text)
    means = found.sites[site].means_NW["mask"]
    np.testing.assert_allclose(means[0], stream[site][[4, 6]].mean(dim=0), rtol=1e-4, atol=1e-5)
    assert np.isnan(means[1]).all()


def test_patterns_say_where_a_response_looks(each_model: LoadedModel) -> None:
    """Per head: the shares on the text's first token, the rest of the prompt, the response; they sum to 1."""
    texts = random_texts([(7, 5), (3, 9)], vocabulary=2048)
    site = Site(1, "pattern")
    found = read_texts(each_model, texts, Readout((site,))).mean(site)
    shares = found.reshape(2, -1, 3)
    np.testing.assert_allclose(shares.sum(axis=2), 1, rtol=1e-4)
    seen: list[torch.Tensor] = []
    with torch.inference_mode(), observe(each_model.model, [site], lambda _, pattern: seen.append(pattern[0])):
        each_model.model(torch.tensor([texts[0].prompt_ids + texts[0].response_ids]))
    rows_HQK = seen[0][:, 7:].float()
    np.testing.assert_allclose(shares[0, :, 0], rows_HQK[:, :, 0].mean(dim=1), atol=1e-5)
    np.testing.assert_allclose(shares[0, :, 2], rows_HQK[:, :, 7:].sum(dim=2).mean(dim=1), atol=1e-5)


def test_a_text_knows_its_length() -> None:
    assert Text((1, 2, 3), (4,)).length == 4
