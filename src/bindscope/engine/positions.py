"""Bins of token positions, for everything that is compared at about the same place in a text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def position_bins(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bins of positions: 1, 2-3, 4-7, 8-15, ... as 0, 1, 2, 3, ...; -1 for position 0.

    Attention thins out with the number of visible keys, so positions are compared within such bins.
    """
    return np.where(starts > 0, np.log2(np.maximum(starts, 1)), -1).astype(np.int64)
