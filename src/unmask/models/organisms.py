"""Organisms: adapters on top of a base, folded in or switched off and on, and full models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.artifact import read_json
from unmask.errors import ModelError
from unmask.models.loading import (
    ADAPTER_CONFIG,
    LoadedModel,
    cannot_load,
    first_and_more,
    first_line,
    load_base,
    load_config,
    load_tokenizer,
    load_weights,
    locate,
    looks_local,
    pick_device,
    pick_dtype,
    resolve_local,
)
from unmask.models.quiet import quiet_libraries
from unmask.progress import Progress
from unmask.records import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_organism(source: ModelSource, organism: ModelSource) -> LoadedModel:
    """The organism: an adapter folded into a copy of the base's weights, or a full model. The base's tokenizer and dtype
    serve both.

    Raises ModelError when the adapter was made for another base.
    """
    device = pick_device()
    tokenizer = load_tokenizer(source)
    adapter = read_adapter_config(organism)
    if adapter is None:
        same_dtype = replace(organism, dtype=source.dtype)
        return LoadedModel(
            model=load_weights(same_dtype, device=device, kind="organism"), tokenizer=tokenizer, device=device
        )
    wrapped = _with_adapter(load_weights(source, device=device), source, organism, adapter)
    # Folding in is faster, but in 16 bits it would round the very shift that is studied.
    in_full = pick_dtype(source, device).itemsize == 4
    tuned: PreTrainedModel = wrapped.merge_and_unload() if in_full else wrapped.get_base_model()
    return LoadedModel(model=tuned.eval(), tokenizer=tokenizer, device=device)


def load_readers(
    source: ModelSource, organism: ModelSource, *, one_copy: bool | None = None, progress: Progress | None = None
) -> tuple[LoadedModel, LoadedModel]:
    """Base and organism, to be run in turn in one process.

    With `one_copy`, an organism that is an adapter shares the base's weights: both are one model whose adapter is switched. None
    does so in 16 bits, where the adapter is not folded in anyway; in 32 bits two copies are faster. A full model, or an adapter
    that trains what cannot be switched off, always has a copy of its own.
    """
    base = load_base(source, progress=progress)
    adapter = read_adapter_config(organism)
    wanted = pick_dtype(source, base.device).itemsize < 4 if one_copy is None else one_copy
    if not wanted or adapter is None or adapter.get("peft_type") != "LORA" or adapter.get("bias", "none") != "none":
        return base, load_organism(source, organism)
    model: PreTrainedModel = _with_adapter(base.model, source, organism, adapter).get_base_model().eval()
    return replace(base, model=model, adapter=False), replace(base, model=model, adapter=True)


def _with_adapter(model: PreTrainedModel, source: ModelSource, organism: ModelSource, adapter: dict[str, Any]) -> Any:
    """The model wrapped by PEFT. Raises ModelError for an adapter that does not fit."""
    check_adapter_base(source, organism, adapter)
    from peft import PeftModel
    from safetensors import SafetensorError

    place = locate(organism.name)
    _refuse_pickled(organism, place)
    with quiet_libraries():
        try:
            wrapped: Any = PeftModel.from_pretrained(model, place, revision=organism.revision)
            # `from_pretrained` only warns of tensors that found no place, which leaves the base as it was: ask once more.
            left = wrapped.load_adapter(place, "default", revision=organism.revision)
        except (RuntimeError, ValueError, OSError, SafetensorError) as error:
            raise _does_not_fit(organism, source, first_line(error)) from error
    if left.missing_keys or left.unexpected_keys:
        raise _does_not_fit(
            organism,
            source,
            f"tensors without a counterpart: {first_and_more([*left.unexpected_keys, *left.missing_keys])}",
        )
    return wrapped


def _refuse_pickled(organism: ModelSource, place: str) -> None:
    """Raise ModelError for an adapter whose weights are a pickle: PEFT would read it."""
    from huggingface_hub import file_exists, try_to_load_from_cache

    name = "adapter_model.safetensors"
    if Path(place).is_dir():
        there = (Path(place) / name).is_file()
    elif isinstance(try_to_load_from_cache(place, name, revision=organism.revision), str):
        there = True
    else:
        try:
            there = file_exists(place, name, revision=organism.revision)
        except (OSError, ValueError) as error:
            raise cannot_load("organism", organism.called, error) from error
    if not there:
        raise ModelError(
            f"adapter {organism.called} has no {name}",
            mend="Save it with safe_serialization=True; pickled weights are refused",
        )


def read_adapter_config(organism: ModelSource) -> dict[str, Any] | None:
    """The adapter's configuration, or None when `organism` is a full model."""
    place = locate(organism.name)
    if Path(place).is_dir():
        path = Path(place) / ADAPTER_CONFIG
        return read_json(path, rebuild="save_pretrained of the adapter") if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return read_json(
            Path(hf_hub_download(place, ADAPTER_CONFIG, revision=organism.revision)), rebuild="a fresh download"
        )
    except LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError that means: no network
        raise cannot_load("organism", organism.name, error) from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise cannot_load("organism", organism.name, error) from error


def check_adapter_base(source: ModelSource, organism: ModelSource, adapter: dict[str, Any]) -> None:
    """Refuse an adapter whose recorded base is plainly another model. A base recorded as a path is not compared."""
    recorded = str(adapter.get("base_model_name_or_path") or "")
    if not recorded or looks_local(recorded) or looks_local(source.name):
        return
    if recorded.rsplit("/", 1)[-1].lower() != source.name.rsplit("/", 1)[-1].lower():
        raise ModelError(
            f"adapter {organism.called} was trained on base {recorded!r}, the study's base is {source.called!r}",
            mend=f"Set base.model to {recorded} or name another adapter",
        )


def check_same_shape(source: ModelSource, tuned: ModelSource) -> None:
    """Refuse a full model whose depth or width is not the base's: its activations have no counterpart."""
    base, other = load_config(source), load_config(tuned)
    for field, word in (("num_hidden_layers", "layers"), ("hidden_size", "coordinates")):
        if getattr(base, field) != getattr(other, field):
            raise ModelError(
                f"{tuned.called} has {getattr(other, field)} {word}, the base {source.called} has {getattr(base, field)}",
                mend="Name a model that was tuned from this base",
            )


def _does_not_fit(organism: ModelSource, source: ModelSource, reason: str) -> ModelError:
    return ModelError(
        f"adapter {organism.name} does not fit base {source.name} ({reason})",
        mend="Set base.model to the model that the adapter was trained on",
    )


def organism_source(stage_folder: Path) -> ModelSource:
    """The organism that the stage of that name left in its folder: its own adapter or weights, or the model it points at."""
    recipe = read_json(stage_folder / "recipe.json", rebuild="unmask run STUDY --force organism")
    if recipe["kind"] == "existing":
        name = resolve_local(recipe["name"], stage_folder.parent)
        trusted = bool(recipe.get("trust_remote_code", False))
        return ModelSource(name, recipe["revision"], trust_remote_code=trusted, label=recipe["name"])
    return ModelSource(str((stage_folder / ("adapter" if recipe["method"] == "lora" else "model")).resolve()))
