"""Keep the libraries' own bars and notices off the screen: progress is reported by stages."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Silence transformers' bars and log lines, and Python warnings, inside the block. Errors still raise."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    peft_logger = logging.getLogger("peft")
    level = peft_logger.level
    peft_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        peft_logger.setLevel(level)
        if bars:  # within another block they stay off
            transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)
