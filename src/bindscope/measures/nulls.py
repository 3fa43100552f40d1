"""The window null: compares a term's value with the values of all windows of k tokens in the experiment's prompts.

Windows do not overlap the prompt's own term, position 0 or special tokens. Windows in carrier sentences,
where the control groups stand, form a separate pool. So adding control groups does not change the excess and percentile
of terms in the recognition and generation prompts. Texts that begin with the same tokens have the same attention within
this shared beginning. So if two texts are equal up to the end of a window, the window is counted once. Without this
rule, the ten windows of a sentence with which three prompts begin would count as thirty.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindscope.engine.data import Array
from bindscope.engine.positions import position_bins
from bindscope.measures.base import SpanMeasure, Values
from bindscope.schema import Cells

#: Length of the windows in tokens, and whether they are in carrier sentences.
Pool = tuple[int, bool]


def window_starts(length: int, k: int, forbidden: Iterable[int]) -> NDArray[np.int64]:
    """Start positions (n,) of all windows of k tokens in a text that avoid position 0 and some other positions.

    length: tokens of the text
    k: tokens of a window
    forbidden: positions that no window may contain
    """
    blocked = np.zeros(length, dtype=np.int64)
    blocked[[0, *forbidden]] = 1
    before = np.concatenate([[0], blocked.cumsum()])  # number of blocked positions before each position
    return np.flatnonzero(before[k:] == before[:-k]) if k <= length else np.empty(0, dtype=np.int64)


class NewWindows:
    """Finds the windows of a text that are new: no earlier text equals it up to the end of the window."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, bool, bytes]] = set()

    def starts(self, ids: tuple[int, ...], k: int, carrier: bool, forbidden: Iterable[int]) -> NDArray[np.int64]:
        """Start positions (n,) of the new windows of k tokens in a text.

        ids: token ids of the text
        k: tokens of a window
        carrier: whether the text is a carrier sentence
        forbidden: positions that no window may contain
        """
        starts = window_starts(len(ids), k, forbidden)
        digests = _prefix_digests(ids)
        names = [(k, carrier, digests[s + k - 1]) for s in starts]
        fresh = np.array([name not in self._seen for name in names], dtype=bool)
        self._seen.update(names)
        return starts[fresh] if len(starts) else starts


def _prefix_digests(ids: tuple[int, ...]) -> list[bytes]:
    """A digest of ids[: i + 1] for every i."""
    running, out = hashlib.blake2b(digest_size=16), []
    for token in ids:
        running.update(token.to_bytes(4, "little"))
        out.append(running.copy().digest())
    return out


@dataclass
class _Windows:
    """The windows of one pool.

    prompts, starts, values: each prompt, with the start positions (n,) and values (n,) of its windows
    sums: for each column in `null_means`, the elementwise sum of its lists over all windows
    """

    prompts: list[str] = field(default_factory=list)
    starts: list[NDArray[np.int64]] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    sums: dict[str, Any] = field(default_factory=lambda: defaultdict(float))

    def parts(self) -> Iterator[tuple[str, NDArray[np.int64], Array]]:
        """Each prompt with its starts and values."""
        return zip(self.prompts, self.starts, self.values, strict=True)


class WindowNull:
    """Collects the windows of one measure and compares values with them."""

    def __init__(self, measure: SpanMeasure, least: int) -> None:
        """Start with no windows.

        measure: the measure whose leading value is compared
        least: number of windows that a comparison needs
        """
        self._measure, self._least = measure, least
        self._pools: dict[Pool, _Windows] = defaultdict(_Windows)
        self._samples: dict[Pool, tuple[Array, NDArray[np.int64]]] = {}

    def add(self, pool: Pool, prompt: str, starts: NDArray[np.int64], values: Values) -> None:
        """Add windows of one prompt.

        pool: length of the windows, and whether they are in a carrier sentence
        prompt: id of the prompt
        starts: (n,) start positions
        values: what the measure's function returned for the windows
        """
        kept = self._pools[pool]
        kept.prompts.append(prompt)
        kept.starts.append(starts)
        kept.values.append(np.asarray(values[self._measure.value], dtype=np.float64))
        for name in self._measure.null_means:
            kept.sums[name] = kept.sums[name] + np.asarray(values[name], dtype=np.float64).sum(0).ravel()
        self._samples.pop(pool, None)

    def compare(self, pool: Pool, value: float, start: int) -> dict[str, Any]:
        """The columns of `schema.null_columns` for one value, and the columns in `null_means` averaged over the pool.

        pool: the windows to compare with
        value: the leading value of the term's span
        start: position of the span; the columns position_... use only windows in the same position bin
        """
        values, bins = self._sample(pool)
        near = values[bins == position_bins(np.asarray(start))]
        row: dict[str, Any] = {}
        for prefix, sample in (("", values), ("position_", near)):
            row |= {f"{prefix}{name}": v for name, v in compare_with_null(value, sample, self._least).items()}
        for name in self._measure.null_means:
            enough = row["null_reason"] is None
            row[f"null_{name}"] = self._pools[pool].sums[name] / len(values) if enough else None
        return row

    def _sample(self, pool: Pool) -> tuple[Array, NDArray[np.int64]]:
        """Values (n,) of the windows that have one, and the bins (n,) of their positions."""
        if pool not in self._samples:
            kept = self._pools[pool] if pool in self._pools else _Windows()
            values = np.concatenate([np.empty(0), *kept.values])
            bins = position_bins(np.concatenate([np.empty(0, np.int64), *kept.starts]))
            there = ~np.isnan(values)
            self._samples[pool] = values[there], bins[there]
        return self._samples[pool]

    def columns(self) -> dict[str, Cells]:
        """The table of windows, as column -> values."""
        kept = [(k, carrier, *part) for (k, carrier), pool in self._pools.items() for part in pool.parts()]
        counts = [len(starts) for *_, starts, _ in kept]
        return {
            "prompt": np.repeat(np.array([prompt for _, _, prompt, _, _ in kept], dtype=object), counts),
            "carrier": np.repeat(np.array([carrier for _, carrier, *_ in kept], dtype=bool), counts),
            "k": np.repeat(np.array([k for k, *_ in kept], dtype=np.int64), counts),
            "start": np.concatenate([np.empty(0, np.int64), *(starts for *_, starts, _ in kept)]),
            self._measure.value: np.concatenate([np.empty(0), *(values for *_, values in kept)]),
        }


def compare_with_null(value: float, null: Array, least: int) -> dict[str, Any]:
    """Compare a value with null values of the same quantity.

    value: the value
    null: (n,) null values
    least: number of null values that a comparison needs

    Returns
    null_n: number of null values
    null_mean: their mean
    excess: the value minus that mean
    percentile: rank of the value among the null values and itself, (b + 1) / (n + 1), where b null values are not above
        it
    null_reason: why null_mean, excess and percentile are None, else None
    """
    n = len(null)
    row: dict[str, Any] = {"null_n": n, "null_mean": None, "excess": None, "percentile": None, "null_reason": None}
    if np.isnan(value):
        return row | {"null_reason": "the measure has no value here"}
    if n < least:
        return row | {"null_reason": f"{n} null windows, {least} needed"}
    mean = float(null.mean())
    rank = (int((null <= value).sum()) + 1) / (n + 1)
    return row | {"null_mean": mean, "excess": value - mean, "percentile": rank}
