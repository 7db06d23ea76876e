"""The decomposition's choices, and that rows of the store meet the questions they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unmask.errors import ConfigError
from unmask.records import Site
from unmask.stages.decomposition import DecompositionConfig, choose_k, choose_primary_k, primary_site
from unmask.store import ActivationStore, question_means, write_index, write_shard

SITE = "blocks.1.hook_resid_pre"


def responses_of(questions: int, samples: int) -> pd.DataFrame:
    rows = [
        {"response_id": f"q{q}/{s}/{w}", "question_id": f"q{q}", "writer": w, "tokens": 5}
        for q in range(questions)
        for s in range(samples)
        for w in ("base", "organism")
    ]
    return pd.DataFrame(rows)


def planted(response_id: str) -> np.ndarray:
    """A vector that says which response it belongs to."""
    question, sample, writer = response_id.split("/")
    return np.array([float(question[1:]), 100.0 * int(sample), 1e4 if writer == "organism" else -1e4])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_question_means_follow_ids_whatever_the_order_of_shards_and_rows(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    responses = responses_of(7, 3)
    order = rng.permutation(responses["response_id"].to_numpy())
    for number, part in enumerate(np.array_split(order, 4)):
        values = np.stack([planted(identity) for identity in part])
        write_shard(tmp_path, number, {f"organism/{SITE}": values}, [str(identity) for identity in part])
    write_index(tmp_path, sites=[SITE], width=3, dtype="float64")
    store = ActivationStore.open(tmp_path)
    shuffled = responses.sample(frac=1, random_state=seed)
    means = question_means(store.read(f"organism/{SITE}"), store.response_ids(), shuffled, writer="organism")
    assert set(means) == {f"q{q}" for q in range(7)}
    for q in range(7):
        np.testing.assert_allclose(means[f"q{q}"], [q, 100.0, 1e4])


def test_empty_responses_are_left_out_of_a_question_mean() -> None:
    responses = responses_of(1, 2)
    responses.loc[responses["response_id"] == "q0/1/organism", "tokens"] = 0
    ids = responses["response_id"].tolist()
    values = np.stack([planted(identity) for identity in ids])
    values[ids.index("q0/1/organism")] = np.nan
    np.testing.assert_allclose(question_means(values, ids, responses, writer="organism")["q0"], [0, 0, 1e4])


def test_default_numbers_of_clusters_are_those_with_two_questions_each() -> None:
    assert choose_k(DecompositionConfig(), 885) == (3, 4, 5, 7, 15, 50)
    assert choose_k(DecompositionConfig(), 80) == (3, 4, 5, 7, 15)
    with pytest.raises(ConfigError, match="5 questions are too few"):
        choose_k(DecompositionConfig(), 5)


def test_a_number_of_clusters_that_was_asked_for_is_never_dropped() -> None:
    assert choose_k(DecompositionConfig(k=(7, 3, 3)), 8) == (3, 7)
    with pytest.raises(ConfigError, match="8 clusters of 8 questions"):
        choose_k(DecompositionConfig(k=(3, 8)), 8)


def test_the_primary_clustering_is_the_named_one_or_an_error() -> None:
    assert choose_primary_k(DecompositionConfig(primary_k=7), (3, 7)) == 7
    assert choose_primary_k(DecompositionConfig(), (3,)) == 3
    for config in (DecompositionConfig(k=(3, 7)), DecompositionConfig(primary_k=4)):
        with pytest.raises(ConfigError, match="primary_k is 4, clusterings are made with k = 3, 7"):
            choose_primary_k(config, (3, 7))


def test_the_primary_site_is_the_named_layer_or_the_middle_one() -> None:
    sites = [Site(layer, "resid_pre") for layer in (10, 15, 20, 25)]
    assert primary_site(DecompositionConfig(), sites).layer == 15
    assert primary_site(DecompositionConfig(primary_layer=20), sites).layer == 20
    with pytest.raises(ConfigError, match="primary_layer is 12"):
        primary_site(DecompositionConfig(primary_layer=12), sites)
