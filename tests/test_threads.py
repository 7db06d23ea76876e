"""One thread inside, all of them again outside, nested or broken off."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from unmask.analysis.threads import one_thread


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_one_thread_inside_and_what_was_before_outside() -> None:
    np.eye(3) @ np.eye(3)
    with threadpool_limits(2):
        before = threads()
        with one_thread():
            assert threads() <= {1}
            with one_thread():
                assert threads() <= {1}
            assert threads() <= {1}
        assert threads() == before
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert threads() == before
