"""Hooks that somebody left on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def hooks_of(modules: Iterable[torch.nn.Module]) -> list[Callable[..., Any]]:
    """Forward hooks of the modules, without those that transformers leaves for good where hidden states were once asked for:
    a model that tests share may have had that before.
    """
    hooks = [
        hook for module in modules for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    return [hook for hook in hooks if getattr(hook, "__module__", "") != "transformers.utils.output_capturing"]
