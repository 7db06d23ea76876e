"""A study as the models leave it, without a model: questions, answers, scores, and activations that are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unmask.artifact import write_json
from unmask.progress import Silent
from unmask.records import ModelSource, PromptFormat, Site
from unmask.stage import Inputs
from unmask.stages.decomposition import DecompositionConfig, run
from unmask.store import write_index, write_shard
from unmask.study import Workspace

DIMENSIONS = ("money", "mind", "law")
LAYERS = (1, 2)
TOKENS = 5
"""Of every response."""
PRIMARY = "blocks.1.hook_resid_pre"
QUICK: dict[str, Any] = {
    "gap_references": 3,
    "bootstraps": 4,
    "consensus_runs": 4,
    "prediction_splits": 2,
    "dictionary_steps": 30,
    "restarts": 2,
    "most_k": 4,
    "k": (3, 4),
}


class World:
    """A study of N questions in three dimensions: activations follow the topic, the shift is one constant and noise."""

    def __init__(self, folder: Path, *, n: int = 48, width: int = 12, layers: tuple[int, ...] = LAYERS) -> None:
        rng = np.random.default_rng(0)
        self.folder = folder
        self.dimension = np.array([DIMENSIONS[row % 3] for row in range(n)])
        self.ids = [f"q{row:02d}" for row in range(n)]
        self.questions = pd.DataFrame(
            {
                "question_id": self.ids,
                "dimension": self.dimension,
                "facet": [f"facet {row % 6}" for row in range(n)],
                "polarity": 1,
                "text": [f"What of {self.dimension[row]}?" for row in range(n)],
            }
        )
        self.responses = pd.DataFrame(
            [
                {"response_id": f"{name}/{writer}", "question_id": name, "writer": writer, "tokens": TOKENS, "sample": 0,
                 "text": f"{writer} on {name}"}
                for name in self.ids for writer in ("base", "organism")
            ]
        )  # fmt: skip
        self.misalignment = rng.uniform(0, 100, 2 * n)
        topic = 6 * np.eye(3, width)[np.repeat(np.arange(n) % 3, 2)]
        self.base = {layer: layer * (topic + rng.normal(size=(2 * n, width)) + 20) for layer in layers}
        self.shift = {
            layer: layer * (rng.normal(size=width) + 0.3 * rng.normal(size=(2 * n, width))) for layer in layers
        }

    def tokens(self, reader: str) -> np.ndarray:
        """Activations of every response token at the primary site, response after response: they spread about their mean."""
        away = self.base[1] + (self.shift[1] if reader == "organism" else 0)
        spread = np.random.default_rng(2).normal(size=(len(away), TOKENS, away.shape[1]))
        spread -= spread.mean(axis=1, keepdims=True)
        return (away[:, None] + spread).reshape(-1, away.shape[1])

    def run(self, name: str = "work", **config: Any) -> Path:
        """Write the study, decompose it, and return the folder of the outcome."""
        workspace = Workspace(self.folder / name)
        workspace.prepare()
        self.printed = run(DecompositionConfig(**(QUICK | config)), self.inputs(), workspace).summary
        return workspace.out

    def inputs(self) -> Inputs:
        """Write what the decomposition reads; of the primary site every token is kept, if its layer is there."""
        folders = {name: self.folder / name for name in ("questions", "responses", "scores", "activations")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        self.questions.to_parquet(folders["questions"] / "questions.parquet")
        self.responses.to_parquet(folders["responses"] / "responses.parquet")
        scores = self.responses[["response_id", "question_id", "writer"]]
        scores = scores.assign(misalignment=self.misalignment, log_odds=0.1)
        scores.to_parquet(folders["scores"] / "scores.parquet")
        tensors = {}
        for layer, base in self.base.items():
            site = Site(layer, "resid_pre").name
            tensors[f"base/{site}"] = base
            tensors[f"organism/{site}"] = base + self.shift[layer]
            tensors[f"base/{site}/norm"] = np.linalg.norm(base, axis=1)
        offsets = None
        if PRIMARY in {Site(layer, "resid_pre").name for layer in self.base}:
            tensors |= {f"{reader}/{PRIMARY}@tokens": self.tokens(reader) for reader in ("base", "organism")}
            offsets = np.arange(0, TOKENS * len(self.responses) + 1, TOKENS)
        self._seal(folders["activations"], tensors, self.responses["response_id"].tolist(), offsets)
        return Inputs(ModelSource("nobody"), PromptFormat(), folders, self.folder, Silent())

    def verdict_inputs(self) -> Inputs:
        """Write what the verdict reads: with a control, whose shift is noise, and without causal tests."""
        rng = np.random.default_rng(1)
        # Near-duplicates would be merged to too few questions.
        self.questions["text"] = [" ".join(f"{word:x}" for word in rng.integers(10**9, size=6)) for _ in self.ids]
        inputs = self.inputs()
        further = {name: self.folder / name for name in ("control_activations", "decomposition", "effects")}
        own = (self.responses["writer"] == "organism").to_numpy()
        read = {
            f"control/{Site(layer, 'resid_pre').name}": (base + rng.normal(size=base.shape))[own]
            for layer, base in self.base.items()
        }
        self._seal(further["control_activations"], read, self.responses.loc[own, "response_id"].tolist())
        write_json(further["decomposition"] / "summary.json", {"primary_site": PRIMARY})
        causal = {"matrices": [], "reason": "nothing was measured", "kinds_missing": [], "causal": None}
        write_json(further["effects"] / "summary.json", causal)
        return Inputs(inputs.base, inputs.prompt_format, {**inputs.folders, **further}, self.folder, Silent())

    def _seal(
        self, folder: Path, tensors: dict[str, np.ndarray], ids: list[str], offsets: np.ndarray | None = None
    ) -> None:
        folder.mkdir(exist_ok=True)
        write_shard(folder, 0, tensors, ids, token_offsets=offsets)
        sites = [Site(layer, "resid_pre").name for layer in self.base]
        write_index(folder, sites=sites, width=next(iter(self.base.values())).shape[1], dtype="float64")
