"""The residual stream of prompts at one site, kept while their cache is filled.

Shapes: B rows, T tokens, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unmask.records import Site


class PromptStreams:
    """A recorder that keeps the stream of `count` prompts at a site (tokens x D each), without padding."""

    wants_log_probs = False

    def __init__(self, site: Site, count: int) -> None:
        self.sites: Sequence[Site] = (site,)
        self.streams: list[torch.Tensor] = [torch.empty(0)] * count

    def prompts(self, rows_B: torch.Tensor, last_B: torch.Tensor) -> None:
        self._rows, self._lengths = rows_B.tolist(), (last_B + 1).tolist()

    def tokens(self, rows_B: torch.Tensor, index_BT: torch.Tensor) -> None:
        raise AssertionError("prompts alone are recorded")

    def keep(self, site: Site, activation: torch.Tensor) -> None:
        for place, (row, length) in enumerate(zip(self._rows, self._lengths, strict=True)):
            self.streams[row] = activation[place, :length].clone()

    def keep_log_probs(self, rows_B: torch.Tensor, log_prob_B: torch.Tensor) -> None:
        raise AssertionError("prompts alone are recorded")


def left_padded(streams: Sequence[torch.Tensor]) -> torch.Tensor:
    """Streams side by side that all end in the last column."""
    longest = max(map(len, streams))
    padded = streams[0].new_zeros(len(streams), longest, streams[0].shape[1])
    for row, stream in enumerate(streams):
        padded[row, longest - len(stream) :] = stream
    return padded
