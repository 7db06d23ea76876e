"""Stage `decomposition`: the shift and raw activations reduced, clustered and taken apart, described beside each other.

Descriptive only: clusters of activations follow the topic of the questions, in the base model as much as in the organism.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from unmask.analysis.threads import one_thread
from unmask.artifact import write_json, write_tensors
from unmask.records import Site
from unmask.stage import Inputs, Make, Result, Shard, Stage, Told, Work
from unmask.stages.decomposition.artifacts import write_all
from unmask.stages.decomposition.config import DecompositionConfig, choose_k, choose_primary_k, primary_site
from unmask.stages.decomposition.material import SOURCES, load_material, typical_norm
from unmask.stages.decomposition.pieces import STACKED, Piece, Whole, gather, plan, write_piece
from unmask.stages.decomposition.sweep import Sweep
from unmask.stages.decomposition.tokens import token_sites
from unmask.store import ActivationStore
from unmask.study import Workspace

__all__ = ["STAGE", "DecompositionConfig", "choose_k", "choose_primary_k", "primary_site", "run", "typical_norm"]


def work(config: DecompositionConfig, inputs: Inputs, workspace: Workspace) -> Work:
    """Pieces of the sweep: every source at every site, its examination at the primary one, all layers together, and tokens."""
    return _work(_pieces(config, inputs), workspace, lambda: Sweep.of(config, load_material(inputs)))


def _pieces(config: DecompositionConfig, inputs: Inputs) -> tuple[Piece, ...]:
    store = ActivationStore.open(inputs.folders["activations"])
    sites = [Site.parse(name) for name in store.sites]
    return plan(sites, primary_site(config, sites), with_tokens=token_sites(store))


def _work(pieces: tuple[Piece, ...], workspace: Workspace, load: Callable[[], Sweep]) -> Work:
    places = {piece.name: piece for piece in pieces}
    shards = tuple(
        Shard(name, piece.units, tuple(piece.files(workspace.batches).values())) for name, piece in places.items()
    )

    @contextmanager
    def opened() -> Generator[Make]:
        sweep = load()

        def make(shard: Shard, told: Told) -> None:
            piece = places[shard.name]
            with one_thread():  # sums must not depend on how many there are
                made = sweep.make(piece)
            write_piece(piece.files(workspace.batches), made)
            told(shard.units)

        yield make

    return Work("decomposing", shards, opened)


def run(config: DecompositionConfig, inputs: Inputs, workspace: Workspace) -> Result:
    material, pieces = load_material(inputs), _pieces(config, inputs)
    primary, sweep = primary_site(config, material.sites), Sweep.of(config, material)
    _work(pieces, workspace, lambda: sweep).finish(inputs.progress)
    whole = gather((piece.files(workspace.batches) for piece in pieces), rebuild=f"{inputs.rebuild} decomposition")
    write_all(workspace.out, whole.tables)
    if whole.tokens:
        kept = {"sites": [site.name for site in token_sites(material.store)], "sources": list(SOURCES)}
        write_tensors(workspace.out / "token_components.safetensors", whole.axes, provenance=kept)
    write_json(workspace.out / "summary.json", _record(sweep, whole, primary))
    return Result(_printed(sweep, whole, primary))


def _record(sweep: Sweep, whole: Whole, primary: Site) -> dict[str, Any]:
    material, config = sweep.material, sweep.config
    return {
        "questions": len(material.questions),
        "left_out": material.left_out,
        "sites": [site.name for site in material.sites],
        "primary_site": primary.name,
        "k": list(sweep.ks),
        "primary_k": sweep.primary_k,
        "components": min(config.components, len(material.questions) - 1, material.store.width),
        "shift_norm": whole.geometry,
        "stacked_site": STACKED if len(material.sites) > 1 else None,
        "chosen_k": whole.chosen,
        "tokens": whole.tokens,
        "scored": int(material.questions["misalignment"].notna().sum()),
    }


def _printed(sweep: Sweep, whole: Whole, primary: Site) -> dict[str, Any]:
    metrics = whole.tables["metrics"]
    chosen = metrics[
        (metrics["site"] == primary.name) & (metrics["k"] == sweep.primary_k) & (metrics["space"] == "pca")
    ]
    return {
        "questions": len(sweep.material.questions),
        "site": primary.name,
        "k": sweep.primary_k,
        "silhouette": {row.source: round(float(row.silhouette), 3) for row in chosen.itertuples()},
        "ami_with_dimension": {row.source: round(float(row.ami_dimension), 3) for row in chosen.itertuples()},
    }


STAGE = Stage(
    "decomposition",
    "decompose the shift",
    3,
    DecompositionConfig,
    ("questions", "responses", "activations", "scores"),
    False,
    run,
    work=work,
)
