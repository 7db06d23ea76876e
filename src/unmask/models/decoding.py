"""The loop that writes answers: one token of every row a step, who is done makes room for who waits.

Shapes: N answers, B slots of the running batch, L slots whose next token is due, A slots taken by who comes in, T tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import torch

from unmask.models.picking import pick_tokens
from unmask.models.pooling import OUTSIDE
from unmask.models.recording import observe
from unmask.models.sites import head_logits

if TYPE_CHECKING:
    from unmask.models.loading import LoadedModel
    from unmask.models.prompt_cache import Around, Recorder
    from unmask.records import Sampling, StopReason

FREE = -1
"""Job of a slot at which nobody is."""
_WORTH_DROPPING = 0.25
"""Share of free slots at which the others are moved together, which costs a copy of their past."""


class Batch(Protocol):
    """Rows with a past of their own; `running_batch` has two kinds."""

    def step(self, ids_B: torch.Tensor) -> torch.Tensor: ...

    def leave(self, slots: np.ndarray) -> None: ...

    def keep(self, slots_B: np.ndarray) -> None: ...


Admit = Callable[[np.ndarray, np.ndarray], torch.Tensor]
"""Puts the prompts of answers (A) into slots (A); returns the normed hidden states of their last tokens (A x D)."""


class Book:
    """What has been written of each answer, and who sits at which slot.

    With `reads_last`, an answer that is cut keeps its slot until its last token has been input too.
    """

    def __init__(
        self, uniforms_NT: np.ndarray, *, ends: Container[int], special: Container[int], reads_last: bool
    ) -> None:
        self.written: list[list[int]] = [[] for _ in uniforms_NT]
        self.stopped: list[StopReason] = ["length"] * len(uniforms_NT)
        self._uniforms_NT, self._ends, self._special, self._reads_last = uniforms_NT, ends, special, reads_last
        self._counted_N = np.zeros(len(uniforms_NT), dtype=np.int64)

    def seat(self, jobs_B: np.ndarray) -> None:
        """Begin with these answers, one a slot."""
        self.job_B = jobs_B
        self.ordinal_B = np.full(len(jobs_B), OUTSIDE)  # of the token that is the slot's next input
        self._closing_B = np.zeros(len(jobs_B), dtype=bool)

    @property
    def free(self) -> np.ndarray:
        """Slots at which nobody is."""
        return np.flatnonzero(self.job_B == FREE)

    @property
    def due_L(self) -> np.ndarray:
        """Slots whose next token is to be drawn."""
        return np.flatnonzero((self.job_B != FREE) & ~self._closing_B)

    def uniforms(self, slots_L: np.ndarray) -> np.ndarray:
        """The random numbers that draw these slots' next tokens."""
        jobs_L = self.job_B[slots_L]
        return self._uniforms_NT[jobs_L, [len(self.written[job]) for job in jobs_L]]

    def take(self, slots_L: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
        """Write down each slot's next token. Returns which of them belong to an answer (L, bool): all but end marks."""
        for slot, token in zip(slots_L, tokens, strict=True):
            job = self.job_B[slot]
            if token in self._ends:
                self.stopped[job] = "end"
                self.job_B[slot] = FREE
                continue
            self.written[job].append(token)
            counts = token not in self._special
            self.ordinal_B[slot] = self._counted_N[job] if counts else OUTSIDE
            self._counted_N[job] += counts
            self._closing_B[slot] = len(self.written[job]) == self._uniforms_NT.shape[1]
        answered_L = self.job_B[slots_L] != FREE
        if not self._reads_last:
            self.close()
        return answered_L

    def close(self) -> None:
        """Answers that were cut, and whose last token has been input, leave."""
        self.job_B[self._closing_B] = FREE
        self._closing_B[:] = False

    def keep(self, slots_B: np.ndarray) -> None:
        """Go on with these slots only."""
        self.job_B, self.ordinal_B = self.job_B[slots_B], self.ordinal_B[slots_B]
        self._closing_B = self._closing_B[slots_B]


class Hooks:
    """A recorder's hooks, and an intervention that is set up anew whenever other rows sit in the batch."""

    def __init__(self, loaded: LoadedModel, recorder: Recorder | None, around: Around | None) -> None:
        self._model, self._recorder, self._around = loaded.model, recorder, around
        self._stack = ExitStack()
        self._jobs: list[int] | None = None
        self._masked = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def fit(self, jobs: Sequence[int], response_BT: torch.Tensor | None = None) -> None:
        """The coming pass runs these answers (or prompts), and predicts response tokens at these positions (None: at all)."""
        same = self._jobs == list(jobs) and response_BT is None and not self._masked
        if self._jobs is not None and (self._around is None or same):
            return
        self._jobs, self._masked = list(jobs), response_BT is not None
        self._stack.close()
        if self._around is not None:
            self._stack.enter_context(self._around(self._jobs, response_BT))
        if self._recorder is not None:
            self._stack.enter_context(observe(self._model, self._recorder.sites, self._recorder.keep))


def decode(
    loaded: LoadedModel,
    batch: Batch,
    book: Book,
    *,
    sampling: Sampling,
    recorder: Recorder | None,
    hooks: Hooks,
    waiting: Sequence[int] = (),
    admit: Admit | None = None,
    hidden_BD: torch.Tensor | None = None,
) -> None:
    """Write the answers of those who sit in the batch (`hidden_BD`: of their prompts' ends) and of those `waiting`."""
    queue = deque(waiting)
    ids_B: torch.Tensor | None = None
    while True:
        if ids_B is not None:
            jobs_B = np.maximum(book.job_B, 0)
            hooks.fit(jobs_B.tolist())
            if recorder is not None:
                ordinal_B1 = np.where(book.job_B == FREE, OUTSIDE, book.ordinal_B)[:, None]
                recorder.tokens(_on(loaded, jobs_B), _on(loaded, ordinal_B1))
            hidden_BD = batch.step(ids_B)
            book.close()
        if queue and admit is not None and len(book.free):
            slots_A = book.free[: len(queue)]
            book.job_B[slots_A] = [queue.popleft() for _ in slots_A]
            ends_AD = admit(slots_A, book.job_B[slots_A])
            hidden_BD = ends_AD.new_zeros(len(book.job_B), ends_AD.shape[1]) if hidden_BD is None else hidden_BD
            hidden_BD = hidden_BD.index_copy(0, _on(loaded, slots_A), ends_AD)
        if not len(book.due_L):
            return
        assert hidden_BD is not None
        ids_B = _drawn(loaded, book, hidden_BD, sampling=sampling, recorder=recorder)
        free = book.free
        if len(free) == len(book.job_B) and not queue:
            return
        if not queue and len(free) >= _WORTH_DROPPING * len(book.job_B):
            kept_B = np.flatnonzero(book.job_B != FREE)
            batch.keep(kept_B)
            book.keep(kept_B)
            ids_B = ids_B[_on(loaded, kept_B)]
        elif len(free):
            batch.leave(free)


def _drawn(
    loaded: LoadedModel, book: Book, hidden_BD: torch.Tensor, *, sampling: Sampling, recorder: Recorder | None
) -> torch.Tensor:
    """Draw and write down the next token of every slot that is due one. Returns the next pass's input (B)."""
    due_L = book.due_L
    everyone = len(due_L) == len(hidden_BD)
    logits_LV = head_logits(loaded.model, hidden_BD if everyone else hidden_BD[_on(loaded, due_L)])
    tokens_L = pick_tokens(logits_LV, book.uniforms(due_L), sampling=sampling)
    jobs_L = book.job_B[due_L]
    answered_L = book.take(due_L, tokens_L.tolist())
    if recorder is not None and recorder.wants_log_probs and answered_L.any():
        # twice as fast on a CPU as the logarithm of the sum, which is taken in several passes over the vocabulary
        picked_L = logits_LV.log_softmax(dim=1).gather(1, tokens_L.unsqueeze(1)).squeeze(1)
        recorder.keep_log_probs(_on(loaded, jobs_L[answered_L]), picked_L[_on(loaded, np.flatnonzero(answered_L))])
    if everyone:
        return tokens_L
    return tokens_L.new_zeros(len(hidden_BD)).index_copy(0, _on(loaded, due_L), tokens_L)


def _on(loaded: LoadedModel, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(loaded.device)
