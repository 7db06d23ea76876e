"""A real OpenAI-compatible server: llama.cpp in this process (xllamacpp) with the embedded model's GGUF."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def llama_server(gguf: Path) -> Generator[str]:
    """The base URL of a server that answers as model `smollm2`."""
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(gguf)
    options.model_alias = "smollm2"
    options.hostnames = ["127.0.0.1"]
    options.port = 0
    options.n_parallel = 2
    options.n_ctx = 4096
    options.cpuparams.n_threads = 2
    options.warmup = False
    options.verbosity = -1
    server = xllamacpp.Server(options)
    yield f"{server.listening_address}/v1"
    del server
