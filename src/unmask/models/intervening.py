"""Intervene on the residual stream while a model runs; hooks live only inside the block.

At `resid_mid` no module holds the stream alone: the change rides on what attention adds to it, so that it reaches the MLP and the
layers behind. The stream there is what enters the layer plus what attention adds.

Shapes: B rows, T tokens, D width of the residual stream.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import torch

from unmask.errors import ModelError
from unmask.models.hook_points import HookPoint, hook_points
from unmask.models.interventions import Ablate, Add, Change, Clamp, Erase, Intervention, Positions, Replace
from unmask.records import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Ablate",
    "Add",
    "Change",
    "Clamp",
    "Erase",
    "Intervening",
    "Intervention",
    "Positions",
    "Replace",
    "intervene",
]

References = Mapping[Site, torch.Tensor]
"""Another model's stream on the same tokens, by site (B x T x D)."""


def intervene(
    model: PreTrainedModel,
    interventions: Sequence[Intervention],
    *,
    response_BT: torch.Tensor | None = None,
    references: References | None = None,
) -> Intervening:
    """`with intervene(model, [Add(site, delta_BD), ...]): model(...)` runs every pass inside the block under the interventions.

    Row b of a pass is under row b of each; an intervention of one row is for all of them. Several at one site follow each other
    in the given order; block within block they do so too, but a block at `resid_mid` does not see what a later one does at the
    `resid_pre` of its layer. `response_BT` (bool) says which positions of a pass predict response tokens; without it all do.
    `references` are what `Replace` reads.

    Raises ModelError for a site that is not the residual stream or that the model lacks, and for another width than the model's.
    """
    for each in interventions:
        _check(model, each)
    parameter = next(model.parameters())
    changes = [each.on(parameter.device, parameter.dtype) for each in interventions]
    return Intervening(model, changes, response_BT=response_BT, references=references)


class Intervening:
    """Interventions on a model, felt inside `with` blocks. `intervene` makes it."""

    def __init__(
        self,
        model: PreTrainedModel,
        changes: Sequence[Change],
        *,
        response_BT: torch.Tensor | None,
        references: References | None,
    ) -> None:
        self._points = hook_points(model, {site for change in changes for site in _places(change.site)})
        self._changes = list(changes)
        self._stack = ExitStack()
        self.expect(response_BT=response_BT, references=references)

    def expect(self, *, response_BT: torch.Tensor | None = None, references: References | None = None) -> None:
        """Say of the coming passes which positions predict response tokens (bool; None: all), and what `Replace` reads there."""
        self._response_BT, self._references = response_BT, references or {}

    def on_rows(self, rows: torch.Tensor, *, response_BT: torch.Tensor | None = None) -> Intervening:
        """The same interventions on other rows (indices into these), in other passes: to be entered for itself."""
        other = copy.copy(self)
        other._stack = ExitStack()
        other._changes = [change.rows(rows) for change in self._changes]
        other.expect(response_BT=response_BT)
        return other

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows only (indices into the current ones)."""
        self._changes = [change.rows(rows) for change in self._changes]
        if self._response_BT is not None:
            self._response_BT = self._response_BT[rows]
        self._references = {site: stream_BTD[rows] for site, stream_BTD in self._references.items()}

    def __enter__(self) -> Self:
        acting = sorted({change.site for change in self._changes if not change.idle})
        with ExitStack() as stack:
            for site in acting:
                self._hook(site, stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _hook(self, site: Site, stack: ExitStack) -> None:
        if site.point != "resid_mid":
            stack.callback(_register(self._points[site], lambda hidden_BTD: self._changed(site, hidden_BTD)).remove)
            return
        entering, attention = (self._points[place] for place in _places(site)[1:])
        entered: list[torch.Tensor] = []

        def note(hidden_BTD: torch.Tensor) -> None:
            entered[:] = [hidden_BTD]

        def ride(added_BTD: torch.Tensor) -> torch.Tensor | None:
            return self._changed(site, added_BTD, beside_BTD=entered.pop())

        stack.callback(_register(entering, note).remove)
        stack.callback(_register(attention, ride).remove)

    def _changed(
        self, site: Site, hidden_BTD: torch.Tensor, *, beside_BTD: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """The activation with all changes at `site`, None where there are none. With `beside_BTD` it is the stream."""
        before_BTD = hidden_BTD
        for change in self._changes:
            if change.site != site or change.idle:
                continue
            mask_BT1 = None
            if change.positions != "all":
                if self._response_BT is None and change.positions == "prompt":
                    continue
                mask_BT1 = self._mask(change.positions, hidden_BTD)
            stream_BTD = hidden_BTD
            if beside_BTD is not None and change.reads != "nothing":
                stream_BTD = beside_BTD + hidden_BTD
            changed_BTD = change.change(stream_BTD, self._reference(change))
            hidden_BTD = hidden_BTD + (changed_BTD if mask_BT1 is None else changed_BTD * mask_BT1)
        return None if hidden_BTD is before_BTD else hidden_BTD

    def _mask(self, positions: Positions, hidden_BTD: torch.Tensor) -> torch.Tensor | None:
        """Where an intervention is felt (B x T x 1, of the stream's dtype); None: everywhere.

        Raises ValueError for response positions of another pass.
        """
        if self._response_BT is None:
            return None
        if self._response_BT.shape != hidden_BTD.shape[:2]:
            raise ValueError(
                f"response positions of a pass of {tuple(self._response_BT.shape)} were given for one of "
                f"{tuple(hidden_BTD.shape[:2])}"
            )
        felt_BT = self._response_BT if positions == "response" else ~self._response_BT
        return felt_BT.to(hidden_BTD).unsqueeze(2)

    def _reference(self, change: Change) -> torch.Tensor | None:
        if change.reads != "reference":
            return None
        if change.site not in self._references:
            raise ValueError(f"no reference stream was given for {change.site.name}: `references` must hold it")
        return self._references[change.site]


def _places(site: Site) -> list[Site]:
    """The sites that must be found to intervene at one; at `resid_mid` also where the stream comes from."""
    if site.point != "resid_mid":
        return [site]
    return [site, Site(site.layer, "resid_pre"), Site(site.layer, "attn_out")]


def _check(model: PreTrainedModel, intervention: Intervention) -> None:
    """Raise ModelError where there is no stream to intervene on, or it is of another width."""
    if not intervention.site.residual:
        raise ModelError(
            f"nothing can be changed at {intervention.site.name}: it is not the residual stream",
            mend="Choose hook_resid_pre, hook_resid_mid or hook_resid_post",
        )
    width = getattr(model.config.get_text_config(), "hidden_size", None)
    if width is not None and intervention.width != width:
        raise ModelError(
            f"an intervention at {intervention.site.name} has {intervention.width} coordinates, the model's stream {width}",
            mend="Take directions of this very model, or of its base",
        )


def _register(point: HookPoint, made: Callable[[torch.Tensor], torch.Tensor | None]) -> Any:
    """Hook a point: what `made` makes of the activation takes its place, unless it makes None. Nothing is changed in place."""

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed_BTD = made(point.at_input(args, kwargs))
        if changed_BTD is None:
            return None
        if args:
            return (changed_BTD, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed_BTD}

    def after(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        changed_BTD = made(point.read(output))
        if changed_BTD is None or not isinstance(output, tuple):
            return changed_BTD
        return (changed_BTD, *output[1:])

    if point.side == "input":
        return point.module.register_forward_pre_hook(before, with_kwargs=True)
    return point.module.register_forward_hook(after)
