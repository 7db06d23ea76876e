"""unmask: is a misaligned persona one thing, or several separable sub-personas - and how sure are we?

`unmask.open("my-study").run()` runs a study. Names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.errors import UnmaskError
    from unmask.pipeline import StudyPipeline
    from unmask.pipeline import init_study as init
    from unmask.pipeline import open_study as open
    from unmask.study_file import StudyConfig

__version__ = "0.1.0"

_PLACES = {
    "open": ("unmask.pipeline", "open_study"),
    "init": ("unmask.pipeline", "init_study"),
    "StudyPipeline": ("unmask.pipeline", "StudyPipeline"),
    "StudyConfig": ("unmask.study_file", "StudyConfig"),
    "UnmaskError": ("unmask.errors", "UnmaskError"),
}

__all__ = ["StudyConfig", "StudyPipeline", "UnmaskError", "__version__", "init", "open"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
