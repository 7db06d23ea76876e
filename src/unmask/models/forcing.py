"""How likely a model finds given answers while its residual stream is intervened on: teacher-forced, with no sampling noise.

What lies below the site is the same under every intervention, so it is run once: the stream that enters the site's layer and
the prompts' keys and values are kept, and for each intervention only the layers from there on are run. At layer 20 of 30 that is
a third of the work. Many interventions, prompts and answers stand side by side as rows of one batch.

Shapes: N prompts, A answers a prompt, R rows asked for, B rows of a batch, P tokens of the longest prompt but its last, T tokens
of the longest answer, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from unmask.errors import ModelError
from unmask.models.key_value_cache import KeyValueCache, Slots
from unmask.models.packed_weights import packed_weights
from unmask.models.passes import token_log_probs
from unmask.models.prompt_cache import prefill
from unmask.models.prompt_streams import PromptStreams, left_padded
from unmask.models.recording import observe
from unmask.models.resuming import gives_tuple, resuming, start_layer, why_not
from unmask.models.sites import body
from unmask.records import Site

if TYPE_CHECKING:
    from unmask.models.interventions import Intervention
    from unmask.models.loading import LoadedModel


class Forcing:
    """Prompts and their answers, run once without intervention, ready to be run again from the site's layer on.

    `with Forcing(loaded, site, prompts, answers) as forcing: forcing.under(...)`. `plain_NA` is each answer's mean
    log-probability per token (nats) in the plain model. Agrees with whole passes to rounding (1e-4 in float32 is
    tested).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        site: Site,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[Sequence[int]]],
        *,
        token_budget: int = 1024,
    ) -> None:
        """`prompts` (N) are token ids, two or more each; `answers` (N x A) are token ids, one or more each.

        Raises ModelError for a site that is no layer's input, or a model whose past is more than keys and values.
        """
        if (reason := why_not(loaded.model.config, site)) is not None:
            raise ModelError(reason, mend="Choose hook_resid_pre, or steer by generating instead")
        self._loaded, self._budget = loaded, token_budget
        self._layer = start_layer(site, num_layers=loaded.num_layers)
        self._entry = Site(self._layer, "resid_pre")
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._answers = [[tuple(answer) for answer in each] for each in answers]
        assert min(map(len, self._prompts)) > 1, "a prompt needs two tokens"
        assert min(len(answer) for each in self._answers for answer in each) > 0, "an answer needs a token"
        self._stack = ExitStack()

    @torch.inference_mode()
    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._loaded.active())
            stack.enter_context(packed_weights(self._loaded.model))
            keeper = PromptStreams(self._entry, len(self._prompts))
            self._cache = prefill(
                self._loaded, [prompt[:-1] for prompt in self._prompts], recorder=keeper, token_budget=self._budget
            )
            self._prefix_streams = keeper.streams
            self.plain_NA = self._run_plain()
            self._gives_tuple = gives_tuple(self._loaded, self._layer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @torch.inference_mode()
    def under(
        self,
        intervention: Intervention,
        rows: Sequence[tuple[int, int]],
        *,
        reference: Forcing | None = None,
    ) -> np.ndarray:
        """Mean log-probability per token (R x A, nats, float64) of the answers to prompt n under row v of `intervention`, for
        each (n, v) of `rows`.

        `intervention` acts at the site of this object; response positions begin with the prompt's last token, which the first
        answer token is predicted from. `reference` are the same prompts and answers on the model whose component
        `Replace` puts back.
        """
        answers = len(self._answers[0])
        found_RA = np.empty((len(rows), answers))
        jobs = sorted(range(len(rows)), key=lambda job: self._length(rows[job][0]))
        per_row = answers * max(self._length(n) for n, _ in rows)
        if intervention.positions != "response":
            per_row = max(per_row, *(len(self._prompts[n]) for n, _ in rows))
        step = max(1, self._budget // per_row)
        with resuming(self._loaded, self._layer, gives_tuple=self._gives_tuple) as self._resumed:
            for start in range(0, len(jobs), step):
                here = jobs[start : start + step]
                found_RA[here] = self._under(intervention, [rows[job] for job in here], reference)
        return found_RA

    def _length(self, n: int) -> int:
        return max(len(answer) for answer in self._answers[n])

    def _run_plain(self) -> np.ndarray:
        """Run every answer behind its prompt; keep the streams that enter the site's layer."""
        answers = len(self._answers[0])
        plain_NA = np.empty((len(self._prompts), answers))
        self._streams: list[list[torch.Tensor]] = [[] for _ in self._prompts]
        longest = max(map(self._length, range(len(self._prompts))))
        step = max(1, self._budget // (answers * longest))
        for start in range(0, len(self._prompts), step):
            here = list(range(start, min(start + step, len(self._prompts))))
            found: list[torch.Tensor] = []
            with observe(
                self._loaded.model, [self._entry], lambda _, hidden_BTD, found=found: found.append(hidden_BTD.clone())
            ):
                past, mask_BP = self._cache.expand(self._behind(here), room=longest)
                plain_NA[here] = self._answered(here, past, mask_BP)
            for place, n in enumerate(here):
                for a, answer in enumerate(self._answers[n]):
                    self._streams[n].append(found[0][place * answers + a, : len(answer)])
        return plain_NA

    def _under(
        self, intervention: Intervention, rows: Sequence[tuple[int, int]], reference: Forcing | None
    ) -> np.ndarray:
        answers = len(self._answers[0])
        numbers = [n for n, _ in rows]
        variants = [v for _, v in rows]
        past, mask_BP = self._past(intervention, numbers, variants, reference)
        stream_BTD = self._stacked(self, numbers)
        if intervention.positions != "prompt":
            repeated = [v for v in variants for _ in range(answers)]
            reference_BTD = None if reference is None else self._stacked(reference, numbers)
            stream_BTD = stream_BTD + self._change(intervention, repeated, stream_BTD, reference_BTD)
        self._resumed.stream_BTD = stream_BTD
        return self._answered(numbers, past, mask_BP)

    def _past(
        self,
        intervention: Intervention,
        numbers: Sequence[int],
        variants: Sequence[int],
        reference: Forcing | None,
    ) -> tuple[KeyValueCache, torch.Tensor]:
        """Keys and values of the prompts in the layers that are run (B x ..), and which of their columns are theirs."""
        room = max(map(self._length, numbers))
        if intervention.positions == "response":
            past, mask_BP = self._cache.expand(self._behind(numbers), room=room, first_layer=self._layer)
            return past, mask_BP
        lengths = [len(self._prompts[n]) - 1 for n in numbers]
        stream_RPD = left_padded([self._prefix_streams[n] for n in numbers])
        reference_RPD = None if reference is None else left_padded([reference._prefix_streams[n] for n in numbers])
        stream_RPD = stream_RPD + self._change(intervention, variants, stream_RPD, reference_RPD)
        longest = max(lengths)
        columns_P = torch.arange(longest, device=self._loaded.device)
        starts_R1 = longest - torch.tensor(lengths, device=self._loaded.device).unsqueeze(1)
        mask_RP = (columns_P >= starts_R1).long()
        answers = len(self._answers[0])
        layers = [self._empty(len(numbers), longest) for _ in range(self._loaded.num_layers)]
        past = KeyValueCache(layers)
        self._resumed.stream_BTD = stream_RPD
        body(self._loaded.model)(
            input_ids=torch.zeros(len(numbers), longest, dtype=torch.long, device=self._loaded.device),
            attention_mask=mask_RP,
            position_ids=(columns_P - starts_R1).clamp(min=0),
            past_key_values=past,
            use_cache=True,
        )
        spread = [self._spread(slots, answers, room) for slots in layers]
        return KeyValueCache(spread), mask_RP.repeat_interleave(answers, dim=0)

    def _empty(self, rows: int, columns: int) -> Slots:
        """A layer's keys and values, none yet."""
        keys, values = self._cache.keys[self._layer], self._cache.values[self._layer]
        shapes = ((rows, kept.shape[1], columns, kept.shape[3]) for kept in (keys, values))
        return Slots(*(keys.new_empty(shape) for shape in shapes), stop=0)

    def _spread(self, slots: Slots, answers: int, room: int) -> Slots:
        """The same, each row once for every answer, with room behind."""

        def copied(buffer: torch.Tensor) -> torch.Tensor:
            wide = buffer.new_empty(len(buffer) * answers, buffer.shape[1], buffer.shape[2] + room, buffer.shape[3])
            wide[:, :, : buffer.shape[2]] = buffer.repeat_interleave(answers, dim=0)
            return wide

        keys, values = slots.buffers()
        if slots.stop == 0:  # below the site's layer: never run, only asked how long it is
            shape = (len(keys) * answers, keys.shape[1], keys.shape[2] + room, keys.shape[3])
            nothing = keys.new_empty(1).expand(shape)
            return Slots(nothing, nothing, stop=keys.shape[2])
        return Slots(copied(keys), copied(values), stop=slots.stop)

    def _answered(self, numbers: Sequence[int], past: KeyValueCache, mask_BP: torch.Tensor) -> np.ndarray:
        """Mean log-probability per token (rows x A) of the answers to these prompts, behind `past`."""
        device = self._loaded.device
        texts = [(self._prompts[n][-1], answer) for n in numbers for answer in self._answers[n]]
        lengths_B = torch.tensor([len(answer) for _, answer in texts], device=device)
        longest = int(lengths_B.max())
        ids_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        targets_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, (last, answer) in enumerate(texts):
            ids_BT[row, : len(answer)] = torch.tensor((last, *answer[:-1]))
            targets_BT[row, : len(answer)] = torch.tensor(answer)
        there_BT = torch.arange(longest, device=device) < lengths_B.unsqueeze(1)
        hidden_BTD = body(self._loaded.model)(
            input_ids=ids_BT.to(device),
            attention_mask=torch.cat([mask_BP, there_BT.to(mask_BP)], dim=1),
            position_ids=mask_BP.sum(dim=1, keepdim=True) + torch.arange(longest, device=device),
            past_key_values=past,
            use_cache=True,
        ).last_hidden_state
        targets_M = targets_BT.to(device)[there_BT]
        log_prob_M = torch.cat(
            [held_K for _, held_K in token_log_probs(self._loaded.model, hidden_BTD[there_BT], targets_M)]
        )
        sums_B = torch.zeros(len(texts), dtype=torch.float64).index_add_(
            0, there_BT.nonzero()[:, 0].cpu(), log_prob_M.double().cpu()
        )
        return (sums_B / lengths_B.cpu()).view(len(numbers), -1).numpy()

    def _behind(self, numbers: Sequence[int]) -> torch.Tensor:
        answers = len(self._answers[0])
        return torch.tensor([n for n in numbers for _ in range(answers)], device=self._loaded.device)

    @staticmethod
    def _stacked(forcing: Forcing, numbers: Sequence[int]) -> torch.Tensor:
        """The streams of the answers to these prompts, padded on the right (B x T x D)."""
        return torch.nn.utils.rnn.pad_sequence(
            [stream for n in numbers for stream in forcing._streams[n]], batch_first=True
        )

    @staticmethod
    def _change(
        intervention: Intervention,
        variants: Sequence[int],
        stream_BTD: torch.Tensor,
        reference_BTD: torch.Tensor | None,
    ) -> torch.Tensor:
        rows = intervention.rows(np.array(variants))
        return rows.on(stream_BTD.device, stream_BTD.dtype).change(stream_BTD, reference_BTD)
