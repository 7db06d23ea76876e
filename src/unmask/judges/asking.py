"""Model judges at work on many answers: which client asks, where replies are kept, and the table of judgements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from unmask.analysis.judging import EMPTY_ANSWER
from unmask.errors import ModelError
from unmask.judges.local import PREFIX, LocalJudge
from unmask.llm.client import Client, Meter, Patience, Prices
from unmask.llm.model_judge import Judgement, judge_answers
from unmask.llm.replies import ReplyStore

if TYPE_CHECKING:
    import pandas as pd

    from unmask.llm.model_judge import Readout
    from unmask.progress import Progress
    from unmask.rubrics import Rubric

JUDGEMENTS = pa.schema(
    [
        ("response_id", pa.string()),
        ("judge", pa.string()),
        ("rubric", pa.string()),
        ("score", pa.float64()),
        ("readout", pa.string()),
        ("missing_reason", pa.string()),
        ("raw", pa.string()),
    ]
)
"""One row per answer, judge and rubric. `score` 0 to 100, null where missing, with the reason; `raw` is the reply."""

PASSING = ("timeout", "unreachable", "overloaded", "unreadable", "empty", "rejected")
"""Reasons that asking again may mend: such replies are not kept."""

MOST_PASSING = 0.1
"""Above this share of such failures something is wrong with the provider, and no table is made."""


Asker = Client | LocalJudge
"""Who asks a judge: a model behind an API, or one in this process."""

_EMPTY = Judgement(None, None, EMPTY_ANSWER, "")


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge is asked. `max_usd` is for each judge."""

    readout: Readout = "json"
    concurrency: int = 8
    max_usd: float | None = None
    prices: Prices | None = None


def replies_path() -> Path:
    """The store of every reply of every model that was asked, in the cache folder: nothing is paid for twice."""
    from unmask.models.embedded import cache_folder

    return cache_folder() / "replies.sqlite"


@contextmanager
def open_client(name: str, asking: Asking) -> Generator[Asker]:
    """Who asks the model of that name, on the user's store. Raises ConfigError for an unknown name or a missing key."""
    from unmask.llm.addresses import find_model

    if name.startswith(PREFIX):
        with ReplyStore(replies_path()) as store:
            yield LocalJudge(name, store)
        return
    address = find_model(name)
    with ReplyStore(replies_path()) as store:
        yield Client(
            address,
            store,
            patience=Patience(concurrency=asking.concurrency),
            prices=asking.prices,
            max_usd=asking.max_usd,
        )


def judge_table(
    client: Asker,
    rubrics: Sequence[Rubric],
    answers: pd.DataFrame,
    *,
    asking: Asking,
    seed: int,
    progress: Progress,
    repeat: int = 0,
    answer_first: bool = False,
) -> pd.DataFrame:
    """Judgements (schema JUDGEMENTS) of all `answers` (response_id, question, text) on every rubric, in the answers' order.

    The judge sees question and answer alone, in an order shuffled over writers and rubrics. Answers without words
    are not asked about. Raises ModelError where more than one in ten requests failed for a reason that may pass; what was
    replied is kept.
    """
    progress.begin(f"judging by {client.address.name}", total=count_asked(rubrics, answers))
    found = judgements_of(
        client,
        rubrics,
        answers,
        asking=asking,
        seed=seed,
        repeat=repeat,
        answer_first=answer_first,
        on_judged=progress.advance,
    )
    progress.end()
    refuse_outage(client.address.name, found)
    return found


def count_asked(rubrics: Sequence[Rubric], answers: pd.DataFrame) -> int:
    """How many judgements a judge is asked for: none of an answer without words."""
    return len(rubrics) * len(_wordy(answers))


def judgements_of(
    client: Asker,
    rubrics: Sequence[Rubric],
    answers: pd.DataFrame,
    *,
    asking: Asking,
    seed: int,
    repeat: int = 0,
    answer_first: bool = False,
    on_judged: Callable[[int], None] = lambda _: None,
) -> pd.DataFrame:
    """As `judge_table`, without a word on how it goes, and however many requests failed. `on_judged` is told 1 after each."""
    import pandas as pd

    asked = [(number, row) for number in range(len(rubrics)) for row in _wordy(answers)]
    asked = [asked[place] for place in np.random.default_rng(seed).permutation(len(asked))]
    questions, texts = answers["question"].tolist(), answers["text"].tolist()
    found = judge_answers(
        client,
        [(rubrics[number], questions[row], texts[row]) for number, row in asked],
        readout="choice" if isinstance(client, LocalJudge) else asking.readout,
        repeat=repeat,
        answer_first=answer_first,
        on_judged=lambda *_: on_judged(1),
    )
    judged = dict(zip(asked, found, strict=True))
    tables = []
    for number, rubric in enumerate(rubrics):
        rows = [judged.get((number, row), _EMPTY) for row in range(len(answers))]
        table = pd.DataFrame([asdict(row) for row in rows], columns=["score", "readout", "missing_reason", "raw"])
        table.insert(0, "response_id", answers["response_id"].to_numpy())
        tables.append(table.assign(judge=client.address.name, rubric=rubric.name)[JUDGEMENTS.names])
    return pd.concat(tables, ignore_index=True).astype({"score": float})


def _wordy(answers: pd.DataFrame) -> list[int]:
    return [row for row, text in enumerate(answers["text"]) if text.split()]


def refuse_outage(judge: str, judgements: pd.DataFrame) -> None:
    """Raise ModelError where too many judgements on one rubric are missing for a reason that may pass."""
    asked = judgements[judgements["missing_reason"] != EMPTY_ANSWER]
    for rubric, part in asked.groupby("rubric", sort=False):
        failed = part.loc[part["missing_reason"].isin(PASSING), "missing_reason"]
        if len(failed) > MOST_PASSING * len(part):
            reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(failed).most_common())
            raise ModelError(
                f"{judge} gave no usable reply to {len(failed)} of {len(part)} requests on {rubric} ({reasons})",
                mend="Every reply that came is kept: run again to ask for the rest",
            )


def usage_text(meter: Meter) -> str:
    """What asking came to, in words."""
    known = f"{meter.usd:.4f} USD" if not meter.usd_unknown else "cost unknown: give `prices`"
    tokens = f"{meter.prompt_tokens:,} + {meter.completion_tokens:,} tokens"
    return f"asked {meter.asked:,} ({meter.tries:,} tries), {meter.from_store:,} known already, {tokens}, {known}"
