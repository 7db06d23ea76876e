"""Try a model out on a few tokens when its architecture is first loaded: whether it is what reading and answering take it for.

Every architecture of Hugging Face's is called alike, but some scale what their head gives in a way of their own, carry a stream
of another shape, or keep no past that could be gone on from. Such a model would be read wrongly, or fail when hours were spent.

Shapes: B rows, T tokens, V vocabulary, D width of the residual stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unmask.artifact import digest_json
from unmask.errors import ModelError, UnmaskError
from unmask.models.hook_points import FAMILIES
from unmask.models.key_value_cache import keeps_keys_and_values
from unmask.models.loading import LoadedModel, first_line, not_finite
from unmask.models.prompt_cache import prefill
from unmask.models.reading import out_of_memory
from unmask.models.recording import observe
from unmask.models.running_batch import RunningBatch, UnsharedBatch
from unmask.models.sites import body, head_logits
from unmask.records import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 6
_PROMPTS = (5, 3)
"""Lengths of the prompts behind which one more token is run."""
_HEAD_TOLERANCE = {4: 1e-3, 2: 2e-2}
_PAST_TOLERANCE = {4: 1e-3, 2: 0.05}
"""Relative differences that are rounding, by bytes of a weight."""

_sound: set[str] = set()
"""Architectures that were tried in this process."""


def try_out(model: PreTrainedModel, device: torch.device) -> None:
    """Run a model on a few tokens, once for each configuration in a process.

    The body must give a normed hidden state for every token, and each layer the residual stream; `head_logits` of the one must be
    the model's logits; and a token that is run behind a prompt's kept past must show what it shows when all is run at once.

    Raises ModelError naming the architecture and what does not hold.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    key = digest_json([config, str(model.dtype), device.type])
    if key in _sound:
        return
    try:
        problem = _problem(model, device)
    except UnmaskError:
        raise
    except Exception as error:  # whatever its code raises when it is not called as it expects
        if out_of_memory(error):
            raise
        problem = f"running it fails with {type(error).__name__} ({first_line(error)})"
    if problem is not None:
        raise ModelError(
            f"{type(model).__name__} cannot be read and asked: {problem}",
            mend=f"Use a decoder-only model of another architecture, such as {', '.join(FAMILIES)}",
        )
    _sound.add(key)


@torch.inference_mode()
def _problem(model: PreTrainedModel, device: torch.device) -> str | None:
    """What does not hold of a model; None where all does."""
    text, size = model.config.get_text_config(), model.dtype.itemsize
    ids_BT = (5 + torch.arange(len(_PROMPTS) * _TOKENS, device=device).view(-1, _TOKENS)) % int(text.vocab_size)
    shown: dict[Site, tuple[int, ...]] = {}
    stream = [Site(0, "resid_pre"), Site(0, "resid_post")]
    with observe(model, stream, lambda site, activation: shown.update({site: tuple(activation.shape)})):
        output = body(model)(input_ids=ids_BT, use_cache=False)
    wanted, hidden_BTD = (*ids_BT.shape, int(text.hidden_size)), getattr(output, "last_hidden_state", None)
    if hidden_BTD is None or tuple(hidden_BTD.shape) != wanted:
        return "its body does not give one hidden state a token"
    for site, shape in shown.items():
        if shape != wanted:
            return f"{site.name} is of shape {shape}, not (rows, tokens, width)"
    called: Any = model
    logits_BTV = called(input_ids=ids_BT, use_cache=False).logits
    if not logits_BTV.amax().isfinite():
        raise not_finite(f"logits of {type(model).__name__} are not finite numbers")
    if _differ(head_logits(model, hidden_BTD.flatten(0, 1)), logits_BTV.flatten(0, 1)) > _HEAD_TOLERANCE[size]:
        return "its output head does more to hidden states than is known of it"
    last_B = torch.tensor(_PROMPTS, device=device)
    rows_B = torch.arange(len(_PROMPTS), device=device)
    if _differ(_continued(model, device, ids_BT), hidden_BTD[rows_B, last_B]) > _PAST_TOLERANCE[size]:
        return "a token behind a kept past is not what it is when all is run at once"
    return None


def _continued(model: PreTrainedModel, device: torch.device, ids_BT: torch.Tensor) -> torch.Tensor:
    """Normed hidden states (B x D) of one token of each row behind its prompt, run as answers are."""
    tokenizer: Any = None  # ids will do
    loaded = LoadedModel(model, tokenizer, device)
    prompts = [row[:length] for row, length in zip(ids_BT.tolist(), _PROMPTS, strict=True)]
    next_B = torch.stack([row[length] for row, length in zip(ids_BT, _PROMPTS, strict=True)])
    if keeps_keys_and_values(model.config):
        batch = RunningBatch(loaded, prefill(loaded, prompts), rows=len(prompts), room=1, refilled=False)
        batch.admit(np.arange(len(prompts)), np.arange(len(prompts)))
        return batch.step(next_B)
    apart = UnsharedBatch(loaded, prompts)
    apart.start()
    return apart.step(next_B)


def _differ(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest number."""
    sound = wanted.isfinite()  # a logit may be minus infinity
    found, wanted = found.float()[sound], wanted.float()[sound]
    return float((found - wanted).abs().max() / wanted.abs().max())
