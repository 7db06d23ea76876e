"""One thread for linear algebra: small problems are slower on several, and sums must not depend on how many there are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_LIMITED: ContextVar[bool] = ContextVar("limited", default=False)


@contextmanager
def one_thread() -> Generator[None]:
    """Limit BLAS and OpenMP to one thread inside; nested use costs nothing, as finding the libraries takes milliseconds."""
    if _LIMITED.get():
        yield
        return
    from threadpoolctl import threadpool_limits

    token = _LIMITED.set(True)
    try:
        with threadpool_limits(1):
            yield
    finally:
        _LIMITED.reset(token)
