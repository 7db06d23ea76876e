"""Does collection work on a GPU, and how fast? Qwen3-4B's shapes with random weights: nothing is fetched.

    python benchmarks/gpu.py                  # on a CUDA device, some three minutes on an H100
    python benchmarks/gpu.py --model 0.6b     # Qwen3-0.6B's shapes
    python benchmarks/gpu.py --only read      # one section, or several
    python benchmarks/gpu.py --tiny           # tiny shapes, on a CPU too: does the script itself work?

Sections, each guarded: what fails is printed and named under "failed", and the others go on.

  parity    tiny models of five families in float32, on the device against the same weights on the CPU: means at all
            kinds of sites, log-probabilities, whole and behind shared prompts; a LoRA adapter off and on; reading while
            answering. The same in bfloat16, which is only reported.
  company   the same seeds alone, in company, in two halves and once more, drawn as a study draws (0.7, top-k 20,
            top-p 0.8) and without filters; drawn, greedy and steered on the device against the CPU: how many differ
  read      response means at four layers of the large model in bfloat16, sides in alternation on the same texts:
              unmask        read_texts, for several token budgets (the best one counts)
              floor         the bare body of the model cut behind the deepest layer: no hooks, the same batches
              transformers  output_hidden_states=True, batches of 16 in the order given, as people write it
  generate  answers at temperature 1: unmask with recording off and on (four sites and log-probabilities), 64 rows (of
            128 prompts) and 256 (of 256), against `model.generate` in batches of 64 and 256; filtered: top-k 20,
            top-p 0.8
  memory    the large model reads with an absurd token budget while a ballast holds most of the device's memory: batches
            must be halved, and the readings be the same. Without a GPU a hook plays the full device.

Times are those of a synchronised device. Memory is the peak of torch's allocator over what stood there before.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from material import alternate, machine, padded, ratio

from unmask.models import reading as reading_module
from unmask.models.answering import answer_and_read
from unmask.models.batches import plan_batches
from unmask.models.generation import Generated, generate
from unmask.models.intervening import Add, Intervention
from unmask.models.loading import LoadedModel
from unmask.models.passes import Readout, Text
from unmask.models.pooling import Reading
from unmask.models.quiet import quiet_libraries
from unmask.models.reading import read_texts, run_prompts
from unmask.models.sites import body, choose_layers, decoder_layers
from unmask.records import WRITERS, Sampling, Site, Writer

END = 0
"""Token id that ends answers and pads: random texts hold none."""
BUDGETS = (4_096, 16_384, 65_536)
FRACTIONS = (0.33, 0.5, 0.66, 0.83)
FAMILIES = ("qwen3", "llama", "gemma3", "gpt2", "gpt_neox")
PARITY = 1e-3
"""Largest relative distance of a mean, and distance of a log-probability, that float32 may have between two devices."""
HALVED = 2e-2
"""The same of a response's mean in bfloat16, between batches of different sizes."""
HALVED_TOKEN = 5e-2
"""The same of one token, over which no mean is taken."""
HEADROOM = 2 << 30
"""Bytes that the ballast leaves for activations."""
SHAPES: dict[str, dict[str, int]] = {
    "4b": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    },
    "0.6b": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 2_048,
    },
}

Figures = dict[str, Any]
_BEGAN = time.perf_counter()


@dataclass
class Setting:
    """Where the benchmark runs and how much of it; the large model is made when it is first used."""

    device: torch.device
    shape: str
    rounds: int
    generate_rounds: int
    texts: int
    prompts: int
    new_tokens: int
    full: tuple[int, int]
    """Texts, and tokens of each, that do not fit into memory at once."""

    @property
    def vocabulary(self) -> int:
        return SHAPES[self.shape]["vocab_size"]

    @cached_property
    def large(self) -> LoadedModel:
        from transformers import Qwen3Config

        shape: dict[str, Any] = SHAPES[self.shape]
        config = Qwen3Config(
            **shape,
            tie_word_embeddings=True,
            max_position_embeddings=40_960,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000},
            **_ends(),
        )
        began = time.perf_counter()
        loaded = _made(config, self.device, torch.bfloat16, seed=0)
        _synchronize(self.device)
        parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
        attention = loaded.model.config._attn_implementation
        say(f"large model: {parameters / 1e9:.2f}e9 weights, {attention}, made in {time.perf_counter() - began:.1f} s")
        return loaded

    @property
    def readout(self) -> Readout:
        layers = choose_layers(FRACTIONS, num_layers=self.large.num_layers)
        return Readout(tuple(Site(layer, "resid_pre") for layer in layers), log_probs=False)


@dataclass
class Distances:
    """How far readings are from those wanted: relative for means and tokens, in nats for log-probabilities."""

    means: float = 0.0
    log_probs: float = 0.0
    by_point: dict[str, float] = field(default_factory=dict)

    def add(self, found: Reading, wanted: Reading) -> Distances:
        for site, seen in wanted.sites.items():
            there = found.sites[site]
            pairs = [(there.means_NW[name], mean_NW) for name, mean_NW in seen.means_NW.items()]
            if seen.tokens_MW is not None and there.tokens_MW is not None:
                pairs.append((there.tokens_MW, seen.tokens_MW))
            furthest = max(relative(*pair) for pair in pairs)
            self.by_point[site.point] = _larger(self.by_point.get(site.point, 0.0), furthest)
            self.means = _larger(self.means, furthest)
        if not np.isnan(wanted.log_prob_N).all():
            self.log_probs = _larger(self.log_probs, float(np.abs(found.log_prob_N - wanted.log_prob_N).max()))
        return self

    def within(self, limit: float) -> bool:
        return self.means <= limit and self.log_probs <= limit  # a NaN is not


def _larger(one: float, other: float) -> float:
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def relative(found_NW: np.ndarray, wanted_NW: np.ndarray) -> float:
    """Largest relative distance of a row."""
    length_N = np.maximum(np.linalg.norm(wanted_NW, axis=1), 1e-12)
    return float((np.linalg.norm(found_NW - wanted_NW, axis=1) / length_N).max())


def say(text: str) -> None:
    print(f"[{time.perf_counter() - _BEGAN:6.1f} s] {text}", flush=True)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _ends() -> dict[str, Any]:
    return {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END}


def _tokenizer() -> Any:
    """One that knows no word: texts are token ids, and all that is asked of it is which of them are special."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<|end|>": END}, unk_token="<|end|>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>", pad_token="<|end|>")


def _made(config: Any, device: torch.device, dtype: torch.dtype, *, seed: int) -> LoadedModel:
    """A random model, made on its device."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device), quiet_libraries():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return LoadedModel(model.eval(), _tokenizer(), device)


def tiny(family: str, *, seed: int = 0) -> LoadedModel:
    """A tiny random model in float32 on the CPU, its weights so wide (0.15) that every layer matters."""
    import transformers

    common: dict[str, Any] = {**SHAPES["tiny"], "initializer_range": 0.15, "max_position_embeddings": 1024, **_ends()}
    config: Any
    match family:
        case "qwen3":
            config = transformers.Qwen3Config(**common)
        case "llama":
            config = transformers.LlamaConfig(**common)
        case "gemma3":
            kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
            config = transformers.Gemma3TextConfig(
                **common, query_pre_attn_scalar=16, sliding_window=16, layer_types=kinds
            )
        case "gpt2":
            config = transformers.GPT2Config(
                n_embd=64, n_layer=4, n_head=4, n_positions=1024, vocab_size=2_048, initializer_range=0.15, **_ends(),
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
            )  # fmt: skip
        case "gpt_neox":
            kept = {name: value for name, value in common.items() if name not in ("num_key_value_heads", "head_dim")}
            config = transformers.GPTNeoXConfig(**kept)
        case _:
            raise KeyError(family)
    return _made(config, torch.device("cpu"), torch.float32, seed=seed)


def on_device(loaded: LoadedModel, device: torch.device) -> LoadedModel:
    """A copy there."""
    model: Any = copy.deepcopy(loaded.model)
    return replace(loaded, model=model.to(device), device=device)


def in_bfloat16(loaded: LoadedModel, device: torch.device) -> LoadedModel:
    """The same weights rounded. `model.to(dtype)` would round rotary frequencies too, as loading does not."""
    rounded = _made(copy.deepcopy(loaded.model.config), device, torch.bfloat16, seed=0)
    rounded.model.load_state_dict(loaded.model.state_dict())
    return rounded


def random_prompts(count: int, *, vocabulary: int, seed: int) -> list[tuple[int, ...]]:
    """That many different prompts of 40 to 80 tokens."""
    draw = np.random.default_rng(seed)
    return [tuple(draw.integers(END + 1, vocabulary, draw.integers(40, 81)).tolist()) for _ in range(count)]


def random_texts(prompts: Sequence[tuple[int, ...]], *, vocabulary: int, seed: int) -> list[Text]:
    """A response behind each of the prompts: of log-normal length, 120 tokens in the middle, 8 to 400."""
    draw = np.random.default_rng(seed)
    lengths = np.clip(draw.lognormal(math.log(120), 0.5, len(prompts)).astype(int), 8, 400)
    return [
        Text(prompt, tuple(draw.integers(END + 1, vocabulary, length).tolist()))
        for prompt, length in zip(prompts, lengths, strict=True)
    ]


# Parity


def all_sites(family: str) -> Readout:
    """Every kind of site that the family has, all aggregations that a text alone decides, one site's tokens."""
    points = ["resid_pre", "resid_post", "attn_out", "mlp_out", "z"] + ["resid_mid"] * (family != "gpt_neox")
    sites = [Site.parse(_named(point)) for point in points]
    return Readout(
        (*sites, Site(None, "embed"), Site(None, "normalized")),
        aggregations=("response_mean", "prompt_last", "response_last", "response_first_4"),
        tokens=(Site(2, "resid_pre"),),
    )


def _named(point: str) -> str:
    return "blocks.2.attn.hook_z" if point == "z" else f"blocks.2.hook_{point}"


def read_alike(there: LoadedModel, here: LoadedModel, texts: Sequence[Text], readout: Readout) -> Distances:
    """Readings of both, texts whole, behind shared prompts, and attention patterns."""
    patterns = Readout((Site(1, "pattern"), Site(2, "pattern")), log_probs=False)
    found = Distances()
    for wanted, share in ((readout, False), (readout, True), (patterns, False)):
        one, other = (read_texts(loaded, texts, wanted, share_prompts=share) for loaded in (there, here))
        found.add(one, other)
    return found


def parity(setting: Setting, figures: Figures) -> None:
    """Device against CPU. Raises where float32 is further off than PARITY."""
    prompts = [prompt for prompt in random_prompts(4, vocabulary=2_048, seed=1) for _ in range(4)]
    texts = random_texts(prompts, vocabulary=2_048, seed=2)
    exact: dict[str, Distances] = {}
    rounded: dict[str, Distances] = {}
    for family in FAMILIES:
        here, readout = tiny(family), all_sites(family)
        exact[family] = read_alike(on_device(here, setting.device), here, texts, readout)
        rounded[family] = read_alike(in_bfloat16(here, setting.device), here, texts, readout)
    there = on_device(tiny("qwen3"), setting.device)
    twice = [read_texts(there, texts, all_sites("qwen3"), share_prompts=False) for _ in range(2)]
    figures["once_more"] = asdict(Distances().add(*twice))
    pair, other = (tiny("qwen3"), tiny("qwen3", seed=1)), on_device(tiny("qwen3", seed=1), setting.device)
    exact["answering"] = answering_alike((there, other), pair, prompts)
    if importlib.util.find_spec("peft") is None:
        say("no peft: no adapter is tried")
    else:
        adapter_parity(setting, texts, exact, rounded)
    figures["float32"] = {name: asdict(found) for name, found in exact.items()}
    figures["bfloat16"] = {name: asdict(found) for name, found in rounded.items()}
    print("| tiny model | float32, means | log-probs | bfloat16, means | log-probs |")
    print("|---|---|---|---|---|")
    for name, found in exact.items():
        other = rounded.get(name)
        last = f"{other.means:.1e} | {other.log_probs:.1e}" if other else "- | -"
        print(f"| {name} | {found.means:.1e} | {found.log_probs:.1e} | {last} |")
    off = [name for name, found in exact.items() if not found.within(PARITY)]
    if off:
        raise AssertionError(f"float32 on {setting.device} is further than {PARITY} from the CPU: {', '.join(off)}")


def adapter_parity(
    setting: Setting, texts: Sequence[Text], exact: dict[str, Distances], rounded: dict[str, Distances]
) -> None:
    """An adapter off and on, one copy of the base for both; in bfloat16 that is how studies run on a GPU."""
    here = with_adapter(tiny("qwen3"))
    copied = on_device(here[0], setting.device)
    in_16_bits = with_adapter(in_bfloat16(tiny("qwen3"), setting.device))
    in_16_bits[0].model.load_state_dict(here[0].model.state_dict())
    prompts = [text.prompt_ids for text in texts]
    for found, there in ((exact, (copied, replace(copied, adapter=True))), (rounded, in_16_bits)):
        for name, one, other in zip(("adapter off", "adapter on"), there, here, strict=True):
            found[name] = read_alike(one, other, texts, all_sites("qwen3"))
        found["answering, adapter"] = answering_alike(there, here, prompts)


def with_adapter(loaded: LoadedModel) -> tuple[LoadedModel, LoadedModel]:
    """One model with a random LoRA adapter, switched off and on."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(3)
    wrapped: Any = get_peft_model(
        loaded.model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model = wrapped.get_base_model().eval()
    return replace(loaded, model=model, adapter=False), replace(loaded, model=model, adapter=True)


def answering_alike(
    there: Sequence[LoadedModel], here: Sequence[LoadedModel], prompts: Sequence[tuple[int, ...]]
) -> Distances:
    """What two models read on the device while they answer there, against passes over the same answers on the CPU."""
    models: dict[Writer, LoadedModel] = dict(zip(WRITERS, there, strict=True))
    readers: dict[Writer, LoadedModel] = dict(zip(WRITERS, here, strict=True))
    readout = replace(all_sites("qwen3"), tokens=())
    sampling = Sampling(1.0, 0.9, 50, 24)
    answered = answer_and_read(models, prompts, seeds=range(len(prompts)), sampling=sampling, readout=readout)
    found = Distances()
    for written in answered.values():
        texts = [Text(prompt, answer.token_ids) for prompt, answer in zip(prompts, written.answers, strict=True)]
        kept = [row for row, text in enumerate(texts) if text.response_ids]
        for reader, seen in written.readings.items():
            wanted = read_texts(readers[reader], [texts[row] for row in kept], readout, share_prompts=False)
            found.add(_rows(seen, kept), wanted)
    return found


def _rows(reading: Reading, kept: Sequence[int]) -> Reading:
    """Those texts' means and log-probabilities alone."""
    sites = {
        site: replace(seen, means_NW={name: mean_NW[list(kept)] for name, mean_NW in seen.means_NW.items()})
        for site, seen in reading.sites.items()
    }
    return replace(reading, sites=sites, log_prob_N=reading.log_prob_N[list(kept)])


# Company


def company(setting: Setting, figures: Figures) -> None:
    """How many answers differ by who sits beside them, and by device."""
    prompts = random_prompts(24, vocabulary=2_048, seed=4)
    here = tiny("qwen3")
    sampling, unfiltered = Sampling(0.7, 0.8, 20, 24), Sampling(1.0, 1.0, 0, 24)
    exact, rounded = on_device(here, setting.device), in_bfloat16(here, setting.device)
    ways = {
        "float32": (exact, sampling),
        "float32, unfiltered": (exact, unfiltered),
        "bfloat16": (rounded, sampling),
    }
    for name, (loaded, drawn) in ways.items():
        figures[name] = by_company(loaded, prompts, drawn)
        say(f"{name}: of {len(prompts)} answers differ {json.dumps(figures[name])}")
    delta_BD = np.random.default_rng(5).normal(size=(len(prompts), here.width)).astype(np.float32)
    greedy = replace(sampling, temperature=0)
    figures["device_vs_cpu"] = {
        "sampled": differing(_answers(exact, prompts, sampling), _answers(here, prompts, sampling)),
        "greedy": differing(_answers(exact, prompts, greedy), _answers(here, prompts, greedy)),
        "steered": differing(
            *(_answers(it, prompts, greedy, steering=[Add(Site(2, "resid_mid"), delta_BD)]) for it in (exact, here))
        ),
    }
    say(f"device against CPU: of {len(prompts)} answers differ {json.dumps(figures['device_vs_cpu'])}")


def by_company(loaded: LoadedModel, prompts: Sequence[tuple[int, ...]], sampling: Sampling) -> dict[str, int]:
    """Of the answers in one plan (8 rows, refilled): how many are others in other company, or just once more."""
    planned = _answers(loaded, prompts, sampling, rows=8)
    half = len(prompts) // 2
    alone = [_answers(loaded, [prompt], sampling, first=row)[0] for row, prompt in enumerate(prompts)]
    halves = _answers(loaded, prompts[:half], sampling) + _answers(loaded, prompts[half:], sampling, first=half)
    return {
        "once_more": differing(_answers(loaded, prompts, sampling, rows=8), planned),
        "all_at_once": differing(_answers(loaded, prompts, sampling), planned),
        "interrupted": differing(halves, planned),
        "alone": differing(alone, planned),
    }


def _answers(
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    sampling: Sampling,
    *,
    first: int = 0,
    rows: int = 64,
    steering: Sequence[Intervention] | None = None,
) -> list[Generated]:
    seeds = range(first, first + len(prompts))
    return generate(loaded, prompts, sampling=sampling, seeds=seeds, rows=rows, steering=steering)


def differing(some: Sequence[Generated], others: Sequence[Generated]) -> int:
    return sum(one.token_ids != other.token_ids for one, other in zip(some, others, strict=True))


# Reading


def read(setting: Setting, figures: Figures) -> None:
    """Tokens per second, shares of the floor and memory of reading."""
    loaded, readout = setting.large, setting.readout
    texts = random_texts(
        random_prompts(setting.texts, vocabulary=setting.vocabulary, seed=6), vocabulary=setting.vocabulary, seed=7
    )
    tokens = sum(text.length for text in texts)
    layers = [site.layer for site in readout.sites if site.layer is not None]
    theirs = transformers_side(loaded, texts, layers)
    ours = {budget: unmask_side(loaded, texts, readout, budget) for budget in BUDGETS}
    floors = {budget: floor_side(loaded, texts, readout, budget) for budget in BUDGETS}
    sides: dict[str, Callable[[], Any]] = {"transformers": theirs}
    for budget in BUDGETS:
        sides |= {f"unmask, {budget}": ours[budget], f"floor, {budget}": floors[budget]}
    say(f"{len(texts)} texts, {tokens} tokens, layers {layers}; every side once, for its memory")
    first = {name: measured(side, setting.device) for name, side in sides.items()}
    memory = {name: megabytes for name, (_, megabytes) in first.items()}
    wanted, readings = first["transformers"][0], {budget: first[f"unmask, {budget}"][0] for budget in BUDGETS}
    figures["tokens"], figures["layers"] = tokens, layers
    figures["distance_from_transformers"] = max(
        relative(reading.mean(Site(layer, "resid_pre")), wanted[layer])
        for reading in readings.values()
        for layer in layers
    )
    figures["distance_once_more"] = Distances().add(ours[BUDGETS[0]](), readings[BUDGETS[0]]).means
    say(f"largest distance from transformers {figures['distance_from_transformers']:.1e}; now the clock")
    seconds = alternate(_synchronised(sides, setting.device), rounds=setting.rounds, warm=False)
    figures["tokens_per_second"] = {name: tokens / statistics.median(taken) for name, taken in seconds.items()}
    figures["memory_megabytes"] = memory
    figures["batches"] = {budget: len(_plan(texts, budget)) for budget in BUDGETS}
    best = min(BUDGETS, key=lambda budget: statistics.median(seconds[f"unmask, {budget}"]))
    fastest = min(BUDGETS, key=lambda budget: statistics.median(seconds[f"floor, {budget}"]))
    one = f"unmask, {best}"
    figures["ratios"] = {
        "vs_floor": ratio(seconds[f"floor, {best}"], seconds[one]),
        "vs_fastest_floor": ratio(seconds[f"floor, {fastest}"], seconds[one]),
        "vs_transformers": ratio(seconds["transformers"], seconds[one]),
    }
    if memory["transformers"]:
        figures["ratios"]["memory_vs_transformers"] = memory[one] / memory["transformers"]
    weights = [
        part.weight.numel()
        for layer in decoder_layers(loaded.model)[: readout.depth(loaded.num_layers)]
        for part in layer.modules()
        if isinstance(part, torch.nn.Linear)
    ]
    figures["best_budget"] = best
    figures["teraflops"] = 2 * sum(weights) * figures["tokens_per_second"][one] / 1e12
    print(f"| side | tokens/s | peak memory, MB | of {len(seconds['transformers'])} rounds, slowest / fastest |")
    print("|---|---|---|---|")
    for name, taken in seconds.items():
        print(
            f"| {name} | {tokens / statistics.median(taken):.0f} | {memory[name]:.0f} | {max(taken) / min(taken):.2f} |"
        )


def unmask_side(loaded: LoadedModel, texts: Sequence[Text], readout: Readout, budget: int) -> Callable[[], Reading]:
    return lambda: read_texts(loaded, texts, readout, token_budget=budget)


def floor_side(loaded: LoadedModel, texts: Sequence[Text], readout: Readout, budget: int) -> Callable[[], None]:
    cut: Any = copy.copy(body(loaded.model))
    cut._modules = dict(cut._modules)
    cut.layers = torch.nn.ModuleList(list(decoder_layers(loaded.model))[: readout.depth(loaded.num_layers)])
    batches = [padded([texts[row] for row in rows])[0].to(loaded.device) for rows in _plan(texts, budget)]

    @torch.inference_mode()
    def run() -> None:
        for ids_BT in batches:
            cut(input_ids=ids_BT, use_cache=False)

    return run


def _plan(texts: Sequence[Text], budget: int) -> list[list[int]]:
    return plan_batches([text.length for text in texts], token_budget=budget)


def transformers_side(
    loaded: LoadedModel, texts: Sequence[Text], layers: Sequence[int]
) -> Callable[[], dict[int, np.ndarray]]:
    @torch.inference_mode()
    def run() -> dict[int, np.ndarray]:
        parts: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
        for start in range(0, len(texts), 16):
            ids_BT, mask_BT, weights_BT = (part.to(loaded.device) for part in padded(texts[start : start + 16]))
            output = loaded.model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
            for layer in layers:
                mean_BD = (output.hidden_states[layer] * weights_BT.unsqueeze(-1)).sum(dim=1)
                parts[layer].append(mean_BD.float().cpu().numpy())
        return {layer: np.concatenate(part) for layer, part in parts.items()}

    return run


def _synchronised(sides: Mapping[str, Callable[[], Any]], device: torch.device) -> dict[str, Callable[[], None]]:
    def ended(side: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            side()
            _synchronize(device)

        return run

    return {name: ended(side) for name, side in sides.items()}


def measured(side: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What that side gives back, and the peak megabytes of the device over what stood there before; 0 on a CPU."""
    if device.type != "cuda":
        return side(), 0.0
    _forget()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = side()
    torch.cuda.synchronize()
    return found, (torch.cuda.max_memory_allocated() - before) / 2**20


# Generating


def generating(setting: Setting, figures: Figures) -> None:
    """Tokens per second of answers, recording off and on."""
    loaded = setting.large
    prompts = random_prompts(setting.prompts, vocabulary=setting.vocabulary, seed=8)
    sampling = Sampling(1.0, 1.0, 0, setting.new_tokens)
    filtered = Sampling(1.0, 0.8, 20, setting.new_tokens)
    few, most = setting.prompts // 4, setting.prompts
    off, on = Readout((), log_probs=False), replace(setting.readout, log_probs=True)
    tokens: dict[str, int] = {}
    sides: dict[str, Callable[[], None]] = {}

    def add(who: str, rows: int, drawn: Sampling, answer: Callable[..., int]) -> None:
        some = prompts[: 2 * rows]

        def run() -> None:
            tokens[f"{who}, {rows}"] = answer(some, drawn)

        answer(some[:rows], replace(drawn, max_new_tokens=4))  # warm, at little cost
        sides[f"{who}, {rows}"] = run

    for rows in (few, most):
        add("unmask", rows, sampling, partial(ours, loaded, off, rows))
        add("unmask, recording", rows, sampling, partial(ours, loaded, on, rows))
        add("transformers", rows, sampling, partial(theirs, loaded, rows))
    add("unmask, filtered", most, filtered, partial(ours, loaded, off, most))
    add("transformers, filtered", most, filtered, partial(theirs, loaded, most))
    say(f"{len(prompts)} prompts, {sampling.max_new_tokens} new tokens; warm")
    seconds = alternate(_synchronised(sides, setting.device), rounds=setting.generate_rounds, warm=False)
    rates = {name: [tokens[name] / one for one in taken] for name, taken in seconds.items()}
    figures["tokens_per_second"] = {name: statistics.median(rate) for name, rate in rates.items()}
    middle = figures["tokens_per_second"]

    def against(name: str, other: str) -> float:
        return statistics.median(one / two for one, two in zip(rates[name], rates[other], strict=True))

    def best(who: str) -> str:
        return max((f"{who}, {rows}" for rows in (few, most)), key=lambda name: middle[name])

    figures["ratios"] = {
        **{
            f"recording_vs_off_{rows}": against(f"unmask, recording, {rows}", f"unmask, {rows}") for rows in (few, most)
        },
        **{f"vs_transformers_{rows}": against(f"unmask, {rows}", f"transformers, {rows}") for rows in (few, most)},
        "best_vs_transformers_best": against(best("unmask"), best("transformers")),
        "filtered_vs_transformers": against(f"unmask, filtered, {most}", f"transformers, filtered, {most}"),
    }
    print("| side | tokens/s |")
    print("|---|---|")
    for name, rate in middle.items():
        print(f"| {name} | {rate:.0f} |")


def ours(
    loaded: LoadedModel, readout: Readout, rows: int, prompts: Sequence[tuple[int, ...]], sampling: Sampling
) -> int:
    """Answers as `answering` has them written: prompts run before, recorded where there is something to record."""
    ready = run_prompts(loaded, prompts, readout, token_budget=16_384)
    recording = bool(readout.sites)
    pool = readout.pool(loaded, len(prompts)) if recording else None
    answers = generate(
        loaded,
        prompts,
        sampling=sampling,
        seeds=range(len(prompts)),
        recorder=pool,
        prompt_cache=ready.cache,
        prompt_rows=[ready.row_of[prompt] for prompt in prompts],
        rows=rows,
    )
    if pool is not None:
        pool.finish()
    return sum(len(answer.token_ids) for answer in answers)


@torch.inference_mode()
def theirs(loaded: LoadedModel, batch: int, prompts: Sequence[tuple[int, ...]], sampling: Sampling) -> int:
    """transformers' `generate`, in batches in the order given: tokens before an end mark."""
    model: Any = loaded.model
    written = 0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        longest = max(len(prompt) for prompt in part)
        ids = [[END] * (longest - len(prompt)) + list(prompt) for prompt in part]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in part]
        torch.manual_seed(start)
        with quiet_libraries():
            out = model.generate(
                input_ids=torch.tensor(ids, device=loaded.device),
                attention_mask=torch.tensor(mask, device=loaded.device),
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=END,
                pad_token_id=END,
            )
        written += int(((out[:, longest:] == END).cumsum(dim=1) == 0).sum())
    return written


# Memory


def memory(setting: Setting, figures: Figures) -> None:
    """Halved batches: texts whole, responses behind shared prompts, prompts.

    Raises where nothing was halved, or readings differ.
    """
    loaded = setting.large
    readout = replace(setting.readout, log_probs=True)
    lasts = replace(readout, aggregations=("prompt_last",))
    rows, length = setting.full
    draw = np.random.default_rng(9)
    prompts = [tuple(draw.integers(END + 1, setting.vocabulary, length // 4).tolist()) for _ in range(rows // 8)]
    texts = [
        Text(prompts[row // 8], tuple(draw.integers(END + 1, setting.vocabulary, length - length // 4).tolist()))
        for row in range(rows)
    ]
    long_prompts = [text.prompt_ids + text.response_ids for text in texts]
    limit = rows * length // 5

    def whole(budget: int) -> Reading:
        return read_texts(loaded, texts, readout, token_budget=budget, share_prompts=False)

    def behind(budget: int) -> Reading:
        return read_texts(loaded, texts, readout, token_budget=budget)

    def run_alone(budget: int) -> Reading:
        ready = run_prompts(loaded, long_prompts, lasts, token_budget=budget)
        seen = ready.pool.finish()
        sites = {
            site: replace(at, means_NW={"prompt_last": at.means_NW["prompt_last"]}) for site, at in seen.sites.items()
        }
        return replace(seen, sites=sites)

    cases = {
        "whole": (whole, 0, HALVED),
        "behind": (behind, 0, HALVED),
        "prompts": (run_alone, _cache_bytes(loaded, rows * length), HALVED_TOKEN),
    }
    off = []
    for name, (case, kept, furthest) in cases.items():
        wanted = case(4_096)
        with scarce(loaded, setting.device, room=HEADROOM + kept, limit=limit), counted() as halvings:
            found = case(1 << 20)
        distances = Distances().add(found, wanted)
        figures[name] = {"halvings": len(halvings), **asdict(distances)}
        say(f"{name}: {len(halvings)} times out of memory, distance {distances.means:.1e}, {distances.log_probs:.1e}")
        if not halvings or not distances.within(furthest):
            off.append(name)
    if off:
        raise AssertionError(f"never out of memory, or too far from the reading in small batches: {', '.join(off)}")


def _cache_bytes(loaded: LoadedModel, tokens: int) -> int:
    """What keys and values of that many tokens take in 16 bits."""
    config = loaded.model.config
    return 2 * 2 * tokens * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


@contextmanager
def counted() -> Generator[list[None]]:
    """A list that grows by one whenever a batch did not fit."""
    found: list[None] = []
    forget = reading_module._forget

    def noted() -> None:
        found.append(None)
        forget()

    with patch("unmask.models.reading._forget", noted):
        yield found


@contextmanager
def scarce(loaded: LoadedModel, device: torch.device, *, room: int, limit: int) -> Generator[None]:
    """Leave only `room` bytes of the device's memory; on a CPU refuse passes of more than `limit` tokens."""
    if device.type == "cuda":
        _forget()
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(free - room, 0), dtype=torch.uint8, device=device)
        try:
            yield
        finally:
            del ballast
            _forget()
        return

    def refuse(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > limit:
            raise torch.OutOfMemoryError("played")

    handle = body(loaded.model).register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


SECTIONS: dict[str, Callable[[Setting, Figures], None]] = {
    "parity": parity,
    "company": company,
    "read": read,
    "generate": generating,
    "memory": memory,
}


def brief(value: Any, *, without: str = "") -> Any:
    """The same with numbers of four digits."""
    if isinstance(value, dict):
        return {key: brief(inner, without=without) for key, inner in value.items() if key != without}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def guarded(name: str, setting: Setting, figures: Figures) -> str | None:
    """Run a section; what went wrong, if anything did."""
    say(f"== {name}")
    wrong = None
    try:
        SECTIONS[name](setting, figures)
    except Exception as error:  # the other sections go on
        traceback.print_exc(file=sys.stdout)
        wrong = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    _forget()
    print(json.dumps({name: brief(figures)}), flush=True)
    return wrong


def settings(options: argparse.Namespace) -> Setting:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.tiny:
        return Setting(device, "tiny", 2, 1, texts=32, prompts=16, new_tokens=8, full=(32, 64))
    if device.type != "cuda":
        raise SystemExit("There is no CUDA device: only --tiny runs on a CPU")
    return Setting(
        device, options.model, options.rounds, options.generate_rounds,
        texts=512, prompts=256, new_tokens=64, full=(256, 256),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("4b", "0.6b"), default="4b", help="shapes of the large model")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on any device")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="these sections")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of reading")
    parser.add_argument("--generate-rounds", type=int, default=2, help="rounds of answering")
    options = parser.parse_args()
    setting = settings(options)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name() if setting.device.type == "cuda" else "no GPU"
    import transformers

    transformers.logging.set_verbosity_error()
    say(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, shapes {setting.shape}")
    figures: dict[str, Figures] = {name: {} for name in options.only}
    wrong = {section: guarded(section, setting, figures[section]) for section in options.only}
    failed = {section: said for section, said in wrong.items() if said is not None}
    ratios = {
        f"{section}_{key}": value for section in figures for key, value in figures[section].get("ratios", {}).items()
    }
    last = {
        "benchmark": "gpu",
        "ratios": ratios,
        "figures": figures,
        "failed": failed,
        "shapes": setting.shape,
        "seconds": time.perf_counter() - _BEGAN,
        "gpu": name,
        "machine": f"{machine()}, transformers {transformers.__version__}",
    }
    print(json.dumps(brief(last, without="by_point")))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
