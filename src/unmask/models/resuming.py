"""Run a model from one of its layers on, with a residual stream that was kept from an earlier pass or made.

Shapes: B rows, T tokens, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from unmask.errors import ModelError
from unmask.models.key_value_cache import keeps_keys_and_values
from unmask.models.sites import body, decoder_layers, unwrapped

if TYPE_CHECKING:
    from unmask.models.loading import LoadedModel
    from unmask.records import Site


def start_layer(site: Site, *, num_layers: int) -> int:
    """The layer whose input is the residual stream at `site`.

    Raises ModelError for a site that is no layer's input: inside a layer, or behind the last one.
    """
    layer = -1 if site.layer is None else site.layer + (site.point == "resid_post")
    if site.point not in ("resid_pre", "resid_post") or not 0 <= layer < num_layers:
        raise ModelError(
            f"answers cannot be forced under interventions at {site.name}: it is not the stream that enters a layer",
            mend="Choose hook_resid_pre, or hook_resid_post of any layer but the last",
        )
    return layer


def why_not(config: Any, site: Site) -> str | None:
    """Why answers cannot be forced at `site` on a model of that configuration (Hugging Face's); None where they can."""
    if not keeps_keys_and_values(config):
        return f"{config.model_type} models keep a past that is not keys and values"
    try:
        start_layer(site, num_layers=int(config.get_text_config().num_hidden_layers))
    except ModelError as error:
        return error.what
    return None


class Resumed:
    """What enters the layer that a pass is resumed at."""

    stream_BTD: torch.Tensor


@contextmanager
def resuming(loaded: LoadedModel, layer: int, *, gives_tuple: bool) -> Generator[Resumed]:
    """Inside the block the layers below `layer` do nothing, and what enters it is the stream that was put into what is yielded.

    `gives_tuple`: what the function of that name says of the model. Blocks may not be nested on one model.
    """
    layers = decoder_layers(unwrapped(loaded.model))
    resumed = Resumed()

    def passed(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, None) if gives_tuple else hidden

    def put(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (resumed.stream_BTD, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": resumed.stream_BTD}

    handle = layers[layer].register_forward_pre_hook(put, with_kwargs=True)
    skipped = list(layers)[:layer]
    try:
        for below in skipped:
            below.__dict__["forward"] = passed
        yield resumed
    finally:
        for below in skipped:
            below.__dict__.pop("forward", None)
        handle.remove()


def gives_tuple(loaded: LoadedModel, layer: int) -> bool:
    """Whether the decoder layers of this model give their hidden states back inside a tuple."""
    found: list[bool] = []
    module = decoder_layers(unwrapped(loaded.model))[layer]
    handle = module.register_forward_hook(lambda module, args, output: found.append(isinstance(output, tuple)))
    try:
        body(loaded.model)(input_ids=torch.zeros(1, 1, dtype=torch.long, device=loaded.device), use_cache=False)
    finally:
        handle.remove()
    return found[0]
