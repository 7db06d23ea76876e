"""Generation: greedy is transformers' greedy, company changes no answer, and what is recorded on the way is what a pass over the
finished answer shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hooks import hooks_of
from unmask.errors import ModelError
from unmask.models import generation, running_batch
from unmask.models.generation import Generated, generate
from unmask.models.intervening import Ablate, Add, Clamp, Erase, Intervention, Replace, intervene
from unmask.models.key_value_cache import Slots
from unmask.models.loading import LoadedModel, load_base
from unmask.models.prompt_cache import prefill
from unmask.models.prompts import render_question
from unmask.models.recording import observe
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


# Answers and their company


def answers_alone(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    steering: Sequence[Intervention] | None = None,
) -> list[Generated]:
    out = []
    for row, prompt in enumerate(prompts):
        own = None if steering is None else [each.rows([row]) for each in steering]
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
    steering = [Add(Site(2, "resid_pre"), delta)] if steered else None
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
        each_model, prompts, sampling=sampled(12), seeds=seeds, steering=[Add(Site(1, "resid_pre"), delta)]
    )
    assert [a == b for a, b in zip(plain, steered, strict=True)] == [False, True, False, False]
    assert generate(each_model, prompts, sampling=sampled(12), seeds=seeds) == plain
    layers = decoder_layers(each_model.model)
    assert hooks_of(layers) == []


def test_steering_is_felt_from_the_prompt_on_at_every_step(llama: LoadedModel) -> None:
    # The same by hand, without a cache: the whole text is read again for every token.
    prompt = random_prompts([6])[0]
    delta = 4 * np.random.default_rng(1).normal(size=(1, llama.width)).astype(np.float32)
    site = Site(3, "resid_post")
    found = generate(llama, [prompt], sampling=greedy(8), seeds=[0], steering=[Add(site, delta)])[0]
    ids = list(prompt)
    layer = decoder_layers(llama.model)[3]
    handle = layer.register_forward_hook(lambda module, args, out: out + torch.from_numpy(delta))
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(llama.model(torch.tensor([ids])).logits[0, -1].argmax()))
    handle.remove()
    assert list(found.token_ids) == ids[6:]


# Interventions of every kind, and where they are felt


def interventions(
    site: Site, rows: int, width: int, *, strength: float = 1, positions: Any = "all"
) -> dict[str, Intervention]:
    """One of each operation that a model can write under, every row another."""
    rng = np.random.default_rng(8)
    strengths, low = np.full(rows, strength, np.float32), np.linspace(-3, 3, rows).astype(np.float32)

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "add": Add(site, strength * 2 * drawn(rows, width), positions=positions),
        "ablate": Ablate(site, drawn(rows, width // 2, width), strengths, positions=positions),
        "erase": Erase(
            site,
            drawn(rows, width, 2) / 3,
            drawn(rows, 2, width) / 3,
            drawn(rows, width),
            strengths,
            positions=positions,
        ),
        "clamp": Clamp(site, drawn(rows, width), low, low, strengths, positions=positions),
    }


@torch.inference_mode()
def written_slowly(
    loaded: LoadedModel, prompt: Sequence[int], steering: Sequence[Intervention], *, max_new_tokens: int
) -> Generated:
    """Greedy, without a cache: prompt and answer are read again for every token, with the positions marked by hand."""
    ends, ids, model = (
        {loaded.model.generation_config.eos_token_id, loaded.tokenizer.eos_token_id},
        list(prompt),
        loaded.model,
    )
    for _ in range(max_new_tokens):
        response = torch.arange(len(ids))[None] >= len(prompt) - 1
        with intervene(model, steering, response_BT=response):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in ends:
            return Generated(tuple(ids[len(prompt) :]), "end")
        ids.append(token)
    return Generated(tuple(ids[len(prompt) :]), "length")


@pytest.mark.parametrize("positions", ["all", "prompt", "response"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_under_interventions_an_answer_is_that_of_whole_passes(
    tiny_models: Callable[[str], Path],
    fresh: Callable[[Path], LoadedModel],
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    shared: bool,
    positions: Any,
) -> None:
    loaded = fresh(tiny_models(name))
    prompts = random_prompts((9, 3, 12, 1, 9), seed=3)
    plain = generate(loaded, prompts, sampling=greedy(6), seeds=range(5))
    every = interventions(Site(1, "resid_pre"), 5, loaded.width, positions=positions)
    every |= {"two": interventions(Site(2, "resid_mid"), 5, loaded.width, positions="response")["ablate"]}
    if not shared:
        monkeypatch.setattr(generation, "keeps_keys_and_values", lambda model: False)
    for steering in [[each] for each in every.values()] + [[every["add"], every["two"], every["clamp"]]]:
        found = generate(loaded, prompts, sampling=greedy(6), seeds=range(5), steering=steering, rows=3)
        wanted = [
            written_slowly(loaded, prompt, [each.rows([row]) for each in steering], max_new_tokens=6)
            for row, prompt in enumerate(prompts)
        ]
        assert found == wanted
        assert found != plain


def test_interventions_of_strength_0_change_no_token(each_model: LoadedModel) -> None:
    prompts = random_prompts()
    plain = generate(each_model, prompts, sampling=sampled(10), seeds=range(6))
    for positions in ("all", "prompt", "response"):
        nothing = list(
            interventions(Site(1, "resid_post"), 6, each_model.width, strength=0, positions=positions).values()
        )
        assert generate(each_model, prompts, sampling=sampled(10), seeds=range(6), steering=nothing) == plain
    assert generate(each_model, prompts, sampling=sampled(10), seeds=range(6), steering=[]) == plain


def test_equal_prompts_that_are_equally_steered_are_run_once(llama: LoadedModel) -> None:
    prompts = [prompt for prompt in random_prompts((7, 4)) for _ in range(6)]
    every = interventions(Site(1, "resid_pre"), 12, llama.width)
    one, other = every["add"].rows([0, 0, 1, 1, 2, 2] * 2), every["ablate"].rows([0, 0, 0, 1, 1, 1] * 2)
    one.arrays["delta_BD"][[4, 10]] = 0  # so the fifth and the sixth differ
    for steering, ways in (([one], 4), ([other], 2), ([one, other], 5), ([every["add"].rows([0])], 1)):
        notes = Notes([Site(0, "resid_pre")])
        found = generate(llama, prompts, sampling=sampled(8), seeds=range(12), steering=steering, recorder=notes)
        assert notes.prompts_run == 2 * ways
        rows = [each if len(each) == 12 else each.rows([0] * 12) for each in steering]
        assert found == answers_alone(llama, prompts, sampling=sampled(8), seeds=range(12), steering=rows)


def test_rows_under_interventions_that_end_early_leave_the_others_alone(each_model: LoadedModel) -> None:
    loaded = with_many_ends(each_model, 8)
    prompts, seeds = random_prompts(LENGTHS * 2, seed=6), list(range(20, 32))
    steering = list(interventions(Site(2, "resid_pre"), 12, loaded.width, strength=0.2, positions="response").values())
    found = generate(loaded, prompts, sampling=sampled(10), seeds=seeds, steering=steering, rows=4)
    assert len({len(answer.token_ids) for answer in found}) >= 4, "the test needs rows that end at different steps"
    assert found == answers_alone(loaded, prompts, sampling=sampled(10), seeds=seeds, steering=steering)
    layers = decoder_layers(loaded.model)
    assert hooks_of(layers) == []


def test_what_no_answer_can_be_written_under_is_refused(llama: LoadedModel) -> None:
    prompts, site = random_prompts((4, 5)), Site(1, "resid_pre")
    replace = Replace(site, np.ones((2, 1, llama.width)), np.ones(2))
    with pytest.raises(
        ModelError, match=r"answers cannot be written while blocks\.1\.hook_resid_pre is replaced.*Replace comp"
    ):
        generate(llama, prompts, sampling=greedy(2), seeds=[0, 1], steering=[replace])
    with pytest.raises(ValueError, match=r"3 rows of an intervention .* for 2 answers"):
        generate(llama, prompts, sampling=greedy(2), seeds=[0, 1], steering=[Add(site, np.ones((3, llama.width)))])


# Rows that come and go


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("steered", [False, True], ids=["plain", "steered"])
def test_an_answer_does_not_depend_on_whose_slot_it_took(each_model: LoadedModel, rows: int, steered: bool) -> None:
    loaded = with_many_ends(each_model, 8)
    prompts, seeds = random_prompts(LENGTHS * 2, seed=6), list(range(20, 32))
    delta = np.random.default_rng(4).normal(size=(12, loaded.width)).astype(np.float32)
    steering = [Add(Site(2, "resid_pre"), delta)] if steered else None
    found = generate(loaded, prompts, sampling=sampled(16), seeds=seeds, steering=steering, rows=rows)
    assert len({len(answer.token_ids) for answer in found}) >= 5, "the test needs rows that end at different steps"
    assert found == answers_alone(loaded, prompts, sampling=sampled(16), seeds=seeds, steering=steering)


def test_slots_that_come_to_the_end_of_their_columns_go_on(
    each_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = []
    move = Slots.move_to_front
    monkeypatch.setattr(Slots, "move_to_front", lambda self: (moves.append(self), move(self)))
    loaded = with_many_ends(each_model, 30)
    prompts, seeds = random_prompts(LENGTHS * 5, seed=7), list(range(30))
    found = generate(loaded, prompts, sampling=sampled(20), seeds=seeds, rows=2)
    assert len(moves) >= 2 * loaded.num_layers, "the test needs more steps than there are columns"
    assert found == generate(loaded, prompts, sampling=sampled(20), seeds=seeds, rows=30)


def test_a_model_whose_past_is_more_than_keys_and_values_is_answered_with_its_own_cache(
    each_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = with_many_ends(each_model, 8)
    prompts, seeds = random_prompts(LENGTHS * 2, seed=6), list(range(12))
    wanted = generate(loaded, prompts, sampling=sampled(16), seeds=seeds)
    monkeypatch.setattr(generation, "keeps_keys_and_values", lambda model: False)
    monkeypatch.setattr(generation, "prefill", None)
    assert generate(loaded, prompts, sampling=sampled(16), seeds=seeds, rows=5) == wanted


def test_a_model_that_makes_its_own_masks_answers_the_same(
    each_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = with_many_ends(each_model, 8)
    prompts, seeds = random_prompts(LENGTHS * 2, seed=6), list(range(12))
    wanted = generate(loaded, prompts, sampling=sampled(16), seeds=seeds, rows=4)
    monkeypatch.setattr(running_batch, "windows", lambda model: None)
    assert generate(loaded, prompts, sampling=sampled(16), seeds=seeds, rows=4) == wanted


def test_nothing_is_asked_nothing_is_answered(llama: LoadedModel) -> None:
    assert generate(llama, [], sampling=greedy(3), seeds=[]) == []


# Prompts that were run before


def test_a_prompt_cache_takes_the_place_of_running_the_prompts(
    each_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = with_many_ends(each_model, 8)
    prompts, rows_of = random_prompts(), [3, 0, 0, 5, 2, 1, 4, 3]
    asked, seeds = [prompts[row] for row in rows_of], list(range(8))
    wanted = generate(loaded, asked, sampling=sampled(12), seeds=seeds)
    cache = prefill(loaded, prompts)
    one_by_one = answers_alone(loaded, prompts, sampling=greedy(5), seeds=range(6))
    monkeypatch.setattr(generation, "prefill", None)
    for rows in (8, 2):
        found = generate(
            loaded, asked, sampling=sampled(12), seeds=seeds, prompt_cache=cache, prompt_rows=rows_of, rows=rows
        )
        assert found == wanted
    assert generate(loaded, prompts, sampling=greedy(5), seeds=range(6), prompt_cache=cache) == one_by_one


def test_a_prompt_cache_is_refused_where_answers_are_steered(llama: LoadedModel) -> None:
    prompts = random_prompts([4])
    steering = [Add(Site(1, "resid_pre"), np.zeros((1, llama.width), np.float32))]
    with pytest.raises(ValueError, match="not steered"):
        generate(llama, prompts, sampling=greedy(2), seeds=[0], steering=steering, prompt_cache=prefill(llama, prompts))


# What is recorded on the way


class Notes:
    """A recorder that keeps every counted token's activation, and every log-probability."""

    def __init__(self, sites: Sequence[Site], *, wants_log_probs: bool = True) -> None:
        self.sites, self.wants_log_probs = sites, wants_log_probs
        self.seen: dict[Site, dict[tuple[int, int], torch.Tensor]] = {site: {} for site in sites}
        self.log_probs: dict[int, list[float]] = {}
        self.lasts: dict[tuple[Site, int], torch.Tensor] = {}
        self.prompts_run = 0

    def prompts(self, rows_B: torch.Tensor, last_B: torch.Tensor) -> None:
        self.prompts_run += len(rows_B)
        self.now = (rows_B.tolist(), None, last_B.tolist())

    def tokens(self, rows_B: torch.Tensor, index_BT: torch.Tensor) -> None:
        self.now = (rows_B.tolist(), index_BT.tolist(), None)

    def keep(self, site: Site, activation: torch.Tensor) -> None:
        rows, index, last = self.now
        assert len(activation) == len(rows)
        for here, row in enumerate(rows):
            if last is not None:
                self.lasts[site, row] = activation[here, last[here]].clone()
                continue
            for column, ordinal in enumerate(index[here]):
                if ordinal >= 0:
                    assert (row, ordinal) not in self.seen[site], "a token was shown twice"
                    self.seen[site][row, ordinal] = activation[here, column].clone()

    def keep_log_probs(self, rows_B: torch.Tensor, log_prob_B: torch.Tensor) -> None:
        for row, log_prob in zip(rows_B.tolist(), log_prob_B.tolist(), strict=True):
            self.log_probs.setdefault(row, []).append(log_prob)


@torch.inference_mode()
def read_again(
    loaded: LoadedModel, prompt: Sequence[int], answer: Sequence[int], sites: Sequence[Site]
) -> tuple[dict[Site, torch.Tensor], list[float], dict[Site, torch.Tensor]]:
    """By one pass over prompt and answer: counted tokens' activations, tokens' log-probabilities, the prompt's last token."""
    shown: dict[Site, torch.Tensor] = {}
    model: Any = loaded.model
    with observe(model, sites, lambda site, activation: shown.update({site: activation[0].clone()})):
        logits_TV = model(torch.tensor([[*prompt, *answer]])).logits[0].float()
    columns = [len(prompt) + i for i, token in enumerate(answer) if token not in loaded.tokenizer.all_special_ids]
    before = len(prompt) - 1
    log_probs = logits_TV[before : before + len(answer)].log_softmax(dim=-1)
    return (
        {site: seen_TW[columns] for site, seen_TW in shown.items()},
        log_probs.gather(1, torch.tensor(answer, dtype=torch.long).view(-1, 1))[:, 0].tolist(),
        {site: seen_TW[before] for site, seen_TW in shown.items()},
    )


def assert_read_again(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Generated], notes: Notes
) -> None:
    unique = list(dict.fromkeys(map(tuple, prompts)))
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        seen, log_probs, last = read_again(loaded, prompt, answer.token_ids, notes.sites)
        np.testing.assert_allclose(notes.log_probs.get(row, []), log_probs, atol=1e-4)
        for site in notes.sites:
            kept = [token for (job, _), token in sorted(notes.seen[site].items(), key=lambda i: i[0]) if job == row]
            assert len(kept) == len(seen[site])
            torch.testing.assert_close(notes.lasts[site, unique.index(tuple(prompt))], last[site], atol=1e-4, rtol=1e-4)
            if kept:
                found_W, wanted_W = torch.stack(kept).mean(dim=0), seen[site].mean(dim=0)
                assert torch.linalg.vector_norm(found_W - wanted_W) <= 1e-4 * torch.linalg.vector_norm(wanted_W)


def sites_of(loaded: LoadedModel) -> list[Site]:
    return [Site(0, "resid_pre"), Site(2, "resid_pre"), Site(1, "attn_out"), Site(loaded.num_layers - 1, "resid_post")]


@pytest.mark.parametrize("rows", [64, 3])
def test_what_is_recorded_while_answering_is_what_reading_the_answer_shows(each_model: LoadedModel, rows: int) -> None:
    loaded = with_many_ends(each_model, 8)
    prompts, seeds = random_prompts(LENGTHS * 4, seed=8), list(range(24))
    prompts[4] = prompts[9] = prompts[1]
    notes = Notes(sites_of(loaded))
    answers = generate(loaded, prompts, sampling=sampled(10), seeds=seeds, recorder=notes, rows=rows)
    lengths = {len(answer.token_ids) for answer in answers}
    assert 0 in lengths and 10 in lengths and len(lengths) > 4, "some are empty, some are cut, some end in between"
    assert notes.prompts_run == 22, "equal prompts are run once"
    assert_read_again(loaded, prompts, answers, notes)
    assert answers == generate(loaded, prompts, sampling=sampled(10), seeds=seeds)


def test_a_model_with_its_own_cache_is_recorded_too(each_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "keeps_keys_and_values", lambda model: False)
    loaded = with_many_ends(each_model, 8)
    prompts, seeds = random_prompts(LENGTHS * 4, seed=8), list(range(24))
    notes = Notes(sites_of(loaded))
    answers = generate(loaded, prompts, sampling=sampled(10), seeds=seeds, recorder=notes, rows=7)
    assert_read_again(loaded, prompts, answers, notes)


def test_special_tokens_in_an_answer_are_read_but_not_counted(each_model: LoadedModel) -> None:
    loaded = each_model
    loaded.model.generation_config.eos_token_id = None
    prompts, seeds = random_prompts(), list(range(6))
    answers = generate(loaded, prompts, sampling=sampled(30), seeds=seeds)
    common = max({t for a in answers for t in a.token_ids}, key=lambda t: sum(a.token_ids.count(t) for a in answers))
    tokenizer: Any = loaded.tokenizer
    before = tokenizer.all_special_ids
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(common)]})
    try:
        assert set(tokenizer.all_special_ids) == {*before, common}
        notes = Notes(sites_of(loaded))
        assert generate(loaded, prompts, sampling=sampled(30), seeds=seeds, recorder=notes) == answers
        assert_read_again(loaded, prompts, answers, notes)
        assert any(common in answer.token_ids for answer in answers)
    finally:
        tokenizer.add_special_tokens({"additional_special_tokens": []}, replace_extra_special_tokens=True)


def test_a_recorder_may_want_no_sites_or_no_log_probs(llama: LoadedModel) -> None:
    prompts = random_prompts()
    answers = generate(llama, prompts, sampling=sampled(6), seeds=range(6))
    only_log_probs, only_sites = Notes([]), Notes(sites_of(llama), wants_log_probs=False)
    for notes in (only_log_probs, only_sites):
        assert generate(llama, prompts, sampling=sampled(6), seeds=range(6), recorder=notes) == answers
    assert sum(map(len, only_log_probs.log_probs.values())) == sum(len(answer.token_ids) for answer in answers)
    assert not only_sites.log_probs
    assert all(len(seen) == len(only_sites.seen[Site(0, "resid_pre")]) > 0 for seen in only_sites.seen.values())


def test_a_recorder_sees_what_steering_added(llama: LoadedModel) -> None:
    prompts = random_prompts([9] * 4, seed=2)
    delta = 3 * np.random.default_rng(0).normal(size=(4, llama.width)).astype(np.float32)
    site = Site(1, "resid_post")
    plain, steered = Notes([site]), Notes([site])
    generate(llama, prompts, sampling=sampled(1), seeds=[7] * 4, recorder=plain)
    generate(llama, prompts, sampling=sampled(1), seeds=[7] * 4, recorder=steered, steering=[Add(site, delta)])
    for row in range(4):
        torch.testing.assert_close(
            steered.lasts[site, row], plain.lasts[site, row] + torch.from_numpy(delta[row]), atol=1e-4, rtol=1e-4
        )


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
