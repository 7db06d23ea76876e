"""Directions for other programs, and directions of other programs: safetensors, and GGUF control vectors (repeng, llama.cpp).

A control vector adds to the output of block N: at `hook_resid_post` of block N, which is `hook_resid_pre` of block N + 1.
llama.cpp refuses N = 0. What is exported as a control vector is the unit direction times the typical residual norm, so that
strength 1 there is coefficient 1 here.

Shapes: D width of the residual stream.
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from unmask.artifact import atomic_path, read_json, read_table, read_tensors, write_tensors, write_text
from unmask.errors import ConfigError, listed
from unmask.records import Site
from unmask.study import Study

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

STAGE = "directions"
ARCHITECTURE = "controlvector"
_PARTS = ("", ".left", ".right", ".centre")
"""What a direction's tensors are called behind its id: the vector, or an eraser's three."""

_README = """# Directions

Made by {tool} from `{study}`: at {site} of {base}, whose residual stream there has the typical norm {typical_norm:.6g}.

- `directions.safetensors`: each direction (D, float32) under its id, as long as it was found; an eraser is `ID.left` (D x K),
  `ID.right` (K x D) and `ID.centre` (D): x becomes x - (x - centre) right^T left^T. The header's `provenance` is JSON.
- `use_directions.py`: adds a direction to a Hugging Face model. It needs torch, transformers and safetensors, and not unmask.
- `*.gguf`: control vectors, for llama.cpp (`--control-vector-scaled`) and repeng (`ControlVector.import_gguf`). Each is the unit
  direction times the typical norm: strength 1 adds one typical norm, as coefficient 1 does in unmask and in `use_directions.py`.
"""

_SNIPPET = '''"""Add an exported direction to a Hugging Face model while it runs. Needs torch, transformers and safetensors.

    python use_directions.py MODEL DIRECTION COEFFICIENT "A question"

or `with steered(model, "DIRECTION", COEFFICIENT): model.generate(...)`. A coefficient of 1 adds the unit direction times the
typical norm of the residual stream at the site, at every position.
"""

import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

FILE = Path(__file__).with_name("directions.safetensors")


@contextmanager
def steered(model, name, coefficient):
    with safe_open(FILE, framework="pt") as file:
        about = json.loads(file.metadata()["provenance"])
        vector = file.get_tensor(name)
    found = re.fullmatch(r"blocks\\.(\\d+)\\.hook_resid_(pre|post)", about["site"])
    if found is None:
        raise ValueError(f"{about['site']} is inside a block: this script adds before or behind one")
    unit = vector / vector.norm()
    delta = (coefficient * about["typical_norm"] * unit).to(model.device, model.dtype)

    def before(module, args, kwargs):
        if args:
            return (args[0] + delta, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + delta}

    def behind(module, args, output):
        return (output[0] + delta, *output[1:]) if isinstance(output, tuple) else output + delta

    block = blocks(model)[int(found[1])]
    if found[2] == "pre":
        handle = block.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = block.register_forward_hook(behind)
    try:
        yield
    finally:
        handle.remove()


def blocks(model):
    """The stack of decoder blocks: the shallowest list of as many modules as the model has layers."""
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    return min(stacks, key=lambda stack: stack[0])[1]


def main(name, direction, coefficient, question):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
    with steered(model, direction, float(coefficient)):
        answer = model.generate(**prompt, max_new_tokens=200)
    print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
'''


def export_directions(study: Study, *, out: Path, model_type: str, ids: Iterable[str] | None = None) -> list[Path]:
    """Write a study's directions, or those of `ids`, for other programs. Returns what was written.

    `directions.safetensors` with its provenance, one control vector for each direction from all questions (with `ids`, for each
    named) where there is a block that it can stand behind, `use_directions.py` and `README.md`, which says what was left out and
    why. `model_type` is the base's, as its Hugging Face configuration has it.
    Raises ArtifactError when the stage has not been run or a file is damaged, ConfigError for an id that the study lacks, or
    where the package gguf is missing.
    """
    study.verify(STAGE)
    folder, rebuild = study.stage_folder(STAGE), f"unmask run {study.folder} --force {STAGE}"
    tensors = read_tensors(folder / "directions.safetensors", rebuild=rebuild)
    summary = read_json(folder / "summary.json", rebuild=rebuild)
    table = _chosen(read_table(folder / "directions.parquet", rebuild=rebuild), ids)
    base = _header(folder / "directions.safetensors").get("base")
    about = _provenance(table, summary, base=base, model_type=model_type)
    wanted = table[(table["form"] == "direction") & ((table["half"] == "all") | (ids is not None))]
    vectors, notes = _control_vectors(wanted["direction_id"], tensors, about)
    gguf = _gguf(out) if vectors else None
    kept = {f"{name}{part}" for name in table["direction_id"] for part in _PARTS} & set(tensors)
    paths = [out / "directions.safetensors", out / "use_directions.py", out / "README.md"]
    write_tensors(paths[0], {name: tensors[name] for name in sorted(kept)}, provenance=about)
    write_text(paths[1], _SNIPPET)
    write_text(
        paths[2], _README.format(study=study.folder.resolve().name, **about) + "".join(f"\n{note}\n" for note in notes)
    )
    for name, vector_D in vectors.items():
        paths.append(out / f"{quote(name, safe='')}.gguf")
        _write_control_vector(gguf, paths[-1], name, vector_D, about)
    return paths


def _provenance(table: pd.DataFrame, summary: dict[str, Any], *, base: object, model_type: str) -> dict[str, Any]:
    """What the header of the exported file says."""
    about = ("kind", "label", "form", "half", "replicate", "norm")
    return {
        "tool": f"unmask {version('unmask')}",
        "base": base,
        "model_type": model_type,
        "site": summary["site"],
        "typical_norm": float(summary["typical_norm"]),
        "directions": {
            str(row["direction_id"]): {name: _plain(row[name]) for name in about} for row in table.to_dict("records")
        },
    }


def _control_vectors(
    names: Iterable[str], tensors: dict[str, np.ndarray], about: dict[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The control vectors (D, float32, as long as the typical norm) by direction, and what is said of those there are not."""
    site = Site.parse(about["site"])
    if not _block(site):
        where = "inside a block" if site.point == "resid_mid" else "before block 1 is done"
        return {}, [f"No control vectors: {site.name} lies {where}, where llama.cpp adds nothing."]
    vectors, notes = {}, []
    for name in names:
        norm = float(np.linalg.norm(tensors[name].astype(np.float64)))
        if norm > 0:
            vectors[name] = (tensors[name] * (about["typical_norm"] / norm)).astype(np.float32)
        else:
            notes.append(f"No control vector of {name}: it is zero.")
    return vectors, notes


def read_direction_file(path: Path, *, site: Site, width: int) -> dict[str, np.ndarray]:
    """A user's own directions (D, float32) by name: every tensor of a safetensors file, or a GGUF control vector's at the site.

    A safetensors file whose metadata name a site must name this one; of a file of `export_directions` erasers are left out. A
    control vector is called as its file.
    Raises ConfigError where a direction is missing, or does not fit the site.
    """
    if not path.is_file():
        raise ConfigError(f"direction file {path} does not exist", mend="Name a .safetensors or .gguf file")
    if path.suffix == ".gguf":
        return {path.stem: _fitting(path, *_of_control_vector(path, site), width=width)}
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"direction file {path} is neither safetensors nor GGUF", mend="Name a .safetensors or .gguf file"
        )
    about = _header(path)
    if (said := about.get("site")) is not None and _same_stream(str(said)) != _same_stream(site.name):
        raise ConfigError(
            f"the directions of {path} are from site {said}, not {site.name}",
            mend="Name a file of directions from this site, or choose that site",
        )
    forms = about.get("directions")
    tensors = _tensors(path)
    if isinstance(forms, dict):
        tensors = {
            name: tensors[name] for name, each in forms.items() if name in tensors and each["form"] == "direction"
        }
    if not tensors:
        raise ConfigError(
            f"{path} holds no direction", mend=f"Save tensors of one dimension with {width} numbers in it"
        )
    return {name: _fitting(path, name, vector, width=width) for name, vector in tensors.items()}


def _chosen(table: pd.DataFrame, ids: Iterable[str] | None) -> pd.DataFrame:
    if ids is None:
        return table
    wanted, known = list(dict.fromkeys(ids)), set(table["direction_id"])
    for name in wanted:
        if name not in known:
            some = listed(table["direction_id"][:8]) + (", ..." if len(table) > 8 else "")
            raise ConfigError(f"the study has no direction {name!r}", mend=f"Choose from: {some}")
    return table[table["direction_id"].isin(wanted)]


def _plain(value: Any) -> Any:
    """A table's cell as JSON has it: whole numbers stay whole, missing is null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _block(site: Site) -> int | None:
    """The block at whose output the stream of a site lies; None for a site inside a block or before the first."""
    if site.layer is None or site.point not in ("resid_pre", "resid_post"):
        return None
    block = site.layer - (site.point == "resid_pre")
    return block if block >= 0 else None


def _same_stream(name: str) -> str:
    """The site's name, the same for both names of the stream between two blocks. Raises ConfigError for what is no site."""
    site = Site.parse(name)
    return Site(_block(site), "resid_post").name if _block(site) is not None else name


def _header(path: Path) -> dict[str, Any]:
    """What the metadata of a safetensors file say: its entries, and those of the JSON text `provenance`.

    Raises ConfigError for a file that cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            entries = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    try:
        inside = json.loads(entries.get("provenance", "{}"))
    except ValueError:
        inside = {}
    return {**entries, **(inside if isinstance(inside, dict) else {})}


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file that `_header` could read."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except TypeError:  # NumPy lacks bfloat16: by way of torch
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118


def _of_control_vector(path: Path, site: Site) -> tuple[str, np.ndarray]:
    """The tensor of a control vector for a site, and its name."""
    block = _block(site)
    if block is None:
        raise ConfigError(
            f"control vector {path} has nothing for site {site.name}: control vectors add to the output of a block",
            mend="Choose hook_resid_post, or hook_resid_pre of any layer but the first",
        )
    gguf = _gguf(path)
    try:
        reader = gguf.GGUFReader(path)
        said = reader.get_field("general.architecture")
        architecture = None if said is None else said.contents()
        found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise _unreadable(path, error) from error
    if architecture != ARCHITECTURE:
        raise ConfigError(
            f"{path} is no control vector: its architecture is {architecture!r}",
            mend="Name a GGUF file that repeng or llama.cpp's cvector-generator wrote",
        )
    name = f"direction.{block}"
    if name not in found:
        raise ConfigError(
            f"control vector {path} has no {name}, which site {site.name} needs: it has {listed(sorted(found)) or 'none'}",
            mend="Choose a site behind one of these blocks",
        )
    return name, found[name]


def _fitting(path: Path, name: str, vector: np.ndarray, *, width: int) -> np.ndarray:
    """The direction (D, float32). Raises ConfigError for a tensor that is none."""
    if vector.shape != (width,):
        raise ConfigError(
            f"tensor {name!r} of {path} has the shape {list(vector.shape)}, the site's stream is {width} wide",
            mend=f"Save each direction as a tensor of one dimension with {width} numbers",
        )
    if not np.issubdtype(vector.dtype, np.floating) or not np.isfinite(vector).all() or not vector.any():
        raise ConfigError(
            f"tensor {name!r} of {path} is no direction: {vector.dtype} with numbers that are not finite, or none but zeros",
            mend="Save finite floating-point numbers that are not all zero",
        )
    return vector.astype(np.float32)


def _write_control_vector(gguf: Any, path: Path, name: str, vector_D: np.ndarray, about: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        writer.add_name(name)
        writer.add_string(f"{ARCHITECTURE}.model_hint", about["model_type"])
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", 1)
        writer.add_tensor(f"direction.{_block(Site.parse(about['site']))}", vector_D)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _gguf(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            f"control vectors ({path}) need the package gguf, which is not installed",
            mend="Run `pip install 'gguf>=0.19'`",
        ) from error
    return gguf


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"direction file {path} cannot be read ({error})", mend="Save it again, or name another file")
