"""Add directions to the residual stream while a model runs; hooks live only inside the block.

Shapes: B rows, T tokens, D width of the residual stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from unmask.errors import ModelError
from unmask.models.hook_points import hook_point
from unmask.records import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Addition:
    """Adds one vector per row, at one site, over all positions: `with Addition(model, site, delta_BD): ...`.

    `delta_BD` is coefficient x direction, so one batch carries many directions and doses. Rows of zeros leave their row
    exactly as it was. `select` follows a batch whose rows are dropped or reordered.

    At `resid_mid` the delta rides on what attention adds to the stream, so that it reaches the MLP and the layers behind.

    Raises ModelError for a site that is not the residual stream, or that the model lacks.
    """

    def __init__(self, model: PreTrainedModel, site: Site, delta_BD: torch.Tensor) -> None:
        if not site.residual:
            raise ModelError(
                f"nothing can be added at {site.name}: it is not the residual stream",
                mend="Choose hook_resid_pre, hook_resid_mid or hook_resid_post",
            )
        self._place = hook_point(model, site)
        if site.point == "resid_mid":
            self._place = hook_point(model, Site(site.layer, "attn_out"))
        parameter = next(model.parameters())
        self._delta_B1D = delta_BD.to(device=parameter.device, dtype=parameter.dtype).unsqueeze(1)
        self._handle: Any = None

    def select(self, rows: torch.Tensor) -> None:
        """Keep only `rows` (indices into the current rows)."""
        self._delta_B1D = self._delta_B1D[rows]

    def __enter__(self) -> Self:
        if self._place.side == "input":
            self._handle = self._place.module.register_forward_pre_hook(self._before, with_kwargs=True)
        else:
            self._handle = self._place.module.register_forward_hook(self._after)
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.remove()

    def _before(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0] + self._delta_B1D, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + self._delta_B1D}

    def _after(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + self._delta_B1D, *output[1:])
        return output + self._delta_B1D
