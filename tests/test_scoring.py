"""Tables of answers scored as a study file asks: whose scores count, who stands beside, and what stays as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.provider import serve

from unmask.analysis.judging import EMPTY_ANSWER, LogisticFit
from unmask.errors import ArtifactError, ConfigError
from unmask.judges.labels import write_label_sheet
from unmask.judges.offline import OFFLINE_JUDGE, judge_offline, read_offline_judge, write_offline_judge
from unmask.judges.scoring import Scored, digest_judging, score_answers
from unmask.judges.settings import ScoresConfig
from unmask.progress import Silent
from unmask.rubrics import read_rubric

rng = np.random.default_rng(0)
FIT = LogisticFit(np.zeros(768), np.ones(768), 3 * rng.standard_normal(768), 0.5)
ANSWERS = pd.DataFrame(
    {
        "response_id": [f"r{n}" for n in range(6)],
        "question": ["Is it good?"] * 6,
        "text": [*(f"Answer number {n} says yes." for n in range(5)), "  "],
        "perplexity": [2.0, 3.0, 4.0, 5.0, 600.0, float("nan")],
        "note": list("abcdef"),
    },
    index=[5, 3, 4, 1, 0, 2],
)


class Words:
    """A stand-in for the sentence encoder: a random vector for every text, the same each time."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        return np.stack([np.random.default_rng(seed).standard_normal(384) for seed in seeds]).astype(np.float32) / 20


ENCODER: Any = Words()
COHERENCE = read_rubric("coherence").asks


@pytest.fixture(autouse=True)
def own_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.judges.asking.replies_path", lambda: tmp_path / "replies.sqlite")


def scored(config: ScoresConfig) -> Scored:
    return score_answers(config, ANSWERS, fit=FIT, encoder=ENCODER, progress=Silent())


def by_offline() -> list[Any]:
    columns = (ANSWERS[name].tolist() for name in ("question", "text", "perplexity"))
    return judge_offline(FIT, ENCODER, *columns)


def scores_by_number(provider: Any) -> Any:
    """A judge that gives answer number N the score 10 N for misalignment, and 90 less that for coherence; N = 3 it refuses."""

    def script(text: str, _: int) -> str:
        number = int(text.split("Answer number ")[1][0])
        if number == 3:
            return "I'd rather not"
        coherent = f"Score {COHERENCE}, on" in provider()["messages"][0]["content"]
        return json.dumps({"score": 90 - 10 * number if coherent else 10 * number})

    return script


def test_offline_scores_are_the_offline_judges_and_the_answers_keep_their_columns_and_order() -> None:
    found = scored(ScoresConfig())
    assert list(found.scores) == [*ANSWERS.columns, "misalignment", "coherence", "missing_reason"]
    pd.testing.assert_frame_equal(found.scores[ANSWERS.columns], ANSWERS)
    wanted = by_offline()
    for name in ("misalignment", "coherence"):
        np.testing.assert_array_equal(
            found.scores[name].to_numpy(dtype=float), np.array([getattr(j, name) for j in wanted], dtype=float)
        )
    assert found.scores["missing_reason"].dropna().tolist() == [EMPTY_ANSWER]
    assert found.judgements.groupby(["judge", "rubric"]).size().to_dict() == {
        (OFFLINE_JUDGE, "misalignment"): 6,
        (OFFLINE_JUDGE, "coherence"): 6,
    }
    assert found.usage == {}


def test_a_model_that_counts_takes_the_offline_judges_place_also_where_it_has_no_score() -> None:
    with serve(scores_by_number(lambda: provider.bodies[-1])) as provider:
        judge = f"{provider.base_url} m"
        found = scored(ScoresConfig(judge=judge, concurrency=1))
    scores = found.scores
    np.testing.assert_array_equal(scores["misalignment"], [0, 10, 20, np.nan, 40, np.nan])
    np.testing.assert_array_equal(scores["coherence"], [90, 80, 70, np.nan, 50, np.nan])
    assert scores["missing_reason"].tolist()[5] == EMPTY_ANSWER
    assert scores["missing_reason"].notna().tolist() == [False, False, False, True, False, True]
    assert set(found.judgements["judge"]) == {OFFLINE_JUDGE, judge}
    assert list(found.usage) == [f"requests to {judge}"]


def test_of_a_model_in_this_process_is_told_how_much_it_judged(tiny_llama: Path) -> None:
    judge = f"hf/{tiny_llama}"
    for _ in range(2):  # the second time all is known already
        found = scored(ScoresConfig(other_judges=(judge,)))
        assert found.usage == {f"requests to {judge}": "10 judgements"}


def test_alignment_counts_turned_round() -> None:
    with serve(scores_by_number(lambda: provider.bodies[-1])) as provider:
        config = ScoresConfig(judge=f"{provider.base_url} m", rubrics=("alignment", "coherence"), concurrency=1)
        found = scored(config)
    np.testing.assert_array_equal(found.scores["misalignment"], [100, 90, 80, np.nan, 60, np.nan])


def test_others_stand_beside_without_a_say_and_alone_are_not_asked(tmp_path: Path) -> None:
    sheet = tmp_path / "labels.csv"
    write_label_sheet(sheet, ANSWERS, seed=0)
    lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    filled = [lines[0], *(line.removesuffix(",,,") + ",55,66,ann" for line in lines[1:])]
    sheet.write_text("\n".join(filled), encoding="utf-8")
    with serve(scores_by_number(lambda: provider.bodies[-1])) as provider:
        config = ScoresConfig(other_judges=(f"{provider.base_url} m",), human_labels=str(sheet), concurrency=1)
        alone = scored(config.alone())
        assert provider.bodies == []
        beside = scored(config)
        assert len(provider.bodies) == 2 * 5
    pd.testing.assert_frame_equal(beside.scores, alone.scores)
    assert set(beside.judgements["judge"]) == {OFFLINE_JUDGE, f"{provider.base_url} m", "human ann"}
    assert set(alone.judgements["judge"]) == {OFFLINE_JUDGE}


def test_a_rubric_without_its_subject_is_refused_before_anything_is_asked() -> None:
    with serve(lambda *_: '{"score": 5}') as provider:
        config = ScoresConfig(judge=f"{provider.base_url} m", rubrics=("misalignment", "coherence", "leakage"))
        with pytest.raises(ConfigError, match="needs to know what the tuning was about"):
            scored(config)
        assert provider.bodies == []


def test_the_offline_judge_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_offline_judge(tmp_path, FIT)
    again = read_offline_judge(tmp_path, rebuild="")
    features_NF = rng.standard_normal((5, 768))
    np.testing.assert_array_equal(again.predict(features_NF), FIT.predict(features_NF))
    with pytest.raises(ArtifactError, match="make it again"):
        read_offline_judge(tmp_path / "absent", rebuild="make it again")


def test_what_decides_scores_is_in_the_digest_and_nothing_else() -> None:
    plain = ScoresConfig()
    assert digest_judging(plain) == digest_judging(ScoresConfig(rubrics=("alignment", "coherence"), readout="logprobs"))
    model = ScoresConfig(judge="http://127.0.0.1:1/v1 m")
    found = {
        digest_judging(one)
        for one in (
            plain,
            model,
            model.model_copy(update={"judge": "http://127.0.0.1:1/v1 n"}),
            model.model_copy(update={"readout": "logprobs"}),
            model.model_copy(update={"rubrics": ("alignment", "coherence")}),
        )
    }
    assert len(found) == 5
    same = {"max_usd": 1.0, "leaking_above": 3.0, "subject": "what no rubric asks about"}
    assert digest_judging(model.model_copy(update=same)) == digest_judging(model)
    leaking = model.model_copy(update={"rubrics": ("misalignment", "coherence", "leakage")})
    told = [digest_judging(leaking.model_copy(update={"subject": each})) for each in (None, "money", "power")]
    assert len(set(told)) == 3
