"""Generation: greedy is transformers' greedy, sampling has transformers' distribution, and company changes no answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask.models.generation import Generated, Steering, generate, pick_tokens
from unmask.models.loading import LoadedModel, load_base
from unmask.models.prompts import render_question
from unmask.models.sites import decoder_layers
from unmask.records import ModelSource, PromptFormat, Sampling, Site

LENGTHS = (3, 17, 8, 1, 12, 25)
"""Of prompts: unequal, and on both sides of the sliding windows of 8."""


def random_prompts(lengths: Sequence[int] = LENGTHS, *, seed: int = 0, vocabulary: int = 2048) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(3, vocabulary, length).tolist() for length in lengths]


def greedy(max_new_tokens: int) -> Sampling:
    return Sampling(temperature=0, top_p=1, top_k=0, max_new_tokens=max_new_tokens)


def sampled(max_new_tokens: int) -> Sampling:
    return Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=max_new_tokens)


@torch.inference_mode()
def transformers_greedy(loaded: LoadedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model: Any = loaded.model
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=0
    )
    return [row[longest:].tolist() for row in out]


def assert_like_transformers(loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> None:
    found = generate(loaded, prompts, sampling=greedy(max_new_tokens), seeds=range(len(prompts)))
    setting = loaded.model.generation_config.eos_token_id
    ends = {setting} if isinstance(setting, int) else set(setting)
    for answer, ids in zip(found, transformers_greedy(loaded, prompts, max_new_tokens), strict=True):
        end = next((index for index, token in enumerate(ids) if token in ends), None)
        assert list(answer.token_ids) == ids[:end]
        assert answer.stop_reason == ("length" if end is None else "end")


def test_greedy_is_the_greedy_of_transformers(each_model: LoadedModel) -> None:
    assert_like_transformers(each_model, random_prompts(), max_new_tokens=14)


def with_many_ends(loaded: LoadedModel, every: int) -> LoadedModel:
    """The same model with one token in `every` ending an answer, so that rows of a batch end at different steps."""
    loaded.model.generation_config.eos_token_id = [2, *range(3, 2048, every)]
    return loaded


def test_greedy_rows_that_end_early_are_those_of_transformers(each_model: LoadedModel) -> None:
    assert_like_transformers(with_many_ends(each_model, 8), random_prompts(LENGTHS * 2), max_new_tokens=14)


@pytest.mark.slow
def test_smollm2_answers_greedily_as_transformers_does(smollm2_model: LoadedModel) -> None:
    questions = ["What is the capital of France?", "Say yes.", "Name three colours and nothing else, please."]
    prompts = [render_question(smollm2_model.tokenizer, text, PromptFormat()).token_ids for text in questions]
    assert_like_transformers(smollm2_model, prompts, max_new_tokens=24)
    answer = generate(smollm2_model, prompts[:1], sampling=greedy(24), seeds=[0])[0]
    assert "Paris" in smollm2_model.tokenizer.decode(list(answer.token_ids))
    assert answer.stop_reason == "end"


# pick_tokens

FILTERS = [
    Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=1),
    Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=1),
    Sampling(temperature=1.5, top_p=0.5, top_k=0, max_new_tokens=1),
    Sampling(temperature=0.3, top_p=0.95, top_k=5, max_new_tokens=1),
    Sampling(temperature=1.0, top_p=1.0, top_k=7, max_new_tokens=1),
    Sampling(temperature=2.0, top_p=1e-6, top_k=0, max_new_tokens=1),
    Sampling(temperature=1.0, top_p=0.9, top_k=500, max_new_tokens=1),
]


def transformers_distribution(logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    ids: Any = None
    logits_BV = TemperatureLogitsWarper(sampling.temperature)(ids, logits_BV)
    if sampling.top_k > 0:
        logits_BV = TopKLogitsWarper(sampling.top_k)(ids, logits_BV)
    if sampling.top_p < 1:
        logits_BV = TopPLogitsWarper(sampling.top_p)(ids, logits_BV)
    return logits_BV.softmax(dim=-1)


@pytest.mark.parametrize("sampling", FILTERS, ids=lambda s: f"{s.temperature}-{s.top_p}-{s.top_k}")
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_tokens_have_the_distribution_of_transformers(sampling: Sampling, spread: float) -> None:
    steps = 5_000
    uniforms = (np.arange(steps) + 0.5) / steps
    logits = spread * torch.randn(3, 200, generator=torch.Generator().manual_seed(1))
    for row_logits in logits:
        wanted = transformers_distribution(row_logits.unsqueeze(0), sampling)[0].numpy()
        picked = pick_tokens(row_logits.expand(steps, -1), uniforms, sampling=sampling).numpy()
        counts = np.bincount(picked, minlength=len(wanted))
        assert not counts[wanted == 0].any()
        assert counts[wanted > 2 / steps].all()
        # A grid meets each token's interval to within one point at either end.
        np.testing.assert_allclose(counts / steps, wanted, atol=2 / steps)


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [5.0, 0.0, 0.0, 0.0]])
    assert pick_tokens(logits, np.array([0.99, 0.99]), sampling=greedy(1)).tolist() == [1, 0]


@pytest.mark.parametrize("sampling", FILTERS, ids=lambda s: f"{s.temperature}-{s.top_p}-{s.top_k}")
def test_the_ends_of_the_unit_interval_pick_allowed_tokens(sampling: Sampling) -> None:
    logits = 3 * torch.randn(1, 200, generator=torch.Generator().manual_seed(2))
    allowed = transformers_distribution(logits, sampling)[0]
    for uniform in (0.0, np.nextafter(1.0, 0.0)):
        token = pick_tokens(logits, np.array([uniform]), sampling=sampling).item()
        assert allowed[int(token)] > 0
    assert pick_tokens(logits, np.array([0.0]), sampling=sampling).item() == logits.argmax()


def test_forbidden_tokens_are_never_picked() -> None:
    logits = torch.full((1, 50), -torch.inf)
    logits[0, [7, 9]] = torch.tensor([1.0, 0.0])
    wide = Sampling(temperature=1, top_p=1, top_k=0, max_new_tokens=1)
    uniforms = np.append(np.linspace(0, 1, 100, endpoint=False), np.nextafter(1.0, 0.0))
    picked = pick_tokens(logits.expand(len(uniforms), -1), uniforms, sampling=wide)
    assert set(picked.tolist()) == {7, 9}


def test_half_precision_logits_are_tempered_in_float32() -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(3)).bfloat16().expand(500, -1)
    uniforms = (np.arange(500) + 0.5) / 500
    wide = Sampling(temperature=1, top_p=1, top_k=0, max_new_tokens=1)
    assert torch.equal(
        pick_tokens(logits, uniforms, sampling=wide), pick_tokens(logits.float(), uniforms, sampling=wide)
    )


# Answers and their company


def answers_alone(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    steering: Steering | None = None,
) -> list[Generated]:
    out = []
    for row, prompt in enumerate(prompts):
        own = None if steering is None else Steering(steering.site, steering.delta_BD[row : row + 1])
        out += generate(loaded, [prompt], sampling=sampling, seeds=[seeds[row]], steering=own)
    return out


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(llama: LoadedModel) -> None:
    prompts = random_prompts()
    first = generate(llama, prompts, sampling=sampled(16), seeds=[1] * 6)
    assert generate(llama, prompts, sampling=sampled(16), seeds=[1] * 6) == first
    other = generate(llama, prompts, sampling=sampled(16), seeds=[2] * 6)
    assert all(a.token_ids != b.token_ids for a, b in zip(first, other, strict=True))


def test_greedy_does_not_look_at_the_seed(llama: LoadedModel) -> None:
    prompts = random_prompts()
    found = [generate(llama, prompts, sampling=greedy(6), seeds=[seed] * 6) for seed in (0, 9)]
    assert found[0] == found[1]


@pytest.mark.parametrize("sampling", [greedy(10), sampled(10)], ids=["greedy", "sampled"])
def test_an_answer_does_not_depend_on_its_company(each_model: LoadedModel, sampling: Sampling) -> None:
    prompts, seeds = random_prompts(), [10, 11, 12, 13, 14, 15]
    together = generate(each_model, prompts, sampling=sampling, seeds=seeds)
    assert together == answers_alone(each_model, prompts, sampling=sampling, seeds=seeds)
    order = [4, 0, 5, 2, 1, 3]
    shuffled = generate(each_model, [prompts[i] for i in order], sampling=sampling, seeds=[seeds[i] for i in order])
    assert shuffled == [together[i] for i in order]


@pytest.mark.parametrize("steered", [False, True], ids=["plain", "steered"])
def test_rows_that_end_early_leave_the_others_alone(each_model: LoadedModel, steered: bool) -> None:
    loaded = with_many_ends(each_model, 8)
    prompts, seeds = random_prompts((*LENGTHS, 6, 20, 2), seed=5), list(range(9))
    delta = np.random.default_rng(3).normal(size=(9, loaded.width)).astype(np.float32)
    steering = Steering(Site(2, "resid_pre"), delta) if steered else None
    together = generate(loaded, prompts, sampling=sampled(16), seeds=seeds, steering=steering)
    lengths = {len(answer.token_ids) for answer in together if answer.stop_reason == "end"}
    assert len(lengths) >= 4, "the test needs rows that end at different steps"
    assert together == answers_alone(loaded, prompts, sampling=sampled(16), seeds=seeds, steering=steering)


def test_a_longer_limit_only_goes_on(llama: LoadedModel) -> None:
    prompts, seeds = random_prompts(), list(range(6))
    short = generate(llama, prompts, sampling=sampled(5), seeds=seeds)
    long = generate(llama, prompts, sampling=sampled(11), seeds=seeds)
    assert all(b.token_ids[:5] == a.token_ids for a, b in zip(short, long, strict=True))


def test_each_row_is_steered_by_its_own_delta(each_model: LoadedModel) -> None:
    prompts = random_prompts([9] * 4, seed=2)
    delta = 3 * np.random.default_rng(0).normal(size=(4, each_model.width)).astype(np.float32)
    delta[1] = 0
    seeds = [7] * 4
    plain = generate(each_model, prompts, sampling=sampled(12), seeds=seeds)
    steered = generate(
        each_model, prompts, sampling=sampled(12), seeds=seeds, steering=Steering(Site(1, "resid_pre"), delta)
    )
    assert [a == b for a, b in zip(plain, steered, strict=True)] == [False, True, False, False]
    assert generate(each_model, prompts, sampling=sampled(12), seeds=seeds) == plain
    layers = decoder_layers(each_model.model)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_steering_is_felt_from_the_prompt_on_at_every_step(llama: LoadedModel) -> None:
    # The same by hand, without a cache: the whole text is read again for every token.
    prompt = random_prompts([6])[0]
    delta = 4 * np.random.default_rng(1).normal(size=(1, llama.width)).astype(np.float32)
    site = Site(3, "resid_post")
    found = generate(llama, [prompt], sampling=greedy(8), seeds=[0], steering=Steering(site, delta))[0]
    ids = list(prompt)
    layer = decoder_layers(llama.model)[3]
    handle = layer.register_forward_hook(lambda module, args, out: out + torch.from_numpy(delta))
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(llama.model(torch.tensor([ids])).logits[0, -1].argmax()))
    handle.remove()
    assert list(found.token_ids) == ids[6:]


# Where an answer ends


def recite(loaded: LoadedModel, token_ids: Sequence[int]) -> None:
    """Make a model answer anything that ends in the first token with the others, whatever stood before.

    Attention and MLP are silenced; the head maps each token's normed embedding to the token that follows.
    """
    model: Any = loaded.model
    assert len(set(token_ids[:-1])) == len(token_ids) - 1, "each token can have one successor only"
    with torch.no_grad():
        for layer in decoder_layers(model):
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.get_input_embeddings().weight
        embedding.copy_(torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0)))
        head = model.get_output_embeddings().weight
        head.zero_()
        for token, follower in pairwise(token_ids):
            head[follower] += embedding[token]


def recite_text(loaded: LoadedModel, *, prompt_length: int, token_ids: Sequence[int]) -> None:
    """Make a GPT-2 answer any prompt of that length with `token_ids`: it is left nothing to look at but the position."""
    model: Any = loaded.model
    with torch.no_grad():
        for layer in decoder_layers(model):
            for projection in (layer.attn.c_proj, layer.mlp.c_proj):
                projection.weight.zero_()
                projection.bias.zero_()
        model.transformer.wte.weight.zero_()
        positions, head = model.transformer.wpe.weight, model.lm_head.weight
        torch.nn.init.orthogonal_(
            positions[prompt_length - 1 :][: loaded.width], generator=torch.Generator().manual_seed(0)
        )
        head.zero_()
        for position, token in enumerate(token_ids, start=prompt_length - 1):
            head[token] += positions[position]


@pytest.mark.parametrize(
    "text",
    [
        "The user and the assistant, the assistant and the user",
        "user: yes\nassistant: no\nuser:",
        "<|im_start user system assistant",
        "</s> [INST] Human: model",
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.01])
def test_an_answer_is_cut_at_the_end_token_never_at_a_text(
    tiny_models: Callable[[str], Path], text: str, temperature: float
) -> None:
    loaded = load_base(ModelSource(str(tiny_models("gpt2"))))
    tokenizer: Any = loaded.tokenizer
    prompt = render_question(tokenizer, "Who are you?", PromptFormat()).token_ids
    answer = tokenizer(text)["input_ids"]
    recite_text(loaded, prompt_length=len(prompt), token_ids=[*answer, tokenizer.eos_token_id])
    sampling = Sampling(temperature=temperature, top_p=1, top_k=0, max_new_tokens=len(answer) + 5)
    found = generate(loaded, [prompt, prompt], sampling=sampling, seeds=[0, 1])
    assert found == [Generated(tuple(answer), "end")] * 2
    assert tokenizer.decode(list(found[0].token_ids), skip_special_tokens=True) == text


def test_an_answer_may_be_empty(llama: LoadedModel) -> None:
    recite(llama, [10, 2])
    assert generate(llama, [[5, 10]], sampling=greedy(4), seeds=[0]) == [Generated((), "end")]


def test_the_limit_and_the_end_mark_are_told_apart(llama: LoadedModel) -> None:
    recite(llama, [10, 11, 12, 13, 2])
    found = {limit: generate(llama, [[5, 10]], sampling=greedy(limit), seeds=[0])[0] for limit in (1, 3, 4, 9)}
    assert found == {
        1: Generated((11,), "length"),
        3: Generated((11, 12, 13), "length"),
        4: Generated((11, 12, 13), "end"),
        9: Generated((11, 12, 13), "end"),
    }


def test_a_second_end_mark_of_the_generation_config_ends_too(llama: LoadedModel) -> None:
    recite(llama, [10, 11, 12, 13, 2])
    llama.model.generation_config.eos_token_id = [13, 500]
    assert generate(llama, [[5, 10]], sampling=greedy(9), seeds=[0]) == [Generated((11, 12), "end")]


def test_a_model_without_generation_config_ends_at_the_tokenizers_mark(llama: LoadedModel) -> None:
    recite(llama, [10, 11, 2])
    model: Any = llama.model
    model.generation_config = None
    assert generate(llama, [[5, 10]], sampling=greedy(9), seeds=[0]) == [Generated((11,), "end")]


def test_rows_of_one_batch_have_their_own_reasons(llama: LoadedModel) -> None:
    recite(llama, [10, 11, 12, 13, 14, 15, 16, 17, 2])
    prompts = [[5, 10], [6, 7, 8, 16], [17], [9, 9, 14]]
    found = generate(llama, prompts, sampling=greedy(4), seeds=[0] * 4)
    assert [answer.stop_reason for answer in found] == ["length", "end", "end", "end"]
    assert [len(answer.token_ids) for answer in found] == [4, 1, 0, 3]
