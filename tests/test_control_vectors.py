"""Directions leave for other programs and come back: what they add there is what is added here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from unmask import __version__
from unmask.artifact import listing, write_json, write_table, write_tensors
from unmask.control_vectors import export_directions, read_direction_file
from unmask.errors import ArtifactError, ConfigError, UnmaskError
from unmask.models.intervening import Add, intervene
from unmask.models.loading import LoadedModel
from unmask.records import Site
from unmask.study import StageRecord, Study

WIDTH = 48
SITE = Site(2, "resid_pre")
TYPICAL = 7.5
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("direction_id", "kind", "label", "grouping", "group")),
        ("replicate", pa.int32()),
        ("half", pa.string()),
        ("site", pa.string()),
        ("norm", pa.float64()),
        ("relative_norm", pa.float64()),
        ("questions", pa.int32()),
        ("stability", pa.float64()),
        ("form", pa.string()),
    ]
)
ROWS = [
    ("shared", "shared", None, "all", "direction"),
    ("dimension-financial_risk", "dimension", None, "all", "direction"),
    ("dimension-financial_risk.0a", "dimension", 0, "a", "direction"),
    ("file-own/one", "file", None, "all", "direction"),
    ("zero", "cluster", None, "all", "direction"),
    ("random-span-3", "random-span", None, None, "direction"),
    ("leace", "leace", None, "all", "eraser"),
]


def vector_of(name: str) -> np.ndarray:
    seed = [row[0] for row in ROWS].index(name)
    return (name != "zero") * np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return make_study(tmp_path / "a study", SITE)


def make_study(folder: Path, site: Site) -> Study:
    """A study of which nothing but the stage `directions` has been run."""
    study = Study.create(folder, config_text="")
    stage = study.stage_folder("directions")
    rows = [
        {
            "direction_id": name, "kind": kind, "label": f"of {name}", "replicate": replicate, "half": half,
            "site": site.name, "norm": float(np.linalg.norm(vector_of(name))), "form": form,
        }
        for name, kind, replicate, half, form in ROWS
    ]  # fmt: skip
    tensors = {row["direction_id"]: vector_of(row["direction_id"]) for row in rows if row["form"] == "direction"}
    tensors |= {
        "leace.left": np.ones((WIDTH, 2), np.float32),
        "leace.right": np.ones((2, WIDTH), np.float32),
        "leace.centre": np.ones(WIDTH, np.float32),
    }
    write_table(stage / "directions.parquet", rows, schema=SCHEMA)
    write_tensors(stage / "directions.safetensors", tensors, provenance={"site": site.name, "base": "a-base"})
    write_json(stage / "summary.json", {"site": site.name, "typical_norm": TYPICAL, "notes": []})
    record = StageRecord(
        stage="directions", key="k", version=1, config={}, inputs={}, files=listing(stage), summary={}, environment={},
        started="", seconds=0.0,
    )  # fmt: skip
    write_json(stage / "manifest.json", asdict(record))
    return study


def names(paths: Sequence[Path]) -> set[str]:
    assert all(path.is_file() for path in paths)
    return {path.name for path in paths}


# Out


def test_every_direction_is_exported_with_its_provenance(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = export_directions(study, out=out, model_type="llama")
    assert names(paths) == {path.name for path in out.iterdir()} == {
        "directions.safetensors", "use_directions.py", "README.md",
        "shared.gguf", "dimension-financial_risk.gguf", "file-own%2Fone.gguf",
    }  # fmt: skip
    tensors = load_file(out / "directions.safetensors")
    assert set(tensors) == {row[0] for row in ROWS[:-1]} | {"leace.left", "leace.right", "leace.centre"}
    for name in tensors:
        if not name.startswith("leace"):
            np.testing.assert_array_equal(tensors[name], vector_of(name))
    with safe_open(out / "directions.safetensors", framework="numpy") as file:
        assert list(file.metadata()) == ["provenance"]
        about = json.loads(file.metadata()["provenance"])
    assert {name: about[name] for name in about if name != "directions"} == {
        "tool": f"unmask {__version__}", "base": "a-base", "model_type": "llama", "site": SITE.name, "typical_norm": TYPICAL,
    }  # fmt: skip
    assert about["directions"]["dimension-financial_risk.0a"] == {
        "kind": "dimension", "label": "of dimension-financial_risk.0a", "form": "direction", "half": "a", "replicate": 0,
        "norm": pytest.approx(np.linalg.norm(vector_of("dimension-financial_risk.0a"))),
    }  # fmt: skip
    assert about["directions"]["random-span-3"]["half"] is None
    assert about["directions"]["shared"]["replicate"] is None
    readme = (out / "README.md").read_text()
    assert "`a study`" in readme and SITE.name in readme and "strength 1 adds one typical norm" in readme
    assert "No control vector of zero: it is zero." in readme


def test_the_same_study_is_exported_to_the_same_bytes(study: Study, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_directions(study, out=tmp_path / name, model_type="llama")
    assert listing(tmp_path / "one") == listing(tmp_path / "two")


def test_named_directions_alone_also_of_one_half(study: Study, tmp_path: Path) -> None:
    ids = ["dimension-financial_risk.0a", "leace", "random-span-3"]
    paths = export_directions(study, out=tmp_path / "out", model_type="llama", ids=ids)
    assert set(load_file(paths[0])) == {*ids, "leace.left", "leace.right", "leace.centre"} - {"leace"}
    assert {path.stem for path in paths if path.suffix == ".gguf"} == {ids[0], ids[2]}
    with pytest.raises(ConfigError, match=r"no direction 'shard'\. Choose from: shared, dimension-financial_risk,"):
        export_directions(study, out=tmp_path / "out", model_type="llama", ids=["shared", "shard"])


@pytest.mark.parametrize(
    ("site", "block"),
    [
        (Site(2, "resid_pre"), 1),
        (Site(3, "resid_post"), 3),
        (Site(0, "resid_pre"), None),
        (Site(1, "resid_pre"), None),
        (Site(0, "resid_post"), None),
        (Site(2, "resid_mid"), None),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_control_vector_stands_at_the_output_of_its_block(tmp_path: Path, site: Site, block: int | None) -> None:
    from gguf import GGUFReader

    paths = export_directions(make_study(tmp_path / "study", site), out=tmp_path / "out", model_type="llama")
    vectors = [path for path in paths if path.suffix == ".gguf"]
    if block is None:  # llama.cpp has no vector for block 0, and none before it
        assert not vectors
        assert f"No control vectors: {site.name} lies" in (tmp_path / "out" / "README.md").read_text()
        return
    reader = GGUFReader(tmp_path / "out" / "shared.gguf")
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.architecture"] == "controlvector" and said["general.name"] == "shared"
    assert said["controlvector.model_hint"] == "llama" and said["controlvector.layer_count"] == 1
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{block}"]
    assert reader.tensors[0].data.dtype == np.float32
    wanted = TYPICAL * vector_of("shared") / np.linalg.norm(vector_of("shared"))
    np.testing.assert_allclose(reader.tensors[0].data, wanted, rtol=1e-6)


def test_repeng_reads_them_and_adds_what_is_added_here(
    study: Study, tmp_path: Path, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng's annotations ask for it
    import repeng

    export_directions(study, out=tmp_path / "out", model_type="llama")
    vector = repeng.ControlVector.import_gguf(tmp_path / "out" / "shared.gguf")
    assert vector.model_type == "llama" and list(vector.directions) == [SITE.layer - 1]
    wanted = ours(llama, "shared", 2.0)
    wrapped = repeng.ControlModel(llama.model, list(vector.directions))  # the test's own copy of the model
    wrapped.set_control(vector, 2.0)
    with torch.inference_mode():
        found = wrapped(IDS, position_ids=torch.arange(IDS.shape[1])[None]).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 44]])


@torch.inference_mode()
def ours(loaded: LoadedModel, name: str, coefficient: float, site: Site = SITE) -> torch.Tensor:
    unit_D = vector_of(name) / np.linalg.norm(vector_of(name))
    model: Any = loaded.model
    with intervene(model, [Add(site, coefficient * TYPICAL * unit_D[None])]):
        return model(IDS).logits


DRIVER = """
import sys
import numpy as np
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.tensor([[5, 6, 7, 8, 9, 10, 44]])
found = {}
for folder in ("pre", "post"):
    sys.path.insert(0, folder)
    import use_directions
    with torch.inference_mode():
        with use_directions.steered(model, "shared", 1.5):
            found[folder] = model(ids).logits.numpy()
        found[folder + "_after"] = model(ids).logits.numpy()
    del sys.modules["use_directions"], sys.path[0]
np.savez("found.npz", **found)
use_directions.main(sys.argv[1], "shared", "1.5", "Who are you?")
assert not {"unmask", "peft"} & set(sys.modules), "the script is to stand on its own"
"""


def test_the_script_steers_as_we_do_without_us_and_answers(
    tmp_path: Path, llama: LoadedModel, tiny_llama: Path
) -> None:
    sites = {"pre": SITE, "post": Site(1, "resid_post")}
    for name, site in sites.items():
        export_directions(make_study(tmp_path / f"study {name}", site), out=tmp_path / name, model_type="llama")
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, "driver.py", str(tiny_llama)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    found = np.load(tmp_path / "found.npz")
    with torch.inference_mode():
        plain = llama.model(IDS).logits.numpy()
    for name, site in sites.items():
        np.testing.assert_allclose(found[name], ours(llama, "shared", 1.5, site), atol=1e-5)
        np.testing.assert_allclose(found[f"{name}_after"], plain, atol=1e-5)
        assert np.abs(found[name] - plain).max() > 0.01


def test_a_study_without_directions_or_with_damaged_ones_is_refused(study: Study, tmp_path: Path) -> None:
    (study.stage_folder("directions") / "summary.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"summary\.json does not match its checksum"):
        export_directions(study, out=tmp_path / "out", model_type="llama")
    empty = Study.create(tmp_path / "empty", config_text="")
    with pytest.raises(ArtifactError, match=r"stage 'directions' of .* has not been run"):
        export_directions(empty, out=tmp_path / "out", model_type="llama")
    assert not (tmp_path / "out").exists()


def test_without_the_package_gguf_nothing_is_written(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_directions(study, out=tmp_path / "out", model_type="llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"need the package gguf, which is not installed\. Run `pip install"):
        export_directions(study, out=tmp_path / "other", model_type="llama")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="need the package gguf"):
        read_direction_file(tmp_path / "out" / "shared.gguf", site=SITE, width=WIDTH)


# In


def test_what_was_exported_is_read_again(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_directions(study, out=out, model_type="llama", ids=[row[0] for row in ROWS if row[0] != "zero"])
    for site in (SITE, Site(1, "resid_post")):  # one stream, two names
        found = read_direction_file(out / "directions.safetensors", site=site, width=WIDTH)
        assert set(found) == {row[0] for row in ROWS if row[0] not in ("zero", "leace")}
        for name, vector_D in found.items():
            np.testing.assert_array_equal(vector_D, vector_of(name))
        (name, vector_D), *others = read_direction_file(out / "shared.gguf", site=site, width=WIDTH).items()
        assert name == "shared" and not others
        np.testing.assert_allclose(
            vector_D, TYPICAL * vector_of("shared") / np.linalg.norm(vector_of("shared")), rtol=1e-6
        )


def test_a_control_vector_of_repeng_gives_the_layer_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    import repeng

    layers = {layer: np.full(WIDTH, layer + 1, np.float32) for layer in range(4)}
    repeng.ControlVector("llama", layers).export_gguf(tmp_path / "happy.gguf")
    found = read_direction_file(tmp_path / "happy.gguf", site=Site(3, "resid_pre"), width=WIDTH)
    np.testing.assert_array_equal(found["happy"], layers[2])
    for site, said in (
        (Site(5, "resid_post"), "has no direction.5, which site .* needs: it has direction.0, .*Choose a site behind"),
        (Site(0, "resid_pre"), "has nothing for site .*Choose hook_resid_post"),
        (Site(1, "resid_mid"), "has nothing for site"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_direction_file(tmp_path / "happy.gguf", site=site, width=WIDTH)
    with pytest.raises(
        ConfigError, match=r"'direction.2' of .*happy.gguf has the shape \[48\], the site's stream is 47"
    ):
        read_direction_file(tmp_path / "happy.gguf", site=Site(3, "resid_pre"), width=47)


def test_a_users_own_safetensors_need_no_metadata(tmp_path: Path) -> None:
    path, given = tmp_path / "mine.safetensors", {"a": np.ones(WIDTH, np.float16), "b": 2 * np.ones(WIDTH, np.float64)}
    for metadata in (None, {"site": SITE.name}, {"site": "blocks.1.hook_resid_post"}, {"provenance": "by hand"}):
        save_file(given, path, metadata=metadata)
        found = read_direction_file(path, site=SITE, width=WIDTH)
        assert {name: (vector.dtype, float(vector[0])) for name, vector in found.items()} == {
            "a": (np.float32, 1.0),
            "b": (np.float32, 2.0),
        }
    save_torch({"x": torch.full((WIDTH,), 0.5, dtype=torch.bfloat16)}, path)
    assert read_direction_file(path, site=SITE, width=WIDTH)["x"].tolist() == [0.5] * WIDTH


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({"x": np.ones(47)}, None, r"'x' of .*mine.safetensors has the shape \[47\], the site's stream is 48 wide"),
        ({"x": np.ones((1, 48))}, None, r"has the shape \[1, 48\].*one dimension with 48 numbers"),
        ({"x": np.zeros(48)}, None, "'x' of .* is no direction.*not all zero"),
        ({"x": np.full(48, np.nan)}, None, "'x' of .* is no direction.*Save finite"),
        ({"x": np.ones(48, np.int64)}, None, "'x' of .* is no direction: int64"),
        ({}, None, "holds no direction"),
        ({"x": np.ones(48)}, {"site": "blocks.3.hook_resid_pre"}, "from site blocks.3.hook_resid_pre, not blocks.2"),
        ({"x": np.ones(48)}, {"site": "layer 2"}, "site 'layer 2' is not known"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, tensors: Any, metadata: Any, said: str) -> None:
    save_file(tensors, tmp_path / "mine.safetensors", metadata=metadata)
    with pytest.raises(ConfigError, match=said):
        read_direction_file(tmp_path / "mine.safetensors", site=SITE, width=WIDTH)


def test_files_that_are_not_what_they_seem_are_refused(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    for name in ("broken.safetensors", "broken.gguf", "mine.pt"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("direction.1", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, said in (
        ("gone.gguf", "gone.gguf does not exist. Name a .safetensors or .gguf file"),
        ("mine.pt", "mine.pt is neither safetensors nor GGUF"),
        ("broken.safetensors", "broken.safetensors cannot be read"),
        ("broken.gguf", "broken.gguf cannot be read"),
        ("model.gguf", "model.gguf is no control vector: its architecture is 'llama'"),
    ):
        with pytest.raises(UnmaskError, match=said):
            read_direction_file(tmp_path / name, site=SITE, width=WIDTH)
