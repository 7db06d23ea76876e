"""A model's size, counted on its modules without any weights: parameters, and multiply-adds a token."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import get_layer_types_and_kwargs

from unmask.models.quiet import quiet_libraries
from unmask.models.sites import decoder_layers

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. `multiply_adds` are those of its matrices for one token; of a bank of experts, of those a token visits.

    `window` is how many tokens, itself included, a token looks back at; None: all, 0: no attention.
    """

    parameters: int
    multiply_adds: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Architecture:
    """The counts of one model.

    `embedding` are parameters of token and position tables, `other` what belongs to no layer, table or head (the final norm).
    `head` are the output head's parameters; where `tied`, they are the token table itself. Widths are heads x width of a head:
    `query_width` of queries, `value_width` of what attention sums, `cache_width` of keys and values that a layer keeps of a
    token. `widest` is the longer side of a layer's largest matrix, mostly the MLP's width.
    """

    layers: tuple[Layer, ...]
    embedding: int
    head: int
    tied: bool
    other: int
    hidden: int
    widest: int
    query_width: int
    value_width: int
    cache_width: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """All, a tied head once."""
        own_head = 0 if self.tied else self.head
        return self.embedding + sum(layer.parameters for layer in self.layers) + own_head + self.other

    def multiply_adds(self, depth: int) -> int:
        """Of the matrices of the first `depth` layers, for one token."""
        return sum(layer.multiply_adds for layer in self.layers[:depth])

    def layer_parameters(self, depth: int) -> int:
        """Parameters of the first `depth` layers: what a pass reads of the weights, but for a few rows of the tables."""
        return sum(layer.parameters for layer in self.layers[:depth])

    def attention_pairs(self, depth: int, *, past: int, length: int) -> int:
        """Pairs of tokens that look at one another, over the first `depth` layers, for one row of `length` tokens behind `past`.

        A layer has sum over i = 1 .. length of min(past + i, window): the causal half.
        """
        windows = Counter(layer.window for layer in self.layers[:depth])
        return sum(count * _pairs(past, length, window) for window, count in windows.items())


def architecture_of(config: Any, *, trust_remote_code: bool = False) -> Architecture:
    """Count the model of a configuration. It is built on the meta device, without weights: tens of milliseconds.

    Within a layer every two-dimensional `weight` (of Linear, Conv1D, a router) is taken as applied to every token once; every
    three-dimensional one whose first axis is the number of experts as `num_experts_per_tok` of its slices. Convolutions and
    recurrences count as parameters only.

    Raises ModelError when the architecture has no stack of decoder layers.
    """
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    with quiet_libraries(), torch.device("meta"):
        # A copy, since building a model writes to its configuration.
        model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    stack = decoder_layers(model)
    layers = tuple(_layer(module, text, window) for module, window in zip(stack, _windows(text), strict=True))
    head = model.get_output_embeddings()
    tables = {id(table.weight): table.weight for table in model.modules() if isinstance(table, torch.nn.Embedding)}
    tied = id(head.weight) in tables
    embedding = sum(weight.numel() for weight in tables.values())
    counted = embedding + sum(layer.parameters for layer in layers) + (0 if tied else _numel(head.parameters()))
    heads = int(text.num_attention_heads)
    query_head = getattr(text, "qk_head_dim", None) or getattr(text, "head_dim", None) or text.hidden_size // heads
    value_head = getattr(text, "v_head_dim", None) or query_head
    return Architecture(
        layers=layers,
        embedding=embedding,
        head=_numel(head.parameters()),
        tied=tied,
        other=_numel(model.parameters()) - counted,
        hidden=int(text.hidden_size),
        widest=max(max(shape) for shape, _ in _matrices(stack[0], text)),
        query_width=heads * query_head,
        value_width=heads * value_head,
        cache_width=int(getattr(text, "num_key_value_heads", None) or heads) * (query_head + value_head),
        vocabulary=int(text.vocab_size),
    )


def _layer(module: torch.nn.Module, text: Any, window: int | None) -> Layer:
    multiply_adds = sum(rows * columns * times for (rows, columns), times in _matrices(module, text))
    return Layer(_numel(module.parameters()), multiply_adds, window)


def _matrices(module: torch.nn.Module, text: Any) -> list[tuple[tuple[int, int], int]]:
    """Shapes of a layer's matrices, and how many times each meets a token: a bank of experts as one of them, some times."""
    experts = next((int(getattr(text, name)) for name in _EXPERTS if getattr(text, name, None)), None)
    visited = int(getattr(text, "num_experts_per_tok", None) or 0)
    found = []
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2 and name.rpartition(".")[2] == "weight":
            found.append(((parameter.shape[0], parameter.shape[1]), 1))
        elif parameter.ndim == 3 and parameter.shape[0] == experts:
            found.append(((parameter.shape[1], parameter.shape[2]), visited))
    return found


def _windows(text: Any) -> list[int | None]:
    """How far each layer looks back, of a text model's configuration."""
    kinds, details = get_layer_types_and_kwargs(text)
    return [
        detail.get("sliding_window") if kind in _ATTENTION else 0 for kind, detail in zip(kinds, details, strict=True)
    ]


def _pairs(past: int, length: int, window: int | None) -> int:
    growing = length if window is None else min(max(window - past, 0), length)  # tokens that look at all before them
    return growing * past + growing * (growing + 1) // 2 + (length - growing) * (window or 0)


def _numel(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
