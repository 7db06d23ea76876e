"""How answers are drawn, and the columns of what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from pydantic import Field, PrivateAttr

from unmask.collection import CollectionConfig
from unmask.records import NEUTRAL, Sampling
from unmask.stage import StageConfig

if TYPE_CHECKING:
    from unmask.models.passes import Readout

SCHEMA = pa.schema(
    [
        ("response_id", pa.string()),
        ("question_id", pa.string()),
        ("sample", pa.int32()),
        ("writer", pa.string()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.int32()),
        ("stop_reason", pa.string()),
        ("seed", pa.int64()),
    ]
)
PROMPT_SCHEMA = pa.schema([("question_id", pa.string()), ("text", pa.string()), ("token_ids", pa.list_(pa.int32()))])


class ResponsesConfig(StageConfig):
    """How answers are drawn. Defaults: the Qwen3 non-thinking settings that the reference study used."""

    samples: int = Field(1, ge=1, description="responses per question and model")
    neutral_samples: int | None = Field(
        None,
        ge=1,
        description="the same of neutral questions, whose few answers carry the emergent rate; null: samples",
    )
    temperature: float = Field(0.7, ge=0, description="0 is greedy")
    top_p: float = Field(0.8, gt=0, le=1)
    top_k: int = Field(20, ge=0, description="0 switches the filter off")
    max_new_tokens: int = Field(200, ge=1)
    batch_size: int = Field(64, ge=1, description="answers written at once by one model")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="vllm: on a GPU; draws other random numbers, and readings take a pass of their own"
    )
    read_while_answering: bool = Field(  # changes no answer: no part of the key
        True, exclude=True, description="take what activations wants on the way; needs both models in memory"
    )
    seed: int = 0
    _collection: CollectionConfig | None = PrivateAttr(None)  # not of this section: no part of the key

    def recording(self, collection: CollectionConfig) -> ResponsesConfig:
        """The same, knowing what is collected of the answers."""
        copy = self.model_copy()
        copy._collection = collection
        return copy

    def samples_of(self, dimension: str) -> int:
        """Responses per model to a question of that dimension."""
        return self.neutral_samples if dimension == NEUTRAL and self.neutral_samples is not None else self.samples

    @property
    def collection(self) -> CollectionConfig | None:
        """What is read while answering; None where nothing is."""
        return self._collection if self.read_while_answering and self.engine == "transformers" else None

    def reads_while_answering(self, readout: Readout, model: Any) -> bool:
        """Whether that readout is taken on the way, with a base model of that configuration (Hugging Face's)."""
        from unmask.models.answering import can_read_while_answering

        return self.collection is not None and can_read_while_answering(readout, model)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_new_tokens)
