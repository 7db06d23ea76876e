"""A real OpenAI-compatible server: llama.cpp in this process (xllamacpp) with the embedded model's GGUF."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def llama_server(gguf: Path, *, seed: int = 2) -> Generator[str]:
    """The base URL of a server that answers as model `smollm2`, the same in every run.

    By chance the model would now and then ramble to the last token that it may write, a minute long. With seed 2 it writes
    questions that are checked.
    """
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(gguf)
    options.model_alias = "smollm2"
    options.hostnames = ["127.0.0.1"]
    options.port = 0
    options.n_parallel = 2
    options.n_ctx = 4096
    options.cpuparams.n_threads = 1  # two workers of pytest share two cores, and idle threads of llama.cpp spin
    options.sampling.seed = seed
    options.warmup = False
    options.verbosity = -1
    server = xllamacpp.Server(options)
    yield f"{server.listening_address}/v1"
    del server
