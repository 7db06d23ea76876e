"""The activation store: rows keep their ids over any sharding, and a damaged store is found and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from unmask.artifact import digest_file, read_json, write_json
from unmask.errors import ArtifactError
from unmask.store import REBUILD, ActivationStore, shard_name, write_index, write_shard

SITE = "blocks.1.hook_resid_pre"
NAME = f"organism/{SITE}"
WIDTH = 4


def rows_of(count: int) -> tuple[np.ndarray, list[str]]:
    values = np.random.default_rng(count).normal(size=(count, WIDTH)).astype(np.float32)
    return values, [f"q{row}/0/organism" for row in range(count)]


def make_store(folder: Path, sizes: list[int], *, last_first: bool = False) -> tuple[np.ndarray, list[str]]:
    """A sealed store of `sizes` rows a shard; returns all rows and their ids."""
    values, ids = rows_of(sum(sizes))
    starts = np.cumsum([0, *sizes])
    numbers = range(len(sizes))
    for number in reversed(numbers) if last_first else numbers:
        part = slice(starts[number], starts[number + 1])
        norms = np.linalg.norm(values[part], axis=1)
        write_shard(folder, number, {NAME: values[part], f"{NAME}/norm": norms}, ids[part])
    write_index(folder, sites=[SITE], width=WIDTH, dtype="float32")
    return values, ids


@settings(deadline=None, max_examples=25)  # each example syncs its shards to the disk
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=12), last_first=st.booleans())
def test_any_sharding_gives_the_same_rows_in_the_same_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], last_first: bool
) -> None:
    folder = tmp_path_factory.mktemp("store")
    values, ids = make_store(folder, sizes, last_first=last_first)
    store = ActivationStore.open(folder)
    store.verify()
    assert store.response_ids() == ids
    np.testing.assert_array_equal(store.read(NAME), values)
    np.testing.assert_array_equal(store.read(f"{NAME}/norm"), np.linalg.norm(values, axis=1))
    assert (store.sites, store.width) == ((SITE,), WIDTH)


def test_shards_are_read_in_the_order_of_their_numbers() -> None:
    names = [shard_name(number) for number in (0, 9, 10, 99, 100, 99_999)]
    assert sorted(names) == names


def test_the_same_shards_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_store(tmp_path / name, [2, 3])
    for path in sorted((tmp_path / "one").iterdir()):
        assert digest_file(path) == digest_file(tmp_path / "two" / path.name), path.name


def test_arrays_that_are_views_are_stored_as_they_look(tmp_path: Path) -> None:
    values, ids = rows_of(6)
    write_shard(tmp_path, 0, {NAME: values[::-2]}, ids[::-2])
    write_index(tmp_path, sites=[SITE], width=WIDTH, dtype="float32")
    np.testing.assert_array_equal(ActivationStore.open(tmp_path).read(NAME), values[::-2])


@pytest.mark.parametrize("rows", [2, 4])
def test_a_row_without_an_id_or_an_id_without_a_row_is_refused(tmp_path: Path, rows: int) -> None:
    values, ids = rows_of(3)
    with pytest.raises(ValueError, match=f"{NAME} has {rows} rows for 3 responses"):
        write_shard(tmp_path, 0, {NAME: np.resize(values, (rows, WIDTH))}, ids)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_a_kill_left_half_written_is_not_part_of_the_store(tmp_path: Path) -> None:
    values, ids = rows_of(3)
    write_shard(tmp_path, 0, {NAME: values}, ids)
    (tmp_path / ".shard-00001.safetensors.k1ll3d.safetensors").write_bytes(b"half")
    write_index(tmp_path, sites=[SITE], width=WIDTH, dtype="float32")
    store = ActivationStore.open(tmp_path)
    store.verify()
    assert [name for name, _ in store.shards] == [shard_name(0)]
    assert store.response_ids() == ids


@pytest.mark.parametrize("place", [0, 9, 200, -1])
def test_a_flipped_bit_is_found_and_named_with_the_command_that_rebuilds(tmp_path: Path, place: int) -> None:
    make_store(tmp_path, [2, 2, 2])
    damaged = tmp_path / shard_name(1)
    content = bytearray(damaged.read_bytes())
    content[place] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        ActivationStore.open(tmp_path).verify()
    assert f"{damaged} is missing or does not match its checksum" in str(caught.value)
    assert f"Rebuild it with `{REBUILD}`" in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "cut", "no ids", "broken ids"])
def test_a_shard_that_cannot_be_read_is_named_by_whatever_reads_it(tmp_path: Path, damage: str) -> None:
    values, ids = rows_of(6)
    make_store(tmp_path, [2, 4])
    shard = tmp_path / shard_name(1)
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-5])
    elif damage == "no ids":
        save_file({NAME: values[2:]}, shard)
    else:
        save_file({NAME: values[2:]}, shard, metadata={"response_ids": "[q2"})
    store = ActivationStore.open(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        store.response_ids()
    assert str(shard) in str(caught.value)
    assert REBUILD in str(caught.value)
    with pytest.raises(ArtifactError, match=shard.name):
        store.verify()
    if damage in ("missing", "cut"):
        with pytest.raises(ArtifactError) as caught:
            store.read(NAME)
        assert f"{shard} cannot give {NAME}" in str(caught.value)
        assert REBUILD in str(caught.value)
    else:
        np.testing.assert_array_equal(store.read(NAME), values)
    assert len(ids) == 6


def test_a_tensor_that_was_not_collected_is_named(tmp_path: Path) -> None:
    make_store(tmp_path, [2])
    with pytest.raises(ArtifactError, match=r"cannot give organism/blocks\.9\.hook_resid_pre"):
        ActivationStore.open(tmp_path).read("organism/blocks.9.hook_resid_pre")


def test_a_store_without_its_seal_is_not_opened(tmp_path: Path) -> None:
    make_store(tmp_path, [2])
    (tmp_path / "index.json").unlink()
    with pytest.raises(ArtifactError) as caught:
        ActivationStore.open(tmp_path)
    assert "index.json cannot be read" in str(caught.value)
    assert REBUILD in str(caught.value)


def test_an_index_of_another_version_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path, [2])
    index = read_json(tmp_path / "index.json", rebuild=REBUILD)
    write_json(tmp_path / "index.json", {**index, "version": 2})
    with pytest.raises(ArtifactError, match="has version 2, this program reads 1"):
        ActivationStore.open(tmp_path)
