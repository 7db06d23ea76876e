"""Observe sites while a model reads; hooks live only inside the block.

Shapes: B rows, T tokens, W coordinates of a site, D width of the residual stream, H heads, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from unmask.models.hook_points import HookPoint, hook_points

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unmask.records import Site

Keep = Callable[["Site", torch.Tensor], None]
"""Is handed a site and its activation: B x T x W, or B x H x Q x K for `pattern`. To be read at once and left as it is."""


class _Enough(BaseException):
    """Ends a forward pass whose sites have all been seen. Not an Exception, so that no model catches it on the way."""


@contextmanager
def observe(model: PreTrainedModel, sites: Sequence[Site], keep: Keep, *, stop: bool = False) -> Generator[None]:
    """Call `keep(site, activation)` for every site, in every forward pass made inside the block.

    The activation is the model's own tensor, detached, on its device and in its dtype, not a copy (`normalized` alone is computed
    for the purpose, in float32): later layers may overwrite it, so what is to last must be copied. `pattern` needs eager
    attention, which the model is switched to inside the block; what else it computes then differs by rounding. Nothing else of
    the model or its outputs changes.

    With `stop`, the pass ends right after the last of the sites was seen, and so does the block: what stands behind the
    call of the model inside it is not run. Blocks may be nested, and each sees every pass; where several stop, the pass
    ends at the first.

    Raises ModelError for a site that the model lacks, ValueError for `stop` without sites.
    """
    if stop and not sites:
        raise ValueError("a pass that stops after the deepest site needs a site")
    points = hook_points(model, sites)
    enough = _Enough()
    unseen = set(points)

    def seen(site: Site, activation: torch.Tensor) -> None:
        keep(site, activation.detach())
        unseen.discard(site)
        if stop and not unseen:
            raise enough

    with ExitStack() as stack:
        if any(site.point == "pattern" for site in points):
            stack.enter_context(_eager_attention(model))
        for site, point in points.items():
            stack.callback(_register(site, point, seen).remove)
        try:
            yield
        except _Enough as raised:
            if raised is not enough:
                raise


def _register(site: Site, point: HookPoint, seen: Keep) -> Any:
    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen(site, point.at_input(args, kwargs))

    def after(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen(site, point.read(output))

    if point.side == "input":
        return point.module.register_forward_pre_hook(before, with_kwargs=True)
    return point.module.register_forward_hook(after)


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Generator[None]:
    """Let attention be computed step by step, which alone has weights to show, and go back to what was set."""
    config: Any = model.config.get_text_config()
    before = config._attn_implementation
    try:
        config._attn_implementation = "eager"
        yield
    finally:
        config._attn_implementation = before
