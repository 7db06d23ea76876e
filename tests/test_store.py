"""The activation store: rows keep their ids over any sharding, on a disk and behind a URL; a damaged store is found and named."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from unmask.artifact import digest_file, read_json, write_json
from unmask.errors import ArtifactError, DataError
from unmask.store import (
    REBUILD,
    TOKEN_OFFSETS,
    ActivationStore,
    activation_name,
    annotate_index,
    shard_name,
    write_index,
    write_shard,
)
from unmask.store.header import parse_header
from unmask.store.local_folder import LocalFolder
from unmask.store.remote_folder import without_secrets

SITE = "blocks.1.hook_resid_pre"
HEADS = "blocks.1.attn.hook_z"
NAME = f"organism/{SITE}"
TOKENS = f"{NAME}@tokens"
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
    assert [shard.file for shard in store.shards] == [shard_name(0)]
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


@pytest.mark.parametrize("damage", ["missing", "cut", "grown", "empty", "no ids", "other rows"])
def test_a_shard_that_cannot_be_read_is_named_by_whatever_reads_it(tmp_path: Path, damage: str) -> None:
    values, ids = rows_of(6)
    make_store(tmp_path, [2, 4])
    shard = tmp_path / shard_name(1)
    if damage == "missing":
        shard.unlink()
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-5])
    elif damage == "grown":
        shard.write_bytes(shard.read_bytes() + b"12345")
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "no ids":
        save_file({NAME: values[2:]}, shard)
    else:
        save_file({NAME: values[3:]}, shard, metadata={"response_ids": json.dumps(ids[3:])})
    store = ActivationStore.open(tmp_path)
    readings = {
        "its response ids": store.response_ids,
        NAME: lambda: store.read(NAME),
        f"{NAME}/norm": lambda: store.rows(f"{NAME}/norm", [5]),
    }
    for what, reading in readings.items():
        with pytest.raises(ArtifactError) as caught:
            reading()
        assert f"{shard} cannot give {what}" in str(caught.value)
        assert REBUILD in str(caught.value)
    np.testing.assert_array_equal(store.rows(NAME, [1]), values[[1]])
    assert store.broken_shards() == [shard.name]
    with pytest.raises(ArtifactError, match=shard.name):
        store.verify()


@pytest.mark.parametrize("text", ["[q2", '"q2"', "[1, 2]", "{}"])
def test_a_shard_whose_ids_are_none_is_not_sealed(tmp_path: Path, text: str) -> None:
    save_file({NAME: rows_of(2)[0]}, tmp_path / shard_name(0), metadata={"response_ids": text})
    for reading in (
        partial(write_index, tmp_path, sites=[SITE], width=WIDTH, dtype="float32"),
        partial(ActivationStore.shard_response_ids, tmp_path / shard_name(0)),
    ):
        with pytest.raises(ArtifactError, match=shard_name(0)):
            reading()


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


def test_an_index_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path, [2])
    index = read_json(tmp_path / "index.json", rebuild=REBUILD)
    write_json(tmp_path / "index.json", {**index, "version": 3})
    with pytest.raises(ArtifactError, match="has version 3, this program reads 1 and 2"):
        ActivationStore.open(tmp_path)


def test_a_store_of_version_1_is_read(tmp_path: Path) -> None:
    """What earlier studies sealed: the shards are the same, the index counts nothing."""
    values, ids = make_store(tmp_path, [2, 0, 3])
    shards = [{"file": path.name, "sha256": digest_file(path)} for path in sorted(tmp_path.glob("shard-*"))]
    old = {"version": 1, "sites": [SITE], "width": WIDTH, "dtype": "float32", "shards": shards}
    write_json(tmp_path / "index.json", old)
    store = ActivationStore.open(tmp_path)
    store.verify()
    assert (store.sites, store.width, store.response_ids()) == ((SITE,), WIDTH, ids)
    np.testing.assert_array_equal(store.read(NAME), values)
    np.testing.assert_array_equal(store.rows(NAME, [4, 0]), values[[4, 0]])


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [{"file": "../shard-00000.safetensors", "sha256": "", "bytes": 1, "responses": 1, "tokens": 0}]},
        {"shards": [{"file": "shard-00000.safetensors"}]},
        {"shards": 3},
        {"tensors": {NAME: {"dtype": "complex64", "columns": [4]}}},
        {"tensors": {NAME: {"dtype": "float32", "columns": [0]}}},
        {"width": "4"},
        {"sites": None},
        {"excluded": {SITE: [-1]}},
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    make_store(tmp_path, [2])
    write_json(tmp_path / "index.json", {**read_json(tmp_path / "index.json", rebuild=REBUILD), **change})
    with pytest.raises(ArtifactError, match=r"index\.json cannot be read as a store's index"):
        ActivationStore.open(tmp_path)


# --- two levels, any place ---


def ragged(lengths: list[int], *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Token rows (T x D), the offsets of their responses, and these responses' ids; values that all dtypes hold exactly."""
    offsets = np.cumsum([0, *lengths])
    tokens = np.random.default_rng(seed).integers(-4, 5, size=(offsets[-1], WIDTH)).astype(np.float32)
    return tokens, offsets, [f"q{row}/0/organism" for row in range(len(lengths))]


def sums(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """What stands for a mean (R x D): a sum, which is exact."""
    return np.array([tokens[start:stop].sum(axis=0) for start, stop in pairwise(offsets)]).reshape(-1, WIDTH)


def make_ragged(place: Path | str, shards: list[list[int]], *, dtype: str = "float32", **sealing: object) -> np.ndarray:
    """A sealed store of both levels: shards of responses with those numbers of tokens. Returns all token rows."""
    tokens, offsets, ids = ragged([length for lengths in shards for length in lengths])
    first = 0
    for number, lengths in enumerate(shards):
        last = first + len(lengths)
        rows = tokens[offsets[first] : offsets[last]]
        means = sums(tokens, offsets[first : last + 1])
        tensors = {
            TOKENS: rows,
            NAME: means,
            f"{NAME}@prompt_last": -means,
            "organism/log_prob": means[:, 0].astype(np.float64),
        }
        write_shard(
            place,
            number,
            tensors,
            ids[first:last],
            token_offsets=offsets[first : last + 1] - offsets[first],
            dtype=dtype,
        )
        first = last
    write_index(place, sites=[SITE], width=WIDTH, dtype=dtype, **sealing)
    return tokens


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves a folder, ranges of its files too."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, found = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        start, stop = (int(found[1]), int(found[2]) + 1) if found else (0, len(content))
        self.send_response(206 if found else 200)
        self.send_header("Accept-Ranges", "bytes")
        if found:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content[start:stop])))
        self.end_headers()
        self.wfile.write(content[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of its own in fsspec's memory."""
    url = f"memory://store-{os.getpid()}-{time.monotonic_ns()}"
    yield url
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The URL of a server for `tmp_path`."""
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def assert_reads(store: ActivationStore, tokens: np.ndarray, lengths: list[int]) -> None:
    """Every way of reading gives these token rows."""
    offsets = np.cumsum([0, *lengths])
    assert store.shape(TOKENS) == tokens.shape
    np.testing.assert_array_equal(store.read(TOKENS), tokens)
    np.testing.assert_array_equal(store.token_index().offsets, offsets)
    np.testing.assert_array_equal(store.token_index().lengths, lengths)
    np.testing.assert_array_equal(
        store.token_index().responses(np.arange(len(tokens))), np.repeat(np.arange(len(lengths)), lengths)
    )
    for row, identity in enumerate(store.response_ids()):
        assert store.token_index().rows(row) == slice(offsets[row], offsets[row + 1])
        np.testing.assert_array_equal(store.tokens("organism", SITE, identity), tokens[offsets[row] : offsets[row + 1]])
    means = sums(tokens, offsets)
    np.testing.assert_array_equal(store.read(NAME), means)
    np.testing.assert_array_equal(store.read(f"{NAME}@prompt_last"), -means)
    np.testing.assert_array_equal(store.read("organism/log_prob"), means[:, 0])
    assert store.read("organism/log_prob").dtype == np.float64
    for name, all_rows in ((TOKENS, tokens), (NAME, means)):
        assert store.read(name).dtype == np.float32
        for rows in (1, 3, 100):
            blocks = list(store.blocks(name, rows))
            assert [len(block) for block in blocks] == [
                min(rows, len(all_rows) - start) for start in range(0, len(all_rows), rows)
            ]
            np.testing.assert_array_equal(np.concatenate([np.empty((0, WIDTH)), *blocks]), all_rows)
        for seed in range(3):
            wanted = np.random.default_rng(seed).integers(0, len(all_rows), 20 if len(all_rows) else 0)
            np.testing.assert_array_equal(store.rows(name, wanted), all_rows[wanted])


@settings(deadline=None, max_examples=25)
@given(
    shards=st.lists(st.lists(st.integers(0, 4), max_size=4), min_size=1, max_size=6),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_any_lengths_in_any_shards_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]], dtype: str
) -> None:
    folder = tmp_path_factory.mktemp("ragged")
    tokens = make_ragged(folder, shards, dtype=dtype)
    store = ActivationStore.open(folder)
    store.verify()
    assert store.site(SITE).dtype == dtype
    assert [(shard.responses, shard.tokens) for shard in store.shards] == [(len(part), sum(part)) for part in shards]
    assert_reads(store, tokens, [length for part in shards for length in part])


SHARDS = [[3, 0, 2], [], [1, 40], [7]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["str", "file", "memory"])
def test_a_store_is_the_same_at_a_path_and_at_a_url(tmp_path: Path, memory: str, kind: str, dtype: str) -> None:
    place = {"str": str(tmp_path / "other"), "file": f"file://{tmp_path / 'other'}", "memory": memory}[kind]
    tokens = make_ragged(place, SHARDS, dtype=dtype)
    make_ragged(tmp_path / "here", SHARDS, dtype=dtype)
    for path in sorted((tmp_path / "here").iterdir()):
        assert fsspec.open(f"{place}/{path.name}", "rb").open().read() == path.read_bytes(), path.name
    store = ActivationStore.open(place)
    store.verify()
    assert_reads(store, tokens, [length for part in SHARDS for length in part])


def test_a_store_behind_a_web_server_is_read(tmp_path: Path, web: str) -> None:
    tokens = make_ragged(tmp_path / "store", SHARDS)
    store = ActivationStore.open(f"{web}/store")
    store.verify()
    assert_reads(store, tokens, [length for part in SHARDS for length in part])
    (tmp_path / "store" / shard_name(2)).unlink()
    with pytest.raises(ArtifactError, match=f"{web}/store/{shard_name(2)} cannot give {TOKENS} .it is not there"):
        ActivationStore.open(f"{web}/store").read(TOKENS)
    with pytest.raises(ArtifactError, match=r"index\.json cannot be read"):
        ActivationStore.open(f"{web}/elsewhere")


def test_behind_a_url_only_what_is_wanted_is_fetched(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that lie close together come in one range, others in their own; a header once."""
    width = 1024
    values = np.arange(400, dtype=np.float32)[:, None] * np.ones(width, dtype=np.float32)
    write_shard(memory, 0, {NAME: values, "base/other": values}, [f"q{row}" for row in range(400)])
    write_index(memory, sites=[SITE], width=width, dtype="float32")
    fetched: list[int] = []
    system = type(fsspec.filesystem("memory"))
    plain = system.cat_file

    def counted(self: object, path: str, start: int | None = None, end: int | None = None) -> bytes:
        content = plain(self, path, start, end)
        fetched.append(len(content))
        return content

    monkeypatch.setattr(system, "cat_file", counted)
    store = ActivationStore.open(memory)
    assert len(fetched) == 1
    np.testing.assert_array_equal(store.rows(NAME, [399, 3, 3, 5])[:, 7], [399, 3, 3, 5])
    assert fetched[2:] == [3 * 4 * width, 4 * width]
    store.read(NAME)
    assert fetched[4:] == [400 * 4 * width]


def test_a_broken_shard_behind_a_url_is_found(memory: str) -> None:
    make_ragged(memory, SHARDS)
    system = fsspec.filesystem("memory")
    path = f"{system._strip_protocol(memory)}/{shard_name(0)}"
    system.pipe_file(path, system.cat_file(path)[:-3])
    system.rm(path.replace(shard_name(0), shard_name(2)))
    store = ActivationStore.open(memory)
    assert store.broken_shards() == [shard_name(0), shard_name(2)]
    with pytest.raises(
        ArtifactError,
        match=f"{memory}/{shard_name(0)} is missing or does not match its checksum .likewise {shard_name(2)}",
    ):
        store.verify()
    with pytest.raises(ArtifactError, match=f"{memory}/{shard_name(0)} cannot give"):
        store.read(TOKENS)


def test_no_secret_of_a_url_reaches_a_message() -> None:
    assert without_secrets("sftp://" + "me:word@host/a/b?key=1") == "sftp://host/a/b"
    assert without_secrets("simplecache::https://me@host/x/") == "simplecache::https://host/x"
    assert without_secrets("s3://bucket/a@b/c") == "s3://bucket/a@b/c"


def test_a_protocol_that_is_not_known_is_named() -> None:
    with pytest.raises(ArtifactError, match=r"^nonsense://host/x cannot be opened .*Check its protocol"):
        ActivationStore.open("nonsense://" + "me:word@host/x")


def test_a_place_that_cannot_be_written_is_named(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError("the key abc123 may not write")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", refused)
    with pytest.raises(ArtifactError, match=f"{memory}/{shard_name(0)} cannot be written .PermissionError") as caught:
        write_shard(memory, 0, {NAME: rows_of(1)[0]}, rows_of(1)[1])
    assert "abc123" not in str(caught.value)


# --- numbers ---


def specials() -> np.ndarray:
    """float32: ties, their neighbours, the largest, the smallest, zeros, infinities and NaN of many bits."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    return (upper[:, None] | lower).reshape(-1, 8).view(np.float32)


def test_bfloat16_is_rounded_as_torch_rounds(tmp_path: Path) -> None:
    """To nearest, ties to even, for all upper halves of a float32; NaN stays NaN."""
    import torch
    from safetensors.torch import load_file

    values = specials()
    ids = [str(row) for row in range(len(values))]
    write_shard(tmp_path, 0, {NAME: values}, ids, dtype="bfloat16")
    write_index(tmp_path, sites=[SITE], width=8, dtype="bfloat16")
    wanted = torch.from_numpy(values).to(torch.bfloat16)
    stored = load_file(tmp_path / shard_name(0))[NAME]
    assert stored.dtype == torch.bfloat16
    number = ~wanted.isnan()
    assert torch.equal(stored.view(torch.int16)[number], wanted.view(torch.int16)[number])
    assert stored[~number].isnan().all()
    read = ActivationStore.open(tmp_path).read(NAME)
    np.testing.assert_array_equal(read, wanted.float().numpy())
    write_shard(tmp_path / "again", 0, {NAME: read}, ids, dtype="bfloat16")
    again = load_file(tmp_path / "again" / shard_name(0))[NAME]
    assert torch.equal(again.view(torch.int16), stored.view(torch.int16)), "what is a bfloat16 already stays"


def test_every_float16_is_read_as_it_is(tmp_path: Path) -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 8)
    order = np.random.default_rng(3).permutation(len(values))
    write_shard(tmp_path, 0, {NAME: values}, [str(row) for row in range(len(values))])
    write_index(tmp_path, sites=[SITE], width=8, dtype="float16", heads={SITE: 2})
    store = ActivationStore.open(tmp_path)
    np.testing.assert_array_equal(store.read(NAME).view(np.uint32), values.astype(np.float32).view(np.uint32))
    np.testing.assert_array_equal(store.rows(NAME, order), values[order].astype(np.float32))
    np.testing.assert_array_equal(store.read(NAME, head=1), values[:, 4:].astype(np.float32))


def test_a_shard_has_the_bytes_that_safetensors_would_write(tmp_path: Path) -> None:
    tensors = {"b": rows_of(3)[0], "a": rows_of(3)[0].T[:3], "c": np.arange(3), "d": np.array([True, False, True])}
    write_shard(tmp_path, 0, tensors, ["x", "y", "z"])
    plain = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(plain, tmp_path / "theirs", metadata={"response_ids": '["x", "y", "z"]'})
    assert (tmp_path / shard_name(0)).read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_shard_is_a_safetensors_file_like_any_other(tmp_path: Path, dtype: str) -> None:
    make_ragged(tmp_path, [[3, 0, 2]], dtype=dtype)
    with safe_open(tmp_path / shard_name(0), framework="pt") as shard:
        tokens, offsets, ids = ragged([3, 0, 2])
        assert json.loads(shard.metadata()["response_ids"]) == ids
        assert str(shard.get_tensor(TOKENS).dtype) == f"torch.{dtype}"
        np.testing.assert_array_equal(shard.get_tensor(TOKENS).float().numpy(), tokens)
        np.testing.assert_array_equal(shard.get_tensor(TOKEN_OFFSETS).numpy(), offsets)


def test_float16_is_rounded_as_numpy_rounds(tmp_path: Path) -> None:
    """To nearest, ties to even: at every float16, at every middle between two, just beside both, and anywhere."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = np.sort(halves[np.isfinite(halves)])
    points = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2])
    beside = [np.nextafter(points, np.float32(to)) for to in (-1e9, 1e9)]
    anywhere = np.random.default_rng(5).integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(np.float32)
    values = np.concatenate([points, *beside, anywhere])
    values = values[~(np.abs(values) >= 65520) | np.isinf(values)]
    values = np.resize(values, (-(-len(values) // 8), 8))
    ids = [str(row) for row in range(len(values))]
    write_shard(tmp_path, 0, {NAME: values}, ids, dtype="float16")
    write_shard(tmp_path, 1, {NAME: values.astype(np.float16)}, [f"{identity}b" for identity in ids])
    write_index(tmp_path, sites=[SITE], width=8, dtype="float16")
    ours, theirs = np.split(ActivationStore.open(tmp_path).read(NAME), 2)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(theirs))


@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e30])
def test_float16_refuses_the_smallest_number_that_is_too_large(tmp_path: Path, value: float) -> None:
    with pytest.raises(DataError, match=re.escape(f"holds {abs(value):.6g}, which float16 cannot hold")):
        write_shard(tmp_path, 0, {NAME: np.full((1, WIDTH), value, dtype=np.float32)}, ["q"], dtype="float16")
    assert list(tmp_path.iterdir()) == []
    write_shard(tmp_path, 0, {NAME: np.full((1, WIDTH), 65519, dtype=np.float32)}, ["q"], dtype="float16")


def test_float16_refuses_what_it_cannot_hold_and_keeps_what_is_infinite(tmp_path: Path) -> None:
    values = np.array([[1.0, np.inf, np.nan, -65504.0]], dtype=np.float32)
    write_shard(tmp_path, 0, {NAME: values}, ["q"], dtype="float16")
    write_index(tmp_path, sites=[SITE], width=WIDTH, dtype="float16")
    np.testing.assert_array_equal(ActivationStore.open(tmp_path).read(NAME), values)
    with pytest.raises(DataError, match=r"organism/.* holds 71000, which float16 cannot hold.*bfloat16 or float32"):
        write_shard(tmp_path, 1, {NAME: np.full_like(values, 71000)}, ["r"], dtype="float16")


def test_wider_numbers_are_kept_as_float32_when_that_is_asked(tmp_path: Path) -> None:
    values = np.array([[1 / 3, 1e-30, -7.0, np.inf]])
    write_shard(tmp_path, 0, {NAME: values}, ["q"], dtype="float32")
    write_index(tmp_path, sites=[SITE], width=WIDTH, dtype="float32")
    np.testing.assert_array_equal(ActivationStore.open(tmp_path).read(NAME), values.astype(np.float32))
    with pytest.raises(DataError, match="which float32 cannot hold"):
        write_shard(tmp_path, 1, {NAME: values * 1e39}, ["r"], dtype="float32")


def test_only_activations_are_rounded(tmp_path: Path) -> None:
    third = np.full((1, WIDTH), 1 / 3, dtype=np.float32)
    tensors = {NAME: third, f"{NAME}/norm": third[:, 0], f"{NAME}/sinks": np.array([3], dtype=np.int32)}
    write_shard(tmp_path, 0, tensors, ["q"], dtype="bfloat16")
    write_index(tmp_path, sites=[SITE], width=WIDTH, dtype="bfloat16")
    store = ActivationStore.open(tmp_path)
    assert store.read(NAME)[0, 0] != third[0, 0]
    assert store.read(f"{NAME}/norm") == third[:, 0]
    assert store.read(f"{NAME}/sinks").dtype == np.int32
    assert store.names == tuple(sorted(tensors))


# --- what a site has ---


def test_one_head_is_a_slice_of_the_columns(tmp_path: Path) -> None:
    values, ids = rows_of(5)
    write_shard(
        tmp_path,
        0,
        {f"base/{HEADS}": values, f"base/{HEADS}@tokens": values, NAME: values},
        ids,
        token_offsets=range(6),
    )
    write_index(tmp_path, sites=[SITE, HEADS], width=WIDTH, dtype="float32", heads={HEADS: 2}, excluded={HEADS: [2]})
    store = ActivationStore.open(tmp_path)
    values[:, 2] = 0
    assert (store.site(HEADS).heads, store.site(SITE).heads) == (2, None)
    for head in (0, 1):
        part = values[:, 2 * head : 2 * head + 2]
        np.testing.assert_array_equal(store.read(f"base/{HEADS}", head=head), part)
        np.testing.assert_array_equal(store.rows(f"base/{HEADS}", [4, 1], head=head), part[[4, 1]])
        np.testing.assert_array_equal(store.tokens("base", HEADS, ids[3], head=head), part[3:4])
        np.testing.assert_array_equal(np.concatenate(list(store.blocks(f"base/{HEADS}", 2, head=head))), part)
    with pytest.raises(DataError, match=r"hook_z has no head 2.*0 to 1"):
        store.read(f"base/{HEADS}", head=2)
    with pytest.raises(DataError, match=r"hook_resid_pre has no head 0.*it has no heads"):
        store.read(NAME, head=0)
    with pytest.raises(DataError, match=r"blocks\.9.* is not a site of .*index\.json.*Name one of"):
        store.site("blocks.9.hook_resid_pre")
    with pytest.raises(ValueError, match="3 heads do not divide the width 4"):
        write_index(tmp_path, sites=[HEADS], width=WIDTH, dtype="float32", heads={HEADS: 3})


def test_sites_may_have_widths_of_their_own(tmp_path: Path) -> None:
    values, ids = rows_of(5)
    write_shard(tmp_path, 0, {f"base/{HEADS}": values[:, :2], NAME: values}, ids, dtype="float16")
    write_index(tmp_path, sites=[SITE, HEADS, "hook_embed"], width=WIDTH, dtype="float32")
    store = ActivationStore.open(tmp_path)
    assert [(site.width, site.dtype) for site in store.index.sites] == [(4, "float16"), (2, "float16"), (4, "float32")]
    assert store.sites == (SITE, HEADS, "hook_embed"), "in the order given"
    write_shard(tmp_path / "odd", 0, {f"base/{SITE}": values[:, :2], NAME: values}, ids)
    with pytest.raises(ValueError, match="differ in width"):
        write_index(tmp_path / "odd", sites=[SITE], width=WIDTH, dtype="float32")


def test_excluded_coordinates_read_as_zero_at_their_site_and_nowhere_else(tmp_path: Path) -> None:
    tokens = make_ragged(tmp_path, SHARDS, excluded={SITE: [3, 1, 3]}, report={"massive": {SITE: [{"coordinate": 3}]}})
    whole = ActivationStore.open(tmp_path)
    assert whole.excluded == {SITE: (1, 3)}
    assert whole.report == {"massive": {SITE: [{"coordinate": 3}]}}
    blanked = tokens * np.array([1, 0, 1, 0], dtype=np.float32)
    np.testing.assert_array_equal(whole.read(TOKENS), blanked)
    np.testing.assert_array_equal(whole.rows(TOKENS, [5, 2]), blanked[[5, 2]])
    np.testing.assert_array_equal(whole.tokens("organism", SITE, "q0/0/organism"), blanked[:3])
    np.testing.assert_array_equal(np.concatenate(list(whole.blocks(TOKENS, 7))), blanked)
    assert not whole.read(f"{NAME}@prompt_last")[:, [1, 3]].any()
    assert whole.read("organism/log_prob").any()
    make_ragged(tmp_path / "all", SHARDS)
    np.testing.assert_array_equal(ActivationStore.open(tmp_path / "all").read(TOKENS), tokens)


@pytest.mark.parametrize(
    ("excluded", "message"),
    [
        ({SITE: [4]}, "has no coordinate 4 to exclude.*0 to 3"),
        ({SITE: [0, -1]}, "has no coordinate -1 to exclude"),
        ({HEADS: [0]}, "hook_z cannot lose coordinates: it is not stored.*hook_resid_pre"),
    ],
)
def test_a_coordinate_that_is_not_there_cannot_be_excluded(
    tmp_path: Path, excluded: dict[str, list[int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make_ragged(tmp_path, [[2]], excluded=excluded)


# --- what is refused ---


def test_a_response_stands_in_a_store_once(tmp_path: Path) -> None:
    values, ids = rows_of(3)
    with pytest.raises(ValueError, match="'q0/0/organism' stands twice in shard 0"):
        write_shard(tmp_path, 0, {NAME: values}, [ids[0], ids[1], ids[0]])
    write_shard(tmp_path, 0, {NAME: values}, ids)
    write_shard(tmp_path, 1, {NAME: values}, ["other", "another", ids[1]])
    with pytest.raises(ArtifactError) as caught:
        write_index(tmp_path, sites=[SITE], width=WIDTH, dtype="float32")
    assert shard_name(1) in str(caught.value)
    assert f"'q1/0/organism' stands twice, here and in {shard_name(0)}" in str(caught.value)


@pytest.mark.parametrize(
    "other", [{f"base/{SITE}": np.float32}, {NAME: np.float16}, {NAME: np.float32, "x/y": np.float32}]
)
def test_shards_that_hold_different_tensors_are_not_sealed(tmp_path: Path, other: dict[str, type]) -> None:
    values, ids = rows_of(4)
    write_shard(tmp_path, 0, {NAME: values[:2]}, ids[:2])
    write_shard(tmp_path, 1, {name: values[2:].astype(dtype) for name, dtype in other.items()}, ids[2:])
    with pytest.raises(ArtifactError, match=f"{shard_name(1)} .* is not the same there as in {shard_name(0)}"):
        write_index(tmp_path, sites=[SITE], width=WIDTH, dtype="float32")


@pytest.mark.parametrize("offsets", [[0, 1], [0, 1, 2, 3], [1, 2, 3], [0, 3, 2], [0, 2, 4]])
def test_offsets_that_do_not_fit_the_rows_are_refused(tmp_path: Path, offsets: list[int]) -> None:
    tokens, _, ids = ragged([1, 2])
    with pytest.raises(ValueError, match="token"):
        write_shard(tmp_path, 0, {TOKENS: tokens}, ids, token_offsets=offsets)
    assert list(tmp_path.iterdir()) == []


def test_token_rows_need_offsets_and_these_come_by_the_option(tmp_path: Path) -> None:
    tokens, offsets, ids = ragged([1, 2])
    with pytest.raises(ValueError, match="no token offsets say whose"):
        write_shard(tmp_path, 0, {TOKENS: tokens}, ids)
    with pytest.raises(ValueError, match="use the option `token_offsets`"):
        write_shard(tmp_path, 0, {TOKEN_OFFSETS: offsets}, ids)


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    make_ragged(tmp_path, [[2, 1]])
    store = ActivationStore.open(tmp_path)
    for wanted in ([3], [-1], [0.5], [[0]], [True]):
        with pytest.raises(IndexError):
            store.rows(TOKENS, wanted)
    assert store.rows(TOKENS, []).shape == (0, WIDTH)
    with pytest.raises(DataError, match="has no response 'q9'"):
        store.tokens("organism", SITE, "q9")
    with pytest.raises(IndexError):
        store.token_index().rows(2)
    with pytest.raises(IndexError):
        store.token_index().responses(np.array([3]))
    with pytest.raises(ValueError, match="never end"):
        store.blocks(TOKENS, 0)
    with pytest.raises(ArtifactError, match=r"cannot give base/x .it was not collected"):
        store.blocks("base/x")


def test_a_store_without_tokens_says_so(tmp_path: Path) -> None:
    make_store(tmp_path, [2])
    with pytest.raises(ArtifactError, match=f"cannot give {TOKEN_OFFSETS}"):
        ActivationStore.open(tmp_path).token_index()


@pytest.mark.parametrize(
    "parts", [("", SITE), ("a/b", SITE), ("a@b", SITE), ("a", "b@c"), ("a", "b", ""), ("a", "b", "c/d")]
)
def test_a_name_that_could_not_be_taken_apart_is_refused(parts: tuple[str, ...]) -> None:
    assert activation_name("base", SITE) == f"base/{SITE}"
    assert activation_name("base", SITE, "mask") == f"base/{SITE}@mask"
    with pytest.raises(ValueError, match="cannot be a part"):
        activation_name(*parts)


# --- damage ---


def test_a_shard_cut_at_any_byte_is_found(tmp_path: Path) -> None:
    make_ragged(tmp_path, SHARDS)
    shard = tmp_path / shard_name(2)
    content = shard.read_bytes()
    reading = ActivationStore.open(tmp_path)
    reading.read(TOKENS)
    for length in range(0, len(content), 7):
        shard.write_bytes(content[:length])
        assert ActivationStore.open(tmp_path).broken_shards() == [shard.name]
        for store in (reading, ActivationStore.open(tmp_path)):  # one that has the file mapped, one that has not
            with pytest.raises(ArtifactError, match=f"{shard.name} cannot give {TOKENS}"):
                store.read(TOKENS)
        with pytest.raises(ArtifactError, match=shard.name):
            write_index(tmp_path, sites=[SITE], width=WIDTH, dtype="float32")


def test_a_flipped_bit_is_found_anywhere_and_nothing_but_an_artifact_error_comes_of_it(tmp_path: Path) -> None:
    make_ragged(tmp_path, SHARDS, dtype="bfloat16")
    rng = np.random.default_rng(20)
    contents = {path: path.read_bytes() for path in tmp_path.glob("shard-*")}
    for _ in range(200):
        path = sorted(contents)[rng.integers(len(contents))]
        damaged = bytearray(contents[path])
        place = rng.integers(len(damaged)) if rng.random() < 0.5 else rng.integers(8 + damaged[0] + 256 * damaged[1])
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        store = ActivationStore.open(tmp_path)
        assert store.broken_shards() == [path.name]
        with pytest.raises(ArtifactError, match=f"{path.name} is missing or does not match"):
            store.verify()
        for reading in (
            store.response_ids,
            store.token_index,
            partial(store.read, TOKENS),
            partial(store.rows, NAME, [5, 0, 3]),
        ):
            try:
                reading()
            except ArtifactError as error:
                assert path.name in str(error)
        path.write_bytes(contents[path])
    ActivationStore.open(tmp_path).verify()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "end at byte"),
        ({"dtype": "F32", "shape": [2, 4], "data_offsets": [8, 40]}, "does not follow"),
        ({"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 64]}, "has 64 bytes for float32"),
        ({"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}, "end at byte"),
        ({"dtype": "F32", "shape": [-2, -4], "data_offsets": [0, 32]}, "something else than counts"),
        ({"dtype": "F32", "shape": [2, 4.0], "data_offsets": [0, 32]}, "something else than counts"),
        ({"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 1 << 80]}, "bytes for float32"),
        ({"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 32]}, "dtype F4"),
        ({"dtype": "F32", "data_offsets": [0, 32]}, "is not one"),
        ([1], "is not one"),
    ],
)
def test_a_header_that_points_outside_its_file_is_refused(tmp_path: Path, entry: object, message: str) -> None:
    header = json.dumps({"__metadata__": {"response_ids": '["q0/0/organism", "q1/0/organism"]'}, NAME: entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(32)
    with pytest.raises(ValueError, match=message):
        parse_header(content, size=len(content))
    make_store(tmp_path, [2])
    (tmp_path / shard_name(0)).write_bytes(content)
    index = read_json(tmp_path / "index.json", rebuild=REBUILD)
    index["shards"][0]["bytes"] = len(content)
    write_json(tmp_path / "index.json", index)
    with pytest.raises(ArtifactError, match=f"{shard_name(0)} cannot give {NAME}"):
        ActivationStore.open(tmp_path).read(NAME)


@pytest.mark.parametrize("length", [0, 1 << 40, (1 << 64) - 1])
def test_a_header_longer_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    make_store(tmp_path, [2])
    shard = tmp_path / shard_name(0)
    shard.write_bytes(length.to_bytes(8, "little") + shard.read_bytes()[8:])
    with pytest.raises(ArtifactError, match=f"{shard.name} cannot give {NAME}"):
        ActivationStore.open(tmp_path).read(NAME)


def test_a_long_header_is_read_whole(tmp_path: Path, memory: str) -> None:
    """Ids of 130 KB: more than is fetched of a file at first."""
    count = 5000
    values, ids = rows_of(count)
    for place in (tmp_path, memory):
        write_shard(place, 0, {NAME: values}, [f"{identity}/a-long-name" for identity in ids])
        write_index(place, sites=[SITE], width=WIDTH, dtype="float32")
        store = ActivationStore.open(place)
        assert store.response_ids()[-1] == f"{ids[-1]}/a-long-name"
        np.testing.assert_array_equal(store.rows(NAME, [count - 1]), values[-1:])


APPEND = """
import sys
from pathlib import Path
import numpy as np
from unmask.store import write_shard
folder, number = Path(sys.argv[1]), int(sys.argv[2])
print("begun", flush=True)
while True:
    values = np.full((64, 512), number % 256, dtype=np.float32)
    write_shard(folder, number, {"base/x@tokens": values, "base/x": values[:4]}, [f"{number}-{row}" for row in range(4)],
                token_offsets=[0, 16, 16, 60, 64], dtype="bfloat16")
    number += 1
"""


def test_a_writer_killed_at_any_moment_leaves_whole_shards(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    for _ in range(10):
        before = len(list(tmp_path.glob("shard-*")))
        child = subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path), str(before)], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"begun\n"
            time.sleep(0.02 + 0.2 * rng.random())
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
        shards = sorted(tmp_path.glob("shard-*"))
        for number, path in enumerate(shards):
            with safe_open(path, framework="pt") as shard:
                assert (shard.get_tensor("base/x@tokens").float() == number % 256).all()
            assert len(ActivationStore.shard_response_ids(path)) == 4
    assert len(shards) > 0
    write_index(tmp_path, sites=["x"], width=512, dtype="bfloat16")
    store = ActivationStore.open(tmp_path)
    store.verify()
    assert store.shape("base/x@tokens") == (64 * len(shards), 512)


# --- size ---


def test_ten_million_tokens_are_opened_without_touching_a_shard(tmp_path: Path) -> None:
    """200 shards of 50 000 token rows; while the store is opened they are not even there."""
    shards, rows, width = 200, 50_000, 8
    values = np.arange(shards * rows, dtype=np.int64).reshape(-1, 1)
    digits = np.array([2048**1, 2048**2, 1, 1, 1, 1, 1, 1])
    offsets = np.arange(0, rows + 1, 500)
    folder, away = tmp_path / "store", tmp_path / "away"
    for number in range(shards):
        tokens = (values[number * rows : (number + 1) * rows] // digits % 2048).astype(np.float32)
        ids = [f"{number}-{row}" for row in range(len(offsets) - 1)]
        write_shard(folder, number, {TOKENS: tokens}, ids, token_offsets=offsets, dtype="float16")
    write_index(folder, sites=[SITE], width=width, dtype="float16")
    away.mkdir()
    for path in folder.glob("shard-*"):
        path.rename(away / path.name)
    store = ActivationStore.open(folder)
    assert store.shape(TOKENS) == (shards * rows, width)
    for path in away.iterdir():
        path.rename(folder / path.name)
    wanted = np.random.default_rng(0).integers(0, shards * rows, 2000)
    np.testing.assert_array_equal(store.rows(TOKENS, wanted), values[wanted] // digits % 2048)
    assert store.token_index().offsets.nbytes < 200_000
    np.testing.assert_array_equal(store.token_index().responses(wanted), wanted // 500)
    np.testing.assert_array_equal(
        store.tokens("organism", SITE, "150-7")[:, 2], (values[150 * rows + 3500 :][:500] % 2048)[:, 0]
    )
    assert sum(len(block) for block in store.blocks(TOKENS, 1 << 20)) == shards * rows
    assert isinstance(store.folder, LocalFolder)
    assert len(store.folder._maps) <= 64, "each holds a descriptor"
    shutil.rmtree(tmp_path)


def test_few_rows_of_a_large_file_are_read_without_the_rest(tmp_path: Path) -> None:
    """Rows far apart in a file that the system may have to fetch from the disk."""
    rows, width = 4096, 1024
    values = np.arange(rows, dtype=np.float32)[:, None] * np.ones(width, dtype=np.float32)
    write_shard(tmp_path, 0, {NAME: values}, [str(row) for row in range(rows)])
    write_index(tmp_path, sites=[SITE], width=width, dtype="float32")
    with (tmp_path / shard_name(0)).open("rb") as handle:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    wanted = np.array([4000, 17, 17, 2500])
    np.testing.assert_array_equal(ActivationStore.open(tmp_path).rows(NAME, wanted), values[wanted])


def test_a_store_is_pickled_without_its_content(tmp_path: Path) -> None:
    tokens = make_ragged(tmp_path, [[3000], [2]])
    store = ActivationStore.open(tmp_path)
    store.read(TOKENS)
    text = pickle.dumps(store)
    assert len(text) < tokens.nbytes / 4
    np.testing.assert_array_equal(pickle.loads(text).read(TOKENS), tokens)


def test_a_shard_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    values, ids = make_store(tmp_path, [3])
    store = ActivationStore.open(tmp_path)
    np.testing.assert_array_equal(store.read(NAME), values)
    write_shard(tmp_path, 0, {NAME: -values, f"{NAME}/norm": values[:, 0]}, ids)
    np.testing.assert_array_equal(store.read(NAME), -values)
    assert store.broken_shards() == [shard_name(0)]


def test_the_store_is_imported_without_numpy_and_safetensors() -> None:
    heavy = "{'numpy', 'safetensors', 'fsspec', 'torch', 'pandas'}"
    code = f"import sys, unmask.store; print(sorted({heavy} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_sealed_store_is_annotated_without_its_shards_being_read(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, {"base/blocks.1.hook_resid_pre": np.ones((2, 4), np.float32)}, ["a", "b"])
    write_index(tmp_path, sites=["blocks.1.hook_resid_pre"], width=4, dtype="float32")
    shard = tmp_path / shard_name(0)
    content = shard.read_bytes()
    shard.unlink()
    annotate_index(tmp_path, excluded={"blocks.1.hook_resid_pre": [2]}, report={"found": 1})
    shard.write_bytes(content)
    store = ActivationStore.open(tmp_path)
    store.verify()
    assert store.report == {"found": 1}
    assert store.read("base/blocks.1.hook_resid_pre").tolist() == [[1, 1, 0, 1]] * 2
    with pytest.raises(DataError, match="no coordinate 4"):
        annotate_index(tmp_path, excluded={"blocks.1.hook_resid_pre": [4]}, report={})
