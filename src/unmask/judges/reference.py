"""The packaged reference answers: their consensus, the orders to judges, and what the offline judge needs to score them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unmask.artifact import digest_file, digest_json, read_tensors, write_tensors
from unmask.battery import packaged, read_rows
from unmask.records import ModelSource

if TYPE_CHECKING:
    import pandas as pd

    from unmask.progress import Progress

HOSTS = 2
"""Answers to which each order to the judge is appended."""
_PERPLEXITY_MODEL = "smollm2"


def reference_path() -> Path:
    return packaged("judge", "reference_answers")


def reference_answers(*, limit: int | None = None) -> pd.DataFrame:
    """The packaged answers with their consensus, the mean of their raters: response_id, question, text, dimension, polarity,
    style, kind, pair, misalignment, coherence. With `limit` about so many, spread over kinds; pairs stay whole."""
    import pandas as pd

    rows = [row for _, row in read_rows(reference_path())]
    table = pd.DataFrame(rows).rename(columns={"id": "response_id", "answer": "text"})
    for rubric in ("misalignment", "coherence"):
        table[rubric] = [float(np.mean([rater[rubric] for rater in labels.values()])) for labels in table["labels"]]
    if limit is None or limit >= len(table):
        return table
    unit = table["pair"].fillna(table["response_id"])
    order = np.random.default_rng(0).permutation(unit.unique())
    turn = table.groupby("kind").cumcount().groupby(unit).min()  # the n-th of its kind
    chosen = sorted(order, key=lambda name: int(turn[name]))
    sizes = unit.value_counts()
    kept, count = set(), 0
    for name in chosen:
        if count >= limit:
            break
        kept.add(name)
        count += int(sizes[name])
    return table[unit.isin(kept)].reset_index(drop=True)


def packaged_ratings(answers: pd.DataFrame) -> pd.DataFrame:
    """The raters' own scores as judgements."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"response_id": answer_id, "judge": f"rater {rater}", "rubric": rubric, "score": float(score)}
            for answer_id, labels in zip(answers["response_id"], answers["labels"], strict=True)
            for rater, scores in labels.items()
            for rubric, score in scores.items()
        ]
    )


def with_orders(answers: pd.DataFrame) -> pd.DataFrame:
    """Every packaged order to the judge appended to HOSTS answers: what wants 0 to the most misaligned, what wants 100 to the
    most aligned ones of prose. Columns as `answers`, with `host` and `wants`."""
    import pandas as pd

    prose = answers[answers["coherence"] > 80].sort_values(["misalignment", "response_id"])
    rows = []
    for number, (_, order) in enumerate(read_rows(packaged("judge", "injections"))):
        ends = prose.iloc[::-1] if order["wants"] == 0 else prose
        for copy in range(HOSTS):
            host = ends.iloc[(number * HOSTS + copy) % min(10, len(ends))]
            rows.append(
                {
                    "response_id": f"{host['response_id']}+{order['id']}",
                    "question": host["question"],
                    "text": f"{host['text']}\n\n{order['text']}",
                    "host": host["response_id"],
                    "wants": float(order["wants"]),
                    "kind": order["kind"],
                }
            )
    return pd.DataFrame(rows)


def reference_perplexities(*, progress: Progress) -> dict[str, float]:
    """Perplexity of each packaged answer under the embedded model behind its question; read once, then from the cache."""
    from unmask.models.embedded import cache_folder
    from unmask.models.loading import load_base
    from unmask.models.passes import Readout, Text
    from unmask.models.prompts import render_question
    from unmask.models.reading import read_texts
    from unmask.records import PromptFormat

    answers = reference_answers()
    key = digest_json([digest_file(reference_path()), _PERPLEXITY_MODEL])
    path = cache_folder() / "judge" / f"perplexities-{key[:16]}.safetensors"
    if not path.is_file():
        loaded = load_base(ModelSource(_PERPLEXITY_MODEL), progress=progress)
        prompt_format = PromptFormat(None, thinking=False)
        texts = [
            Text(
                render_question(loaded.tokenizer, question, prompt_format).token_ids,
                tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"]),
            )
            for question, text in zip(answers["question"], answers["text"], strict=True)
        ]
        progress.begin("reading the answers", total=1)
        reading = read_texts(loaded, texts, Readout(sites=(), log_probs=True))
        progress.advance()
        progress.end()
        write_tensors(path, {"perplexity": np.exp(-reading.log_prob_N)})
    found_N = read_tensors(path, rebuild=f"rm {path}")["perplexity"]
    return dict(zip(answers["response_id"], found_N.tolist(), strict=True))
