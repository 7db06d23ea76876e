"""The activation store: append-only shards, sealed by an index, read by (reader, site, rows) without loading the rest.

A store is a folder, on a disk or behind a URL that fsspec knows. `shard-NNNNN.safetensors` holds a run of responses, their ids in
its header, and `index.json`, written last, names every shard with its checksum and its counts: opening reads no shard.

| tensor | a row per | holds |
|---|---|---|
| `{reader}/{site}` | response | mean over the response's tokens |
| `{reader}/{site}@{aggregation}` | response | another pooling, e.g. `base/blocks.20.hook_resid_pre@prompt_last` |
| `{reader}/{site}/norm`, `{reader}/log_prob` | response | one number: mean token norm, mean log-probability |
| `{reader}/{site}@tokens` | token | the activations themselves, response after response |
| `token_offsets` | | int64 (responses + 1): the token rows of response r are offsets[r] to offsets[r + 1] |

Activations are kept as float32, float16 or bfloat16, and read as float32.
"""

from __future__ import annotations

from unmask.store.activation_store import ActivationStore
from unmask.store.encoding import ActivationDtype
from unmask.store.folder import REBUILD
from unmask.store.index import StoredSite, annotate_index, write_index
from unmask.store.question_rows import question_means, question_rows
from unmask.store.shard import shard_name, write_shard
from unmask.store.survey import ShardEntry
from unmask.store.tensor_name import TOKEN_OFFSETS, activation_name
from unmask.store.token_index import TokenIndex

__all__ = [
    "REBUILD",
    "TOKEN_OFFSETS",
    "ActivationDtype",
    "ActivationStore",
    "ShardEntry",
    "StoredSite",
    "TokenIndex",
    "activation_name",
    "annotate_index",
    "question_means",
    "question_rows",
    "shard_name",
    "write_index",
    "write_shard",
]
