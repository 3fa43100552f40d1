"""Bins of token positions, used to compare spans at similar positions in a text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def position_bins(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bin of each position: 1, 2-3, 4-7, 8-15, ... give 0, 1, 2, 3, ...; position 0 gives -1.

    Attention weights fall with the number of visible keys, so values are compared within bins of positions.

    starts: token positions, of any shape
    """
    return np.where(starts > 0, np.log2(np.maximum(starts, 1)), -1).astype(np.int64)
