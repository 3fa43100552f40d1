"""Compares terms with the same words in other pairings, in one checkpoint.

Recombined pairings of "screen reader" and "focus ring" are "screen ring" and "focus reader": the same words, which mean
nothing together. `prompts.recombine` builds the grid, `measures.pairings` measures it, `stats.pairing` compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bindscope.checkpoints.load import Loaded
from bindscope.engine.engine import Engine
from bindscope.measures.base import Measure, SpanMeasure
from bindscope.measures.pairings import GridValues, measure_grid
from bindscope.measures.registry import chosen
from bindscope.prompts.build import frames
from bindscope.prompts.recombine import Grid, grids, reference_grids
from bindscope.records import Term
from bindscope.stats.additive import conjunction
from bindscope.stats.grid import Grid as Values
from bindscope.stats.pairing import Pooled, pooled

#: Name of the group of the terms that are asked about.
ASKED = "terms"
#: Conjunction of all dimensions, and without the 1% of dimensions with the largest variance -> share left out.
CONJUNCTIONS = {"conjunction": 0.0, "conjunction_without_largest": 0.01}
_QUANTITY = ["group", "quantity", "n", "value", "expected", "excess", "excess_low", "excess_high"]
_COLUMNS = [*_QUANTITY, "matched_percentile", "low", "high", "p", "p_layers", "reason"]
_LAYER_COLUMNS = ["group", "quantity", "layer", "n", "matched_percentile", "low", "high", "p"]


@dataclass(frozen=True)
class Pairings:
    """Terms compared with the same words in other pairings.

    frame: a row per group and quantity
        group: "terms", or a reference: "random pairs", "familiar units", "one-word units"
        quantity: a measure's leading value, or the conjunction (mean over layers); each a mean over carrier sentences
        n: number of terms
        value, expected: mean over the terms, and over random pairings of the same heads and tails
        excess, excess_low, excess_high: value minus the mean of the cells in the same row or column; 95% interval
        matched_percentile, low, high: share of these cells below the term, 0.5 without binding; 95% interval
        p: of the mean over the terms among random pairings, one-sided
        p_layers: the same of the layer that stands out most, adjusted for their number (max-T); NaN without layers
        reason: why there is no interval
    layers: a row per group, quantity and layer (from 0), where the quantity has a value in every layer; `p` is adjusted
        for the number of layers (max-T), intervals are not
    left_out: a row per term that is in no grid: group, term, reason
    failures: measure -> why it has no values
    """

    frame: pd.DataFrame
    layers: pd.DataFrame
    left_out: pd.DataFrame
    failures: dict[str, str]


def compare_pairings(
    loaded: Loaded,
    terms: Sequence[Term],
    measures: Sequence[Measure] = (),
    *,
    references: bool = True,
    carriers: Sequence[str] = (),
    permutations: int = 9999,
    seed: int = 0,
) -> Pairings:
    """Measure terms and reference units, and the same words in other pairings, behind the same carrier sentences.

    loaded: the model
    terms: the terms; a grid needs 8 that have equally many tokens, cut at the same place
    measures: further span measures
    references: whether to measure random pairs, familiar units and one-word units beside the terms
    carriers: sentences with {term} in the place of the term; none for those that ship
    permutations: number of random pairings of the test
    seed: of these pairings
    Raises MeasureError for numbers that are not finite.
    """
    sentences = tuple(carriers) or frames()["carriers"]
    groups = {ASKED: grids(terms, loaded.tokenizer, sentences, loaded.bos)}
    if references:
        groups |= reference_grids(loaded.tokenizer, loaded.bos, sentences)
    spans = [m for m in chosen(["binding"], measures)[0].values() if _comparable(m)]
    found = _Found(permutations, seed)
    with Engine(loaded) as engine:
        for group, made in groups.items():
            found.left_out += [{"group": group, "term": t, "reason": why} for t, why in made.left_out.items()]
            found.add(group, made.grids, [_read(engine, grid, spans, found.failures) for grid in made.grids])
    return Pairings(
        frame=pd.DataFrame(found.rows, columns=_COLUMNS),
        layers=pd.DataFrame(found.layer_rows, columns=_LAYER_COLUMNS),
        left_out=pd.DataFrame(found.left_out, columns=["group", "term", "reason"]),
        failures=found.failures,
    )


def _comparable(measure: Measure) -> bool:
    """Whether the measure has a value in each cell. Previous-token scores belong to heads, not to cells."""
    return isinstance(measure, SpanMeasure) and bool(measure.value) and not measure.needs.previous_token


def _read(engine: Engine, grid: Grid, measures: Sequence[Measure], failures: dict[str, str]) -> dict[str, _Quantity]:
    """What the measures and the conjunction are in every cell of a grid; adds to `failures` why a measure has none."""
    usable = np.ones(grid.shape, dtype=bool)
    for cell in grid.left_out:
        usable[cell] = False
    depth = int(engine.model.config.num_hidden_layers)
    shares = {name: np.zeros((*grid.shape, depth)) for name in CONJUNCTIONS}

    def add(carrier: int, layer: int, stream: NDArray[np.float32]) -> None:
        if layer:  # the embedding of a tail knows nothing of its head
            for name, leave_out in CONJUNCTIONS.items():
                shares[name][:, :, layer - 1] += conjunction(stream, usable, leave_out=leave_out).share

    read: GridValues = measure_grid(engine, grid, measures, states=add)
    failures |= read.failures
    values = {name: _Quantity(value, read.by_layer.get(name)) for name, value in read.value.items()}
    for name, share in shares.items():
        mean = share / len(grid.carriers)
        values[name] = _Quantity(mean.mean(2), mean)
    return values


@dataclass(frozen=True)
class _Quantity:
    """What a quantity is in every cell, NaN in cells that are left out.

    value: (rows, columns)
    by_layer: (rows, columns, L), None for a quantity without layers
    """

    value: NDArray[np.float64]
    by_layer: NDArray[np.float64] | None


@dataclass
class _Found:
    """Compares quantities and collects the rows of `Pairings`."""

    permutations: int
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    layer_rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, group: str, grids: Sequence[Grid], values: Sequence[dict[str, _Quantity]]) -> None:
        """Add the comparisons of the grids of one group, pooled over terms."""
        for name in [name for name in values[0] if all(name in each for each in values)] if grids else ():
            quantities = [each[name] for each in values]
            compared = self._pooled(grids, [q.value for q in quantities])
            row = {"group": group, "quantity": name} | _row(compared)
            layers = [q.by_layer for q in quantities if q.by_layer is not None]
            if layers:
                by_layer = self._pooled(grids, layers)
                row["p_layers"] = by_layer.test.p_greater
                self.layer_rows += [{"group": group, "quantity": name} | each for each in _layers(by_layer)]
            self.rows.append(row)

    def _pooled(self, grids: Sequence[Grid], values: Sequence[NDArray[np.float64]]) -> Pooled:
        given = []
        for grid, each in zip(grids, values, strict=True):
            rows, columns = np.array(list(grid.places.values())).T
            given.append(Values(each, rows, columns))
        return pooled(given, self.permutations, self.seed)


def _row(found: Pooled) -> dict[str, Any]:
    excess, percentile, test = found.intervals.excess, found.intervals.percentile, found.test
    return {
        "n": test.terms,
        "value": float(test.value),
        "expected": float(test.expected),
        "excess": float(excess.mean),
        "excess_low": float(excess.low),
        "excess_high": float(excess.high),
        "matched_percentile": float(percentile.mean),
        "low": float(percentile.low),
        "high": float(percentile.high),
        "p": test.p_greater,
        "p_layers": float("nan"),
        "reason": percentile.reason or None,
    }


def _layers(found: Pooled) -> Iterator[dict[str, Any]]:
    each = found.intervals.percentile
    columns = zip(each.mean, each.low, each.high, found.test.layer_p_greater, strict=True)
    for layer, (percentile, low, high, p) in enumerate(columns):
        numbers = {"matched_percentile": percentile, "low": low, "high": high, "p": p}
        yield {"layer": layer, "n": found.test.terms} | {name: float(value) for name, value in numbers.items()}
