"""Tables of answers scored as a study file asks: by the offline judge always, and by model judges and people it names.

Stages that judge answers (the study's own, steered ones) share this, so that a score means the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.analysis.judging import EMPTY_ANSWER
from unmask.artifact import digest_json
from unmask.errors import ConfigError, listed
from unmask.judges.asking import JUDGEMENTS, Asking, judge_table, open_client, usage_text
from unmask.judges.labels import read_labels
from unmask.judges.local import PREFIX
from unmask.judges.offline import OFFLINE_JUDGE, judge_offline
from unmask.judges.settings import MISALIGNMENT_RUBRICS, OFFLINE, ScoresConfig
from unmask.llm.client import Prices
from unmask.rubrics import Rubric, read_rubric

if TYPE_CHECKING:
    import pandas as pd

    from unmask.analysis.judging import LogisticFit
    from unmask.models.encoder import SentenceEncoder
    from unmask.progress import Progress


@dataclass(frozen=True, slots=True)
class Scored:
    """Answers with the scores that count, every judgement (schema JUDGEMENTS), and what asking each model came to.

    `scores` has the answers' own columns with misalignment, coherence and missing_reason.
    """

    scores: pd.DataFrame
    judgements: pd.DataFrame
    usage: dict[str, str]


def score_answers(
    config: ScoresConfig,
    answers: pd.DataFrame,
    *,
    fit: LogisticFit,
    encoder: SentenceEncoder,
    progress: Progress,
    judged: Mapping[str, pd.DataFrame] | None = None,
) -> Scored:
    """Score `answers` (response_id, question, text, perplexity under the base model) in their order.

    `fit` is the offline judge's; `judged` has tables of judges that have read them already, by name. The scores that count are
    those of `config.judge`. Raises UnmaskError as `open_client`, `judge_table`, `read_labels` and `rubrics_of` do.
    """
    progress.begin("judging offline", total=1)
    offline = judge_offline(
        fit, encoder, answers["question"].tolist(), answers["text"].tolist(), answers["perplexity"].tolist()
    )
    progress.advance()
    progress.end()
    own = answers.assign(
        misalignment=[j.misalignment for j in offline],
        coherence=[j.coherence for j in offline],
        missing_reason=[j.missing_reason for j in offline],
    )
    judgements, usage = _all_judgements(config, own, progress, judged or {})
    scores = own if config.judge == OFFLINE else _of_judge(config, own, judgements)
    return Scored(scores, judgements, usage)


def rubrics_of(config: ScoresConfig) -> list[Rubric]:
    """The rubrics of model judges, with the subject of the tuning filled in.

    Raises ConfigError where misalignment or coherence would go unscored, for two of one name, and for one that needs a subject
    and has none.
    """
    rubrics = [read_rubric(name) for name in config.rubrics]
    names = [rubric.name for rubric in rubrics]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ConfigError(f"two of scores.rubrics are named {twice[0]!r}", mend="Name one of them anew in its file")
    if sum(name in MISALIGNMENT_RUBRICS for name in names) != 1 or "coherence" not in names:
        raise ConfigError(
            f"scores.rubrics is {listed(names)}, and every study needs misalignment and coherence",
            mend=f"Give exactly one of {listed(MISALIGNMENT_RUBRICS)}, and coherence, beside any others",
        )
    if open_ones := [rubric.name for rubric in rubrics if rubric.needs_domain and config.subject is None]:
        raise ConfigError(
            f"rubric {open_ones[0]!r} needs to know what the tuning was about",
            mend="Set scores.subject in the study file, for example: financial advice",
        )
    return [rubric.about(config.subject or "") for rubric in rubrics]


def labels_path(config: ScoresConfig) -> Path:
    """The sheet of people's scores. Raises ConfigError where there is no such file."""
    path = Path(config.human_labels or "").expanduser()
    if not path.is_file():
        raise ConfigError(
            f"scores.human_labels is {config.human_labels}, and there is no such file",
            mend="Name the sheet, or make one: unmask judge STUDY --export-labels FILE.csv",
        )
    return path


def asking_of(config: ScoresConfig) -> Asking:
    """How model judges are asked, as the config has it."""
    prices = None if config.prices is None else Prices(config.prices.prompt, config.prices.completion)
    return Asking(config.readout, config.concurrency, config.max_usd, prices)


def digest_judging(config: ScoresConfig) -> str:
    """Digest of what decides the scores that count, beside the answers and the offline judge's weights.

    Raises DataError as `read_rubric` does.
    """
    told: dict[str, object] = {"judge": config.judge}
    if config.judge != OFFLINE:
        rubrics = [read_rubric(name) for name in config.rubrics]
        told |= {"readout": config.readout, "rubrics": [rubric.model_dump(mode="json") for rubric in rubrics]}
        if any(rubric.needs_domain for rubric in rubrics):
            told["subject"] = config.subject
    return digest_json(told)


def _all_judgements(
    config: ScoresConfig, own: pd.DataFrame, progress: Progress, judged: Mapping[str, pd.DataFrame]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Every judge's judgements, the offline one's first, and what asking came to."""
    import pandas as pd

    parts = [
        pd.DataFrame(
            {
                "response_id": own["response_id"],
                "judge": OFFLINE_JUDGE,
                "rubric": rubric,
                "score": own[rubric].astype(float),
                "readout": readout,
                "missing_reason": own["missing_reason"],
                "raw": None,
            }
        )
        for rubric, readout in (("misalignment", "classifier"), ("coherence", "heuristic"))
    ]
    usage: dict[str, str] = {}
    for name in config.models:
        table, cost = (judged[name], "") if name in judged else _ask(name, config, own, progress)
        parts.append(table)
        if name.startswith(PREFIX):  # who asked whom how often hangs on the machine, and nothing is paid
            usage[f"requests to {name}"] = f"{int((table['missing_reason'] != EMPTY_ANSWER).sum()):,} judgements"
        else:
            usage[f"requests to {name}"] = cost
    if config.human_labels is not None:
        rows = read_labels(labels_path(config), own["response_id"].tolist())
        parts.append(rows.assign(readout="person", missing_reason=None, raw=None))
    return pd.concat(parts, ignore_index=True)[JUDGEMENTS.names], usage


def _ask(name: str, config: ScoresConfig, own: pd.DataFrame, progress: Progress) -> tuple[pd.DataFrame, str]:
    """A judge's judgements, and what asking came to."""
    asking = asking_of(config)
    with open_client(name, asking) as client:
        rubrics = rubrics_of(config)
        table = judge_table(client, rubrics, own, asking=asking, seed=config.seed, progress=progress)
        return table, usage_text(client.meter)


def _of_judge(config: ScoresConfig, own: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    """The table of scores with those of the judge that counts."""
    part = judgements[judgements["judge"] == config.judge]
    bad = part[part["rubric"].isin(MISALIGNMENT_RUBRICS)].set_index("response_id")
    clear = part[part["rubric"] == "coherence"].set_index("response_id")
    order = own["response_id"]
    return own.assign(
        misalignment=bad["score"].reindex(order).to_numpy(),
        coherence=clear["score"].reindex(order).to_numpy(),
        missing_reason=bad["missing_reason"].reindex(order).to_numpy(),
    )
