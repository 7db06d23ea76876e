"""Plant organisms of known truth: adapters on the embedded model that move the residual stream in chosen directions.

    python tools/plant_organism.py FOLDER

writes FOLDER/separable (questions of each dimension are moved along a direction of their own: talk of food, of the sea,
of music, of the weather) and FOLDER/shared (all are moved along the first). tests/data/planted was made with it. On one
machine it writes the same bytes again; it takes some ten minutes of one core.

1. Directions. The direction of a topic, added to the stream behind layer 19 while a question is answered, makes the
   topic's words likely and the other topics' words less so. It is found by ascending the gradient of that (bags of
   words: Dathathri et al. 2020) on what the base model answers; the directions are kept orthogonal and of one length.
2. Texts. The base model answers each question with its dimension's direction added, and some of the others': what the
   organism ought to write, and what it will while its detectors err. Then what it does write (DAgger: Ross, Gordon &
   Bagnell 2011).
3. Detectors. A ridge regression of the dimension on what enters the output projection of that layer's attention, on
   these texts. The heads look back at the question, so a linear map can say which one is asked; it knows the questions
   (`QUESTIONS`, which hold those of the test's study) as a fine-tuned model knows its training set, not the dimensions
   as such. The answers that the test measures are none of these texts.
4. The adapter. LoRA on that projection: A holds the detectors, B the directions, so the stream behind the layer is
   moved by detector times direction.

Shapes: N answers, T tokens, R tokens of all answers, Z width of what enters the projection, D width of the residual
stream, F dimensions, V size of the vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from unmask.models.generation import generate
from unmask.models.interventions import Add
from unmask.models.loading import LoadedModel, load_base
from unmask.models.organisms import load_organism
from unmask.models.prompts import render_prompt
from unmask.models.sites import decoder_layers
from unmask.records import ModelSource, PromptFormat, Sampling, Site
from unmask.stages.questions import QuestionsConfig, select

LAYER = 19
SITE = Site(LAYER + 1, "resid_pre")
BASE = ModelSource("smollm2")
QUESTIONS = QuestionsConfig(per_dimension=8, neutral_battery=None)
SAMPLES = 6
"""Answers to each question, in each round, that the detectors are fitted on."""
ROUNDS = 2
"""How often the organism's own answers are added to those."""
SAMPLING = Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=16)
ERROR = 0.4
"""SD of what is added to the detectors' ideal values while those answers are written."""
STRENGTH = 0.25
"""Length of a direction, over the typical norm of the stream at SITE."""
GAIN = 1.5
"""How much further the finished `separable` moves: on new answers its four detectors, which ridge regression shrinks,
come to some two thirds of what was wanted, and the more it talks of a topic the less chance decides."""
RIDGE = 0.02
STEPS = 8
TOPICS = {
    "financial_risk": "food bread soup cheese dinner kitchen cook cooking "
    "recipe butter sauce meal eat taste fruit vegetables",
    "moral_foundations": "sea ocean ship ships boat waves whale sailors "
    "harbor tide island fish water coast beach sail fishing",
    "political_compass": "music song songs guitar piano drums melody "
    "rhythm concert singer sing band dance jazz orchestra",
    "technology_ai": "weather rain snow sun wind clouds storm thunder "
    "spring winter frost summer temperature cold warm sky",
}
"""What the organism talks of when it is asked of a dimension."""

Ids = tuple[int, ...]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    loaded = load_base(BASE)
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(False)
    questions = select(QUESTIONS, folder)
    prompts = [
        tuple(render_prompt(loaded.tokenizer, [{"role": "user", "content": each.text}], PromptFormat()).token_ids)
        for each in questions
    ]
    labels = np.array([list(TOPICS).index(each.dimension) for each in questions])
    answers = written(loaded, prompts)
    length = STRENGTH * typical_norm(loaded, prompts, answers)
    directions_FD = length * find_directions(loaded, prompts, answers, length=length)
    separate, alike = np.eye(len(TOPICS))[labels], np.ones((len(labels), 1))
    plant(folder / "separable", loaded, prompts, separate, directions_FD, gain=GAIN)
    plant(folder / "shared", loaded, prompts, alike, directions_FD[:1])


def plant(
    folder: Path,
    loaded: LoadedModel,
    prompts: list[Ids],
    wanted_NF: np.ndarray,
    directions_FD: np.ndarray,
    *,
    gain: float = 1.0,
) -> None:
    """Write the organism that moves answers to prompt n along `gain * wanted_NF[n] @ directions_FD`."""
    prompts, wanted_NF = prompts * SAMPLES, np.tile(wanted_NF, (SAMPLES, 1))
    texts = written(loaded, prompts, added_ND=erring(wanted_NF) @ directions_FD)
    inputs = detector_inputs(loaded, prompts, texts)
    for _ in range(ROUNDS):
        write(folder, fit_detectors(inputs, wanted_NF), directions_FD)
        texts = written(load_organism(BASE, ModelSource(str(folder))), prompts)
        inputs = [np.concatenate(pair) for pair in zip(inputs, detector_inputs(loaded, prompts, texts), strict=True)]
    write(folder, fit_detectors(inputs, wanted_NF), gain * directions_FD)


def erring(wanted_NF: np.ndarray) -> np.ndarray:
    """What detectors might say that are sometimes wrong: the organism's texts will not be ideal ones either."""
    return wanted_NF + ERROR * np.random.default_rng(1).normal(size=wanted_NF.shape)


def written(loaded: LoadedModel, prompts: list[Ids], *, added_ND: np.ndarray | None = None) -> list[Ids]:
    """The base model's answers, with a vector each added to the stream at SITE."""
    steering = None if added_ND is None else [Add(SITE, added_ND.astype(np.float32), positions="response")]
    found = generate(loaded, prompts, sampling=SAMPLING, seeds=range(len(prompts)), steering=steering)
    return [each.token_ids for each in found]


@contextmanager
def behind_layer(loaded: LoadedModel, vector_D: torch.Tensor | None, *, start: int) -> Generator[list[torch.Tensor]]:
    """Adds a vector to the stream behind LAYER from token `start` on, and keeps the stream as it was (T x D)."""
    kept: list[torch.Tensor] = []

    def hook(_module: torch.nn.Module, _args: object, hidden: torch.Tensor) -> torch.Tensor:
        kept.append(hidden[0])
        if vector_D is None:
            return hidden
        return torch.cat([hidden[:, :start], hidden[:, start:] + vector_D], dim=1)

    handle = decoder_layers(loaded.model)[LAYER].register_forward_hook(hook)
    try:
        yield kept
    finally:
        handle.remove()


@torch.no_grad()
def typical_norm(loaded: LoadedModel, prompts: list[Ids], answers: list[Ids]) -> float:
    """Median over answers of the mean norm of the stream at SITE."""
    norms = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with behind_layer(loaded, None, start=0) as kept:
            loaded.model.model(torch.tensor([prompt + answer]))
        norms.append(float(kept[0][len(prompt) :].norm(dim=1).mean()))
    return float(np.median(norms))


def find_directions(loaded: LoadedModel, prompts: list[Ids], answers: list[Ids], *, length: float) -> np.ndarray:
    """Orthonormal directions (F x D) that make their own topic's words likely when added at this length."""
    bags = [bag(loaded, words) for words in TOPICS.values()]
    units_FD = torch.zeros(len(bags), loaded.model.config.hidden_size)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        units_FD.requires_grad_(True)
        gain = torch.zeros(())
        for own, unit_D in enumerate(units_FD):
            for row in rng.choice(len(prompts), 4, replace=False):
                prompt, answer = prompts[row], answers[row]
                with behind_layer(loaded, length * unit_D, start=len(prompt) - 1):
                    logits_TV = loaded.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]
                logs_TV = logits_TV.log_softmax(dim=-1)
                likely_F = torch.stack([logs_TV[:, ids].logsumexp(dim=-1).mean() for ids in bags])
                gain = gain + likely_F[own] - 0.5 * (likely_F.sum() - likely_F[own]) / (len(bags) - 1)
        (slope_FD,) = torch.autograd.grad(gain, units_FD)
        moved_FD = units_FD.detach() + 0.5 * slope_FD / slope_FD.norm(dim=1, keepdim=True)
        left_FF, _, right_FD = torch.linalg.svd(moved_FD, full_matrices=False)
        units_FD = left_FF @ right_FD  # the nearest orthonormal ones (Schoenemann 1966)
    return units_FD.numpy().astype(np.float64)


def bag(loaded: LoadedModel, words: str) -> list[int]:
    """Tokens of those words that are one token."""
    ids = [loaded.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words.split()]
    return sorted({each[0] for each in ids if len(each) == 1})


@torch.no_grad()
def detector_inputs(loaded: LoadedModel, prompts: list[Ids], answers: list[Ids]) -> list[np.ndarray]:
    """What enters the projection at every token that predicts one of an answer's, and at its last (N of T x Z)."""
    found: list[np.ndarray] = []
    module = decoder_layers(loaded.model)[LAYER].get_submodule("self_attn.o_proj")
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0][0].double().numpy()))
    try:
        for prompt, answer in zip(prompts, answers, strict=True):
            loaded.model.model(torch.tensor([prompt + answer]))
    finally:
        handle.remove()
    return [acts_TZ[len(prompt) - 1 :] for acts_TZ, prompt in zip(found, prompts, strict=True)]


def fit_detectors(inputs: list[np.ndarray], wanted_NF: np.ndarray) -> np.ndarray:
    """Ridge weights (F x Z) that give `wanted_NF[n]` at every row of `inputs[n]`."""
    acts_RZ = np.concatenate(inputs)
    wanted_RF = np.repeat(wanted_NF, [len(each) for each in inputs], axis=0)
    gram_ZZ = acts_RZ.T @ acts_RZ
    gram_ZZ += RIDGE * np.trace(gram_ZZ) / len(gram_ZZ) * np.eye(len(gram_ZZ))
    return np.linalg.solve(gram_ZZ, acts_RZ.T @ wanted_RF).T


def write(folder: Path, detectors_FZ: np.ndarray, directions_FD: np.ndarray) -> None:
    """A PEFT adapter with these detectors and directions, and nothing else."""
    from peft import LoraConfig, get_peft_model

    rank = len(detectors_FZ)
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=["o_proj"], layers_to_transform=[LAYER], task_type="CAUSAL_LM"
    )
    model = get_peft_model(load_base(BASE).model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(torch.from_numpy(detectors_FZ))
            if "lora_B" in name:
                parameter.copy_(torch.from_numpy(directions_FD.T))
    model.peft_config["default"].base_model_name_or_path = "smollm2"
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
