"""Keep the libraries' own bars and notices off the screen: progress is reported by stages."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Silence bars and log lines of transformers, PEFT and (when imported before) datasets, and Python warnings, inside the
    block. Errors still raise.
    """
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    peft_logger = logging.getLogger("peft")
    level = peft_logger.level
    peft_logger.setLevel(logging.ERROR)
    datasets: Any = sys.modules.get("datasets")  # an optional package: not imported for its bars' sake
    dataset_bars = datasets is not None and not datasets.utils.are_progress_bars_disabled()
    if dataset_bars:
        datasets.utils.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if dataset_bars:
            datasets.utils.enable_progress_bars()
        peft_logger.setLevel(level)
        if bars:  # within another block they stay off
            transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)
