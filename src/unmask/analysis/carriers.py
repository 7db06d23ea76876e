"""Which questions carry a component.

Shapes: N questions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CARRYING_SHARE = 0.1
FEWEST, MOST = 5, 30


def carriers(loadings_N: np.ndarray, names: Sequence[str], *, members: bool) -> list[int]:
    """Rows that carry a component, strongest first; ties go by the question's name.

    Of a cluster (`members`) all that have a loading; else the top tenth of those that have one, at least 5 and at most 30, and
    of these the ones above 0: who has none of a component does not carry it. NaN is no loading.
    """
    known = [int(row) for row in np.flatnonzero(~np.isnan(loadings_N))]
    known.sort(key=lambda row: (-loadings_N[row], names[row]))
    if members:
        return known
    most = min(MOST, max(FEWEST, int(np.ceil(CARRYING_SHARE * len(known)))))
    return [row for row in known[:most] if loadings_N[row] > 0]
