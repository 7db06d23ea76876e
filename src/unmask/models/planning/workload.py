"""What is to be read, and perhaps written first, as counts of tokens.

Shapes: N texts, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unmask.models.collecting import plan_chunks
from unmask.models.passes import Readout, Text
from unmask.models.reading import sharing_pays

if TYPE_CHECKING:
    from unmask.records import Site

NOTHING = Readout(sites=(), log_probs=False)
"""What is read where answers are only written."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Texts that are worked on together: their prompts' caches are in memory at once. Token counts, one a text or prompt.

    `writer_N` is which model wrote a text (0, 1, ...); -1 where it was there already.
    """

    prompt_tokens_P: np.ndarray
    prompt_of_N: np.ndarray
    response_tokens_N: np.ndarray
    writer_N: np.ndarray

    @property
    def text_tokens_N(self) -> np.ndarray:
        """Prompt and response of every text."""
        return self.prompt_tokens_P[self.prompt_of_N] + self.response_tokens_N


@dataclass(frozen=True, slots=True)
class Workload:
    """Chunks of texts, what is wanted of each (`readout`), and who reads them.

    With `answering` the models first write the texts, chunk by chunk, and read their own on the way; then each reads the others'.
    Without, every one of the `readers` reads every text. `weight_bytes` are those of one weight or activation in memory,
    `stored_bytes` those of one activation in the store, `token_budget` padded tokens of a batch. With `one_copy` the readers are
    one model whose adapter is switched.
    """

    chunks: tuple[Chunk, ...]
    readout: Readout
    answering: bool = False
    readers: int = 2
    one_copy: bool = False
    weight_bytes: int = 4
    stored_bytes: int = 4
    token_budget: int = 2048

    @classmethod
    def of_texts(
        cls,
        texts: Sequence[Text],
        readout: Readout,
        *,
        readers: int = 2,
        one_copy: bool = False,
        weight_bytes: int = 4,
        stored_bytes: int = 4,
        token_budget: int = 2048,
        chunk_tokens: int | None = None,
    ) -> Workload:
        """Texts that are there, or of an expected length, read by every reader, in the chunks of `collecting.plan_chunks`."""
        whole = sum(text.length for text in texts) + 1
        plan = plan_chunks(texts, chunk_tokens=chunk_tokens or whole)
        return cls(
            chunks=tuple(_chunk([texts[row] for row in rows]) for rows in plan),
            readout=readout,
            readers=readers,
            one_copy=one_copy,
            weight_bytes=weight_bytes,
            stored_bytes=stored_bytes,
            token_budget=token_budget,
        )

    @classmethod
    def of_answers(
        cls,
        prompts: Sequence[tuple[int, ...]],
        readout: Readout = NOTHING,
        *,
        new_tokens: int,
        batch_size: int,
        writers: int = 2,
        one_copy: bool = False,
        weight_bytes: int = 4,
        stored_bytes: int = 4,
        token_budget: int = 2048,
    ) -> Workload:
        """Answers that each of the writers is to give to every one of `prompts` (one an answer: a question asked twice stands
        there twice), `new_tokens` long each, in batches by falling length of the prompt."""
        order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
        answer = (0,) * new_tokens
        chunks = []
        for start in range(0, len(order), batch_size):
            batch = [Text(prompts[row], answer) for row in order[start : start + batch_size]]
            chunks.append(_chunk(batch * writers, writer_N=np.repeat(np.arange(writers), len(batch))))
        return cls(
            chunks=tuple(chunks),
            readout=readout,
            answering=True,
            readers=writers,
            one_copy=one_copy,
            weight_bytes=weight_bytes,
            stored_bytes=stored_bytes,
            token_budget=token_budget,
        )

    @property
    def texts(self) -> int:
        return sum(len(chunk.response_tokens_N) for chunk in self.chunks)

    @property
    def response_tokens(self) -> int:
        return sum(int(chunk.response_tokens_N.sum()) for chunk in self.chunks)

    @property
    def unique_prompts(self) -> int:
        """Prompts, each counted once in every chunk that holds it."""
        return sum(len(chunk.prompt_tokens_P) for chunk in self.chunks)

    @property
    def reads(self) -> bool:
        """Whether anything is read."""
        return bool(self.readout.sites) or self.readout.log_probs

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.readout.sites

    def reading_depth(self, num_layers: int) -> int:
        """Layers that a pass over response tokens must run: all where log-probabilities are wanted."""
        return self.readout.reading_depth(num_layers)

    def shares_prompts(self, chunk: Chunk, *, num_layers: int) -> bool:
        """Whether each prompt of a chunk is run once and every response behind it, as `reading.worth_sharing` decides."""
        if self.answering or self.readout.needs_whole_texts:
            return self.answering
        return sharing_pays(
            shared=int(chunk.prompt_tokens_P.sum() + chunk.response_tokens_N.sum()),
            whole=int(chunk.text_tokens_N.sum()),
            depth=self.reading_depth(num_layers) / num_layers,
        )


def _chunk(texts: Sequence[Text], *, writer_N: np.ndarray | None = None) -> Chunk:
    index = {prompt: place for place, prompt in enumerate(dict.fromkeys(text.prompt_ids for text in texts))}
    return Chunk(
        prompt_tokens_P=np.array([len(prompt) for prompt in index], dtype=np.int64),
        prompt_of_N=np.array([index[text.prompt_ids] for text in texts], dtype=np.int64),
        response_tokens_N=np.array([len(text.response_ids) for text in texts], dtype=np.int64),
        writer_N=np.full(len(texts), -1) if writer_N is None else writer_N,
    )
