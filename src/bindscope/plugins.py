"""What measures and claims from outside the package share: modules in a folder that is not installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Within this block the modules of a folder can be imported; "" for no folder."""
    if not folder:
        yield
        return
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
