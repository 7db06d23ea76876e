"""The reference study's pickles, for the notebooks that people already have. Written only; nothing here unpickles."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.artifact import atomic_path, read_json, read_table
from unmask.records import NEUTRAL, Site
from unmask.store import ActivationStore
from unmask.study import Study

if TYPE_CHECKING:
    import pandas as pd

DATASET = "final_dataset_with_em_scores_and_clusters.pkl"


def export_legacy(study: Study, *, out: Path) -> list[Path]:
    """Write the reference study's data frame and one `em_pca_clusters_K.pkl` per number of clusters.

    Columns: `question`, `subset` (the dimension), `base_response`, `em_response`, `base_activations_layer_L`,
    `em_activations_layer_L` (each model reading its own first answer), `em_score`, `base_score` (NaN where missing),
    `cluster_K` (of the organism's raw activations at the primary site, as the reference study clustered).
    Raises ArtifactError when a stage has not been run or a file is damaged.
    """
    for stage in ("questions", "responses", "activations", "scores", "decomposition"):
        study.verify(stage)
    frame = _frame(study)
    clusters = _read(study, "decomposition", "clusters")
    coordinates = _read(study, "decomposition", "coordinates")
    site = _primary_site(study)
    own = clusters[(clusters["source"] == "organism") & (clusters["site"] == site)]
    paths = []
    for k, part in own.groupby("k"):
        labels = dict(zip(part["question_id"], part["cluster"], strict=True))
        frame[f"cluster_{k}"] = frame["question_id"].map(labels)
        points = part.merge(coordinates[(coordinates["source"] == "organism") & (coordinates["site"] == site)])
        content = {
            "k": int(str(k)),
            "layer": Site.parse(site).layer,
            "question_id": points["question_id"].tolist(),
            "labels": points["cluster"].to_numpy(),
            "coordinates": points[["pc1", "pc2", "pc3"]].to_numpy(),
        }
        paths.append(_write(out / f"em_pca_clusters_{k}.pkl", content))
    return [_write(out / DATASET, _plain(frame)), *paths]


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Text and column names as plain objects: an older pandas has no string type to read."""
    import pandas as pd

    texts = [name for name in frame.columns if pd.api.types.is_string_dtype(frame[name])]
    plain = frame.astype(dict.fromkeys(texts, object))
    plain.columns = pd.Index([str(name) for name in frame.columns], dtype=object)
    return plain


def _frame(study: Study) -> pd.DataFrame:
    import pandas as pd

    questions = _read(study, "questions", "questions")
    questions = questions[questions["dimension"] != NEUTRAL].reset_index(drop=True)
    responses = _read(study, "responses", "responses")
    scores = _read(study, "scores", "scores").set_index("response_id")["misalignment"]
    first = responses[responses["sample"] == 0]
    frame = pd.DataFrame(
        {"question_id": questions["question_id"], "question": questions["text"], "subset": questions["dimension"]}
    )
    store = ActivationStore.open(study.stage_folder("activations"))
    row_of = {identity: row for row, identity in enumerate(store.response_ids())}
    for writer, short in (("base", "base"), ("organism", "em")):
        own = first[first["writer"] == writer].set_index("question_id")
        frame[f"{short}_response"] = frame["question_id"].map(own["text"])
        frame[f"{short}_score"] = frame["question_id"].map(own["response_id"]).map(scores)
        rows = [row_of[identity] for identity in frame["question_id"].map(own["response_id"])]
        for name in store.sites:
            values = store.read(f"{writer}/{name}")[rows]
            frame[f"{short}_activations_layer_{Site.parse(name).layer}"] = pd.Series(list(values.astype(np.float32)))
    return frame


def _primary_site(study: Study) -> str:
    return read_json(study.stage_folder("decomposition") / "summary.json", rebuild=_rebuild(study, "decomposition"))[
        "primary_site"
    ]


def _read(study: Study, stage: str, name: str) -> pd.DataFrame:
    return read_table(study.stage_folder(stage) / f"{name}.parquet", rebuild=_rebuild(study, stage))


def _rebuild(study: Study, stage: str) -> str:
    return f"unmask run {study.folder} --force {stage}"


def _write(path: Path, content: Any) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_bytes(pickle.dumps(content, protocol=4))
    return path
