"""Models and tokenizers from a packaged name, a Hugging Face id or a local folder; adapters on top of them."""

from __future__ import annotations

import copy
import ctypes
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unmask.artifact import digest_json, listing
from unmask.errors import ModelError
from unmask.models.embedded import EMBEDDED, pull_embedded
from unmask.models.quiet import quiet_libraries
from unmask.progress import Progress
from unmask.records import ModelSource

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, in evaluation mode, with the tokenizer of its base.

    Where base and organism are one model with an adapter that is switched off and on, `adapter` says which of the two this is;
    whoever runs it does so inside `active()`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    adapter: bool | None = None

    @property
    def num_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def width(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @contextmanager
    def active(self) -> Generator[None]:
        """Switch the adapter, where there is one to switch, for the duration of the block."""
        if self.adapter is None:
            yield
            return
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        switchable = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        layers: list[Any] = [module for module in self.model.modules() if isinstance(module, switchable)]
        before = [layer.disable_adapters for layer in layers]
        try:
            for layer in layers:
                layer.enable_adapters(self.adapter)
            yield
        finally:
            for layer, disabled in zip(layers, before, strict=True):
                layer.enable_adapters(not disabled)


def pick_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(source: ModelSource, device: torch.device) -> torch.dtype:
    """The source's dtype; `auto` is bfloat16 on a GPU and float32 on a CPU, which has no fast bfloat16."""
    import torch

    if source.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[source.dtype]


@cache
def steady_allocator() -> None:
    """Keep glibc from handing big blocks back to the kernel after every step (half the time of a CPU forward pass)."""
    if sys.platform != "linux":
        return
    mmap_threshold, trim_threshold = -3, -1
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):  # another C library: only speed is lost
        return


def looks_local(name: str) -> bool:
    """True for a name that can only be a path."""
    return name.startswith((".", "/", "~")) or Path(name).is_dir()


def locate(name: str, *, progress: Progress | None = None) -> str:
    """What transformers should be given for `name`: a folder, or the Hugging Face id itself.

    Raises ModelError when a local folder is missing or holds no model.
    """
    if name in EMBEDDED:
        return str(pull_embedded(name, progress=progress))
    if not looks_local(name):
        return name
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(
            f"model folder {name} does not exist", mend="Name an existing folder, a Hugging Face id, or smollm2"
        )
    if not (folder / "config.json").is_file() and not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{name} holds neither config.json nor {ADAPTER_CONFIG}", mend="Name a folder saved with save_pretrained"
        )
    return str(folder)


def resolve_local(name: str, study_folder: Path) -> str:
    """A model's name with a relative folder made absolute: looked for in the study first, then in the working directory."""
    if name not in EMBEDDED:
        for folder in (study_folder / name, Path(name).expanduser()):
            if folder.is_dir():
                return str(folder.resolve())
    return name


def fingerprint(name: str, *, revision: str | None = None) -> str:
    """What a cache key says of a model: the pinned digest of an embedded one, the content's digest of a folder, id and
    revision of a Hugging Face id."""
    if name in EMBEDDED:
        return f"{name}@{EMBEDDED[name].sha256}"
    place = locate(name)
    if not Path(place).is_dir():
        return f"{name}@{revision or _cached_commit(name) or 'main'}"
    files = [(path.name, path.stat()) for path in sorted(Path(place).rglob("*")) if path.is_file()]
    return _folder_fingerprint(place, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files))


def _cached_commit(name: str) -> str | None:
    """The commit that `main` of a Hugging Face repository stood at when it was last looked up, from the local cache."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", ADAPTER_CONFIG):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str):
            parts = Path(found).parts
            return parts[parts.index("snapshots") + 1]
    return None


@cache
def _folder_fingerprint(place: str, stamp: tuple[tuple[str, int, int], ...]) -> str:
    """Digest of a folder's content, taken once while `stamp` (names, sizes, times) stays the same."""
    return digest_json(listing(Path(place)))


def load_tokenizer(source: ModelSource, *, progress: Progress | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a source. Raises ModelError when it cannot be loaded."""
    from transformers import AutoTokenizer

    place = locate(source.name, progress=progress)
    with quiet_libraries():
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                place, revision=source.revision, trust_remote_code=source.trust_remote_code
            )
        except (OSError, ValueError, KeyError) as error:
            raise cannot_load("tokenizer", source.name, error) from error
    return tokenizer


def load_config(source: ModelSource) -> Any:
    """The model's configuration without its weights. Raises ModelError when it cannot be loaded."""
    from transformers import AutoConfig

    place = locate(source.name)
    with quiet_libraries():
        try:
            config = AutoConfig.from_pretrained(
                place, revision=source.revision, trust_remote_code=source.trust_remote_code
            )
        except (OSError, ValueError, KeyError) as error:
            raise cannot_load("model", source.name, error) from error
    return config.get_text_config()


def load_weights(
    source: ModelSource,
    *,
    device: torch.device,
    progress: Progress | None = None,
    kind: Literal["model", "organism"] = "model",
) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Raises ModelError when it cannot be loaded, or not with all its weights, or is not what can be read (`trial.try_out`).
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from unmask.models.trial import try_out

    steady_allocator()
    place = locate(source.name, progress=progress)
    with quiet_libraries():
        try:
            with_info: Any = AutoModelForCausalLM.from_pretrained(
                place,
                revision=source.revision,
                trust_remote_code=source.trust_remote_code,
                dtype=pick_dtype(source, device),
                use_safetensors=True,  # weights in pickle form are refused
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise cannot_load(kind, source.name, error) from error
    model, found = with_info
    if found["missing_keys"]:  # transformers makes them up and warns
        raise ModelError(
            f"model {source.name!r} lacks weights of {type(model).__name__}: {first_and_more(found['missing_keys'])}",
            mend="Name a whole causal language model, saved with save_pretrained",
        )
    model = model.to(device).eval()
    try_out(model, device)
    return model


def without_weights(config: Any, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A causal language model of that configuration whose weights take no memory: tens of milliseconds.

    Raises ModelError where transformers cannot build one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet_libraries(), torch.device("meta"):
            # A copy, since building a model writes to its configuration.
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"a model of type {config.model_type} cannot be built ({first_line(error)})",
            mend="Name a causal language model that transformers knows",
        ) from error


def backend(source: ModelSource, *, made_on: str | None = None) -> dict[str, str]:
    """What a model is run with: device, dtype, and which implementation of attention. `made_on` is another machine's device."""
    import torch

    device = pick_device() if made_on is None else torch.device(made_on)
    found = {"device": device.type, "dtype": str(pick_dtype(source, device)).removeprefix("torch.")}
    try:
        model = without_weights(load_config(source), trust_remote_code=source.trust_remote_code)
    except ModelError:
        return found | {"attention": "unknown"}
    return found | {"attention": str(model.config._attn_implementation)}


def load_base(source: ModelSource, *, progress: Progress | None = None) -> LoadedModel:
    """The base model with its tokenizer."""
    device = pick_device()
    return LoadedModel(
        model=load_weights(source, device=device, progress=progress),
        tokenizer=load_tokenizer(source, progress=progress),
        device=device,
    )


def first_and_more(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def cannot_load(kind: str, name: str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{kind} {name!r} cannot be loaded: it brings its own code",
            mend=f"Read that code, then set {'organism' if kind == 'organism' else 'base'}.trust_remote_code to true if you "
            "trust it",
        )
    return ModelError(
        f"{kind} {name!r} cannot be loaded ({first_line(error)})",
        mend="Name a local folder, a Hugging Face id that this machine can reach, or smollm2",
    )


def not_finite(what: str) -> ModelError:
    """What is to be said of a model that shows something else than numbers."""
    return ModelError(
        f"{what}: they overflow in float16, or the weights are damaged", mend="Set base.dtype to bfloat16 or float32"
    )


def first_line(error: Exception) -> str:
    """The first line of an exception's message, for a one-sentence error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
