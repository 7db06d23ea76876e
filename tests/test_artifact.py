"""Artifacts: what is written comes back, appears only when whole, has the same bytes every time, and is missed when broken."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.artifact import (
    atomic_path,
    digest_bytes,
    digest_file,
    digest_json,
    digest_tree,
    finite,
    listing,
    read_json,
    read_table,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
    write_text,
)
from unmask.errors import ArtifactError, StudyError

SCHEMA = pa.schema([("name", pa.string()), ("value", pa.float64()), ("ids", pa.list_(pa.int32()))])
REBUILD = "unmask run s --force scores"

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def test_digests_are_sha256(tmp_path: Path) -> None:
    # FIPS 180-4's example for "abc".
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # pragma: allowlist secret
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert digest_bytes(b"abc") == known
    assert digest_file(path) == known


@settings(deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=6), st.randoms(use_true_random=False))
def test_a_json_digest_does_not_know_the_order_of_keys(value: dict[str, object], random: Random) -> None:
    names = list(value)
    random.shuffle(names)
    assert digest_json({name: value[name] for name in names}) == digest_json(value)


@settings(deadline=None)
@given(json_values, json_values)
def test_json_digests_are_equal_exactly_where_the_json_is(one: object, other: object) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest_json(one) == digest_json(other)) is same


def test_a_list_is_not_a_set_of_values() -> None:
    assert digest_json([1, 2]) != digest_json([2, 1])
    assert digest_tree({"a": "1", "b": "2"}) == digest_tree({"b": "2", "a": "1"})
    assert digest_tree({"a": "1", "b": "2"}) != digest_tree({"a": "2", "b": "1"})


def test_a_listing_has_every_file_but_the_folders_own_manifest(tmp_path: Path) -> None:
    for name in ("manifest.json", "b.txt", "deep/er/a.txt", "adapter/manifest.json", ".hidden"):
        write_text(tmp_path / name, name)
    assert listing(tmp_path) == {
        name: digest_bytes(name.encode()) for name in (".hidden", "adapter/manifest.json", "b.txt", "deep/er/a.txt")
    }


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems would be a copy
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("stop", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.EACCES, "denied")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, stop: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(stop)), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise stop
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(StudyError) as caught, atomic_path(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert f"no disk space left while writing {path}" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_file_that_a_kill_left_is_neither_read_nor_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    (tmp_path / ".a.json.k1ll3d.json").write_text('{"half')
    write_json(path, {"whole": True})
    assert read_json(path, rebuild=REBUILD) == {"whole": True}


@settings(deadline=None, max_examples=50)
@given(json_values)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path, rebuild=REBUILD) == value


def test_json_bytes_do_not_know_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": "é"})
    write_json(tmp_path / "b", {"y": "é", "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "é".encode() in (tmp_path / "a").read_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_no_number(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"mean": value})
    assert list(tmp_path.iterdir()) == []


def test_a_table_comes_back_with_its_gaps(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(
        path,
        [{"name": "a", "value": 1.5, "ids": [1, 2]}, {"name": None, "value": None, "ids": []}],
        schema=SCHEMA,
    )
    frame = read_table(path, rebuild=REBUILD)
    assert frame["name"].isna().tolist() == [False, True]
    assert frame["value"].isna().tolist() == [False, True]
    assert [list(ids) for ids in frame["ids"]] == [[1, 2], []]
    assert pq.read_table(path).schema == SCHEMA


def test_a_frames_nan_is_stored_as_missing_not_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(path, pd.DataFrame({"name": ["a", "b"], "value": [np.nan, 0.0], "ids": [[1], [2]]}), schema=SCHEMA)
    assert pq.read_table(path)["value"].to_pylist() == [None, 0.0]


def test_rows_and_a_frame_with_any_index_give_the_same_bytes_twice(tmp_path: Path) -> None:
    rows = [{"name": str(n), "value": n / 7, "ids": [n]} for n in range(20)]
    write_table(tmp_path / "rows", rows, schema=SCHEMA)
    write_table(tmp_path / "frame", pd.DataFrame(rows).set_index(pd.Index(range(100, 120))), schema=SCHEMA)
    write_table(tmp_path / "again", rows, schema=SCHEMA)
    assert digest_file(tmp_path / "rows") == digest_file(tmp_path / "frame") == digest_file(tmp_path / "again")
    assert b"pandas" not in (tmp_path / "frame").read_bytes()


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", [], schema=SCHEMA)
    frame = read_table(tmp_path / "t.parquet", rebuild=REBUILD)
    assert len(frame) == 0
    assert list(frame.columns) == SCHEMA.names


def test_tensors_come_back_whatever_their_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "transposed": rng.normal(size=(3, 5)).T,
        "strided": rng.normal(size=(8, 4)).astype(np.float32)[::2],
        "half": rng.normal(size=4).astype(np.float16),
        "ids": np.arange(6).reshape(2, 3),
        "empty": np.zeros((0, 4)),
        "gaps": np.array([np.nan, np.inf, -0.0]),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, provenance={"site": "blocks.1.hook_resid_pre"})
    found = read_tensors(tmp_path / "t.safetensors", rebuild=REBUILD)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_tensors_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    path, seen = tmp_path / "t.safetensors", set()
    for _ in range(30):
        write_tensors(path, {"b": np.ones(3), "a": np.zeros(2)}, provenance={"site": "x", "base": "y", "seed": 1})
        seen.add(digest_file(path))
    assert len(seen) == 1


READERS = {
    "json": (read_json, lambda path: write_json(path, {"a": list(range(50))})),
    "table": (read_table, lambda path: write_table(path, [{"name": "a", "value": 1.0, "ids": [1]}], schema=SCHEMA)),
    "tensors": (read_tensors, lambda path: write_tensors(path, {"a": np.ones(50)})),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign"])
def test_a_broken_file_is_named_with_the_command_that_rebuilds_it(tmp_path: Path, kind: str, damage: str) -> None:
    read, write = READERS[kind]
    path = tmp_path / "broken"
    if damage != "missing":
        write(path)
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "foreign": b"\x80\x04\x95 a pickle"}[damage])
    with pytest.raises(ArtifactError) as caught:
        read(path, rebuild=REBUILD)
    assert f"{path} cannot be read" in str(caught.value)
    assert f"Rebuild it with `{REBUILD}`" in str(caught.value)


def test_what_is_not_finite_is_missing() -> None:
    assert [finite(value) for value in (None, float("nan"), float("inf"), -float("inf"))] == [None] * 4
    assert [finite(0.0), finite(np.float32(1.5))] == [0.0, 1.5]
    assert type(finite(np.float32(1.5))) is float
