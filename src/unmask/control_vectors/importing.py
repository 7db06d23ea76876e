"""A user's own directions, of a safetensors file or a GGUF control vector.

Shapes: D width of the residual stream.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unmask.control_vectors.formats import ARCHITECTURE, block_behind, header, load_gguf, unreadable
from unmask.errors import ConfigError, listed
from unmask.records import Site


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
    about = header(path)
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


def _same_stream(name: str) -> str:
    """The site's name, the same for both names of the stream between two blocks. Raises ConfigError for what is no site."""
    site = Site.parse(name)
    return Site(block_behind(site), "resid_post").name if block_behind(site) is not None else name


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file that `header` could read."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except TypeError:  # NumPy lacks bfloat16: by way of torch
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118


def _of_control_vector(path: Path, site: Site) -> tuple[str, np.ndarray]:
    """The tensor of a control vector for a site, and its name."""
    block = block_behind(site)
    if block is None:
        raise ConfigError(
            f"control vector {path} has nothing for site {site.name}: control vectors add to the output of a block",
            mend="Choose hook_resid_post, or hook_resid_pre of any layer but the first",
        )
    gguf = load_gguf(path)
    try:
        reader = gguf.GGUFReader(path)
        said = reader.get_field("general.architecture")
        architecture = None if said is None else said.contents()
        found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise unreadable(path, error) from error
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
