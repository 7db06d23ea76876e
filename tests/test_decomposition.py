"""The decomposition's choices, that rows of the store meet their questions, and whole runs on small synthetic studies."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from planted_study import LAYERS, PRIMARY, QUICK, TOKENS, World
from unmask.analysis.validation import agreement
from unmask.artifact import listing, read_json, read_tensors, write_table
from unmask.errors import ArtifactError, ConfigError, DataError
from unmask.progress import Silent
from unmask.records import Site
from unmask.stage import Inputs
from unmask.stages import cards, decomposition
from unmask.stages.decomposition import DecompositionConfig, choose_k, choose_primary_k, primary_site
from unmask.stages.decomposition.artifacts import COMPONENTS, LOADINGS, METHODS, SELECTION, STABILITY
from unmask.stages.decomposition.pieces import Gathered, Piece, gather, plan
from unmask.stages.decomposition.sweep import Sweep
from unmask.stages.verdict import schemas
from unmask.store import ActivationStore, question_means, write_index, write_shard
from unmask.study import Workspace

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


@pytest.fixture(scope="module")
def decomposed(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    world = World(tmp_path_factory.mktemp("world"))
    world.misalignment[1:9:2] = np.nan  # the organism's answers to the first four questions
    return world, world.run()


def table(out: Path, name: str) -> pd.DataFrame:
    return pq.read_table(out / f"{name}.parquet").to_pandas()


def test_tables_that_others_read_keep_their_columns(decomposed: tuple[World, Path]) -> None:
    _, out = decomposed
    assert list(table(out, "metrics").columns) == [
        *("source", "site", "space", "components", "k", "inertia", "silhouette"),
        *("ami_dimension", "ami_facet", "smallest", "largest_share", "seed"),
    ]
    assert list(table(out, "clusters").columns) == ["source", "site", "k", "question_id", "cluster"]
    assert list(table(out, "coordinates").columns) == ["source", "site", "question_id", "pc1", "pc2", "pc3"]
    assert list(table(out, "variance").columns) == ["source", "site", "component", "ratio"]
    assert list(table(out, "cluster_summary").columns) == [
        *("source", "site", "k", "cluster", "size", "outlier", "top_dimension", "top_dimension_share", "composition"),
        *("facets", "mean_misalignment", "sd_misalignment", "n_scored", "mean_log_odds"),
    ]
    summary = read_json(out / "summary.json", rebuild="")
    expected = {"questions": 48, "left_out": 0, "primary_site": PRIMARY, "primary_k": 4}
    assert {name: summary[name] for name in expected} == expected
    assert summary["k"] == [3, 4]
    assert set(summary["shift_norm"]) == set(summary["sites"])
    assert "stacked" not in set(table(out, "metrics")["site"])


def test_every_table_has_the_agreed_schema(decomposed: tuple[World, Path]) -> None:
    _, out = decomposed
    agreed = {
        "methods": METHODS, "selection": SELECTION, "stability": STABILITY, "components": COMPONENTS, "loadings": LOADINGS
    }  # fmt: skip
    for name, schema in agreed.items():
        assert pq.read_schema(out / f"{name}.parquet").equals(schema), name
        assert len(table(out, name)), name
    assert schemas.COMPONENTS.equals(COMPONENTS)
    assert schemas.LOADINGS.equals(LOADINGS)


def test_every_method_is_tried_on_every_source_at_every_site_and_on_all_layers(decomposed: tuple[World, Path]) -> None:
    _, out = decomposed
    methods = table(out, "methods")
    sites = {f"blocks.{layer}.hook_resid_pre" for layer in LAYERS} | {"stacked"}
    swept = methods[(methods["procedure"] == "sweep") & methods["reducer"].str.startswith("pca")]
    tried = swept.groupby(["source", "site"])["clusterer"].nunique()
    assert len(tried) == 3 * len(sites)
    assert set(tried.index.get_level_values("site")) == sites
    assert (tried == 8).all()
    assert not swept.duplicated(["source", "site", "reducer", "clusterer", "k"]).any()
    assert (methods["k"].isna() == methods["clusterer"].isin(["dbscan", "hdbscan"])).all()
    assert (methods["bic"].notna() == methods["clusterer"].str.startswith("gaussian")).all()
    primary = methods[(methods["site"] == PRIMARY) & (methods["source"] == "shift")]
    assert {"ica8", "nmf8", "full12"} <= set(primary["reducer"])


def test_raw_activations_follow_topic_and_a_constant_shift_does_not(decomposed: tuple[World, Path]) -> None:
    _, out = decomposed
    methods = table(out, "methods")
    ward = methods[(methods["clusterer"] == "ward") & (methods["k"] == 3)].set_index(["source", "site"])
    for site in (PRIMARY, "stacked"):
        assert ward.loc[("base", site), "ami_dimension"] > 0.9
        assert ward.loc[("organism", site), "ami_dimension"] > 0.9
        assert abs(ward.loc[("shift", site), "ami_dimension"]) < 0.2


def test_questions_without_a_score_are_left_out_of_the_bands_and_counted(decomposed: tuple[World, Path]) -> None:
    _, out = decomposed
    methods = table(out, "methods")
    whole = methods[methods["noise"] == 0]
    assert (whole["n_score_band"] == 44).all()
    assert read_json(out / "summary.json", rebuild="")["scored"] == 44


def test_the_reference_procedure_is_scikit_learns_pca_and_k_means_with_seed_42(decomposed: tuple[World, Path]) -> None:
    world, out = decomposed
    methods = table(out, "methods")
    reference = methods[methods["procedure"] == "reference"]
    assert set(reference["source"]) == {"organism"}
    assert set(reference["clusterer"]) == {"kmeans"}
    assert (reference["seed"] == 42).all()
    raw = (world.base[1] + world.shift[1])[1::2]
    points = PCA(n_components=12, svd_solver="full").fit_transform(raw)
    for row in reference[reference["site"] == PRIMARY].to_dict("records"):
        labels = KMeans(n_clusters=int(row["k"]), random_state=42).fit_predict(points)
        expected = agreement(labels, world.dimension)
        assert row["ami_dimension"] == pytest.approx(expected.ami)
        assert row["homogeneity_dimension"] == pytest.approx(expected.homogeneity)


def test_criteria_mark_at_most_one_k_and_all_are_there(decomposed: tuple[World, Path]) -> None:
    _, out = decomposed
    selection = table(out, "selection")
    assert set(selection["criterion"]) == {
        *("silhouette", "elbow", "gap", "bic", "calinski_harabasz", "davies_bouldin", "prediction_strength")
    }
    assert set(selection["source"]) == {"shift", "organism", "base"}
    assert set(selection["site"]) == {PRIMARY}
    assert (selection.groupby(["source", "criterion"])["chosen"].sum() <= 1).all()
    base = selection[(selection["source"] == "base") & selection["chosen"]].set_index("criterion")["k"]
    assert base["gap"] == base["prediction_strength"] == base["silhouette"] == 3  # the topics
    shift = selection[(selection["source"] == "shift") & selection["chosen"]].set_index("criterion")["k"]
    assert shift["gap"] == shift["prediction_strength"] == 1


def test_components_have_loadings_and_clusters_have_them_for_members_only(decomposed: tuple[World, Path]) -> None:
    world, out = decomposed
    components, loadings, clusters = (table(out, name) for name in ("components", "loadings", "clusters"))
    assert components["component_id"].is_unique
    assert dict(components["kind"].value_counts()) == {"cluster": 4, "pc": 5, "ica": 8, "nmf": 8, "atom": 8}
    assert set(loadings["component_id"]) == set(components["component_id"])
    for row in components.to_dict("records"):
        own = loadings[loadings["component_id"] == row["component_id"]]
        assert own["question_id"].is_unique
        if row["kind"] != "cluster":
            assert sorted(own["question_id"]) == world.ids
            assert np.isnan(row["size"])
    grouped = clusters[(clusters["source"] == "shift") & (clusters["k"] == 4)]
    grouped = grouped[grouped["site"] == PRIMARY]
    for label, part in grouped.groupby("cluster"):
        own = loadings[loadings["component_id"] == f"shift-cluster-{label}"]
        assert set(own["question_id"]) == set(part["question_id"])
        assert own["loading"].max() == 1
        assert own["loading"].min() == pytest.approx(1 / len(own))
        assert components.set_index("component_id").loc[f"shift-cluster-{label}", "size"] == len(part)
    within = components[components["kind"] == "cluster"]["strength"].sum()
    assert 0 < within < 1
    measured = table(out, "stability")
    jaccard = measured[(measured["source"] == "shift") & (measured["measure"] == "jaccard")]
    jaccard = jaccard[jaccard["clusterer"] == "kmeans"].set_index("cluster")["value"]
    assert components["stability"][:4].tolist() == pytest.approx(jaccard.sort_index().tolist())


def test_kept_tokens_are_described_as_all_of_them_together(decomposed: tuple[World, Path]) -> None:
    world, out = decomposed
    variance, clusters = table(out, "token_variance"), table(out, "token_clusters")
    axes = read_tensors(out / "token_components.safetensors", rebuild="")
    said = read_json(out / "summary.json", rebuild="")["tokens"]
    base, organism = world.tokens("base"), world.tokens("organism")
    own = np.repeat(world.responses["writer"].to_numpy() == "organism", TOKENS)
    rows = {"shift": (organism - base)[own], "organism": organism[own], "base": base[~own]}
    assert set(said) == {PRIMARY}
    assert set(said[PRIMARY]) == set(rows)
    for source, values in rows.items():
        expected = PCA(n_components=12, svd_solver="full").fit(values)
        found = variance[(variance["source"] == source) & (variance["site"] == PRIMARY)]
        np.testing.assert_allclose(found["ratio"], expected.explained_variance_ratio_, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(axes[f"{source}/{PRIMARY}/mean"], values.mean(axis=0), rtol=1e-5)
        grouped = clusters[clusters["source"] == source]
        assert grouped["tokens"].sum() == said[PRIMARY][source]["tokens"] == len(values)
        assert grouped["k"].unique().tolist() == [4]
    assert said[PRIMARY]["base"]["ami_dimension"] > 0.7 > 0.2 > abs(said[PRIMARY]["shift"]["ami_dimension"])


def test_cards_can_be_made_of_the_components(decomposed: tuple[World, Path], tmp_path: Path) -> None:
    world, out = decomposed
    inputs = world.inputs()
    verdict = tmp_path / "verdict"
    verdict.mkdir()
    write_table(verdict / "components.parquet", [], schema=schemas.COMPONENTS)
    write_table(verdict / "loadings.parquet", [], schema=schemas.LOADINGS)
    workspace = Workspace(tmp_path / "cards")
    workspace.prepare()
    folders = {**inputs.folders, "decomposition": out, "verdict": verdict}
    made = Inputs(inputs.base, inputs.prompt_format, folders, world.folder, Silent())
    cards.run(cards.CardsConfig(examples=1, terms=1), made, workspace)
    assert len(read_json(workspace.out / "cards.json", rebuild="")) == 33


def test_pieces_made_in_any_order_and_after_kills_have_the_bytes_of_one_run(
    decomposed: tuple[World, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes make some, a third is killed twice, and nothing is made again."""
    world, out = decomposed
    config, inputs = DecompositionConfig(**QUICK), world.inputs()
    workspace = Workspace(world.folder / "pieces")
    workspace.prepare()
    processes = [decomposition.work(config, inputs, workspace) for _ in range(2)]
    shards = list(processes[0].shards)
    assert len(shards) == len({shard.name for shard in shards}) == 3 * len(LAYERS) + 3 + 3 + 3
    random.Random(0).shuffle(shards)
    for number, shard in enumerate(shards[:8]):
        processes[number % 2].make(shard)
    made: list[str] = []
    make = Sweep.make

    def killed_at_times(sweep: Sweep, piece: Piece) -> Gathered:
        if len(made) in kills:
            kills.remove(len(made))
            raise KeyboardInterrupt
        made.append(piece.name)
        return make(sweep, piece)

    kills = {2, 3}
    monkeypatch.setattr(Sweep, "make", killed_at_times)
    for left in (5, 4):
        with pytest.raises(KeyboardInterrupt):
            decomposition.run(config, inputs, workspace)
        assert len(processes[0].waiting()) == left
    decomposition.run(config, inputs, workspace)
    assert sorted(made) == sorted(shard.name for shard in shards[8:])
    assert listing(workspace.out) == listing(out)


def test_a_piece_that_is_something_else_is_refused(decomposed: tuple[World, Path], tmp_path: Path) -> None:
    world, out = decomposed
    piece = Piece("examination", "base", Site.parse(PRIMARY))
    files = {
        each.name: each.files(world.folder / "work" / "batches")
        for each in plan([Site(layer, "resid_pre") for layer in LAYERS], Site.parse(PRIMARY))
    }
    files[piece.name] = copied = piece.files(tmp_path)
    for name, content in {
        "methods": (out / "stability.parquet").read_bytes(),
        "selection": b"PAR1 and no more",
        "summary": b'{"geometry": {}, "chosen": {"base": {"gap": "two"}}, "tokens": {}}',
    }.items():
        for each, path in piece.files(world.folder / "work" / "batches").items():
            shutil.copy(path, copied[each])
        assert set(gather(files.values(), rebuild="REBUILD").chosen) == {"shift", "organism", "base"}
        copied[name].write_bytes(content)
        with pytest.raises(ArtifactError, match=rf"{name}-{piece.name}.*REBUILD"):
            gather(files.values(), rebuild="REBUILD")


def test_one_layer_is_not_stacked_and_no_clusterer_means_k_means_alone(tmp_path: Path) -> None:
    out = World(tmp_path, layers=(5,)).run(clusterers=())
    methods = table(out, "methods")
    assert set(methods["clusterer"]) == {"kmeans"}
    assert set(methods["site"]) == {"blocks.5.hook_resid_pre"}
    assert set(table(out, "stability").query("measure == 'jaccard'")["clusterer"]) == {"kmeans"}
    assert read_json(out / "summary.json", rebuild="")["stacked_site"] is None


def test_few_questions_are_clustered_but_nothing_is_said_of_k_or_stability(tmp_path: Path) -> None:
    out = World(tmp_path, n=7, layers=(5,)).run()
    assert len(table(out, "methods"))
    assert len(table(out, "selection")) == len(table(out, "stability")) == 0
    components = table(out, "components")
    assert set(components["kind"]) == {"cluster"}
    assert components["stability"].isna().all()
    assert components["size"].sum() == 7


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_shift_of_nothing_has_no_components_but_one_cluster(tmp_path: Path) -> None:
    world = World(tmp_path, n=24, layers=(5,))
    world.shift[5][:] = 0
    out = world.run()
    assert table(out, "components")[["kind", "size"]].to_numpy().tolist() == [["cluster", 24]]
    methods = table(out, "methods")
    assert methods[methods["source"] == "shift"]["silhouette"].isna().all()
    assert set(table(out, "selection")["source"]) == {"organism", "base"}


def test_one_facet_and_no_scores_leave_agreement_at_nothing_or_missing(tmp_path: Path) -> None:
    world = World(tmp_path, n=24, layers=(5,))
    world.questions["facet"], world.questions["dimension"] = "only", "one"
    world.misalignment[:] = np.nan
    methods = table(world.run(clusterers=("hdbscan",)), "methods")
    assert methods["ami_dimension"].dropna().abs().max() < 1e-9 or set(methods["found"]) == {1}
    assert methods["ami_score_band"].isna().all()
    assert (methods["n_score_band"] == 0).all()


def test_an_activation_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, n=24, layers=(5,))
    world.base[5][3, 2] = np.nan
    with pytest.raises(ValueError, match="finite values"):
        world.run()


def test_questions_that_one_model_did_not_answer_are_left_out(tmp_path: Path) -> None:
    world = World(tmp_path, n=24, layers=(5,))
    world.responses.loc[[3, 4], "tokens"] = 0
    assert read_json(world.run(clusterers=()) / "summary.json", rebuild="")["left_out"] == 2
    world.responses["tokens"] = 0
    with pytest.raises(DataError, match="only 0 questions"):
        world.run("none")
