"""Span measures on a grid of recombined pairings: one value for every cell, mean over the carrier sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bindscope.engine.data import Array, CellData, Needs, together
from bindscope.errors import RequestError
from bindscope.measures.base import Measure, SpanMeasure
from bindscope.measures.spans import check_shapes, failure
from bindscope.measures.view import SpanView
from bindscope.prompts.recombine import Cell, Grid
from bindscope.prompts.spans import special_prefix

if TYPE_CHECKING:
    from bindscope.engine.engine import Engine

#: Bytes of residual streams that are held at a time: layers that do not fit are read in another pass over the cells.
STATE_BYTES = 1 << 29

#: Receives the number of a carrier, a layer (0 for the embeddings), and the residual stream at the last token of every
#: cell, (rows, columns, D) with NaN in cells that are left out.
States = Callable[[int, int, NDArray[np.float32]], None]


@dataclass(frozen=True)
class GridValues:
    """What measures give for the cells of a grid, NaN in cells that are left out.

    value: measure -> (rows, columns) its leading value
    by_layer: measure -> (rows, columns, L) the same of every layer, for measures that have such a column
    failures: measure -> why it has no values, one line
    """

    value: dict[str, Array]
    by_layer: dict[str, Array]
    failures: dict[str, str]


def measure_grid(
    engine: Engine,
    grid: Grid,
    measures: Sequence[Measure] = (),
    *,
    states: States | None = None,
    previous_token: Array | None = None,
) -> GridValues:
    """Every span measure that has a leading value, in every cell of the grid: the mean over its carriers.

    states: is given residual streams, carrier after carrier and layer after layer, of which it keeps what it needs
    previous_token: (L, H) mean attention to the previous token on neutral text, for measures that read it
    A measure whose function fails is left out, and the others go on. Raises RequestError where a measure reads
    `previous_token` and it is not given.
    """
    spans = [m for m in measures if isinstance(m, SpanMeasure) and m.value]
    needs = together(m.needs for m in spans)
    if needs.previous_token and previous_token is None:
        reading = next(m.name for m in spans if m.needs.previous_token)
        raise RequestError(f"the measure {reading} reads previous_token; give it to measure_grid, or leave it out")
    cells = grid.cells
    ids = [grid.ids(cell) for cell in cells]
    alone = _alone(engine, ids) if needs.alone else None
    groups = [()] if states is None else _layer_groups(engine, grid.shape)
    sums = _Sums(spans, grid.shape, cells)
    for place, carrier in enumerate(grid.carriers):
        for n, layers in enumerate(groups):
            held = _Held(layers, grid.shape, cells)
            for part in engine.stream_cells(carrier.ids, ids, needs if n == 0 else Needs(), states=layers):
                if n == 0:
                    data = replace(part.data, alone=alone, previous_token=previous_token)
                    sums.add(part.first, SpanView(data, part.starts, part.k))
                held.add(part)
            if states is not None:
                held.give(place, states)
    return sums.means(len(grid.carriers))


def _alone(engine: Engine, ids: Sequence[tuple[int, ...]]) -> Mapping[int, NDArray[np.float32]]:
    """Token id -> residual stream of the token read by itself, for every token of the cells."""
    loaded = engine.loaded
    return engine.alone(sorted({token for cell in ids for token in cell}), special_prefix(loaded.tokenizer, loaded.bos))


def _layer_groups(engine: Engine, shape: Cell) -> list[tuple[int, ...]]:
    """Layers, the embeddings first, in groups whose residual streams fit into STATE_BYTES."""
    config = engine.model.config
    size = max(1, STATE_BYTES // (shape[0] * shape[1] * int(config.hidden_size) * 4))
    layers = range(int(config.num_hidden_layers) + 1)
    return [tuple(layers[i : i + size]) for i in range(0, len(layers), size)]


def _places(cells: Sequence[Cell], first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the cells from `first` on."""
    rows, columns = np.array(cells[first : first + count], dtype=np.int64).T
    return rows, columns


class _Held:
    """Residual streams of some layers behind one carrier."""

    def __init__(self, layers: Sequence[int], shape: Cell, cells: Sequence[Cell]) -> None:
        self._layers, self._shape, self._cells = layers, shape, cells
        self._streams: NDArray[np.float32] | None = None

    def add(self, part: CellData) -> None:
        if part.states is None:
            return
        if self._streams is None:
            self._streams = np.full((len(self._layers), *self._shape, part.states.shape[-1]), np.nan, np.float32)
        rows, columns = _places(self._cells, part.first, part.count)
        self._streams[:, rows, columns] = part.states

    def give(self, carrier: int, states: States) -> None:
        if self._streams is not None:
            for layer, stream in zip(self._layers, self._streams, strict=True):
                states(carrier, layer, stream)


class _Sums:
    """Sums over carriers of every measure's values, float64."""

    def __init__(self, measures: Sequence[SpanMeasure], shape: Cell, cells: Sequence[Cell]) -> None:
        self._measures, self._shape, self._cells = measures, shape, cells
        self._values: dict[str, Array] = {}
        self._layers: dict[str, Array] = {}
        self._failures: dict[str, str] = {}

    def add(self, first: int, view: SpanView) -> None:
        """The cells from `first` on, behind one carrier."""
        for measure in self._measures:
            if measure.name in self._failures:
                continue
            try:
                values = measure.function(view)
                check_shapes(measure, values, view.n)
            except Exception as error:  # any error of one measure must not stop the others
                self._failures[measure.name] = failure(measure.name, error)
                continue
            self._add(self._values, measure.name, first, values[measure.value])
            if measure.by_layer:
                self._add(self._layers, measure.name, first, values[measure.by_layer])

    def _add(self, sums: dict[str, Array], name: str, first: int, values: Any) -> None:
        given = np.asarray(values, dtype=np.float64)
        if name not in sums:
            sums[name] = np.full((*self._shape, *given.shape[1:]), np.nan)
            sums[name][_places(self._cells, 0, len(self._cells))] = 0.0
        sums[name][_places(self._cells, first, len(given))] += given

    def means(self, carriers: int) -> GridValues:
        """The sums as means over so many carriers."""
        value, by_layer = (
            {name: total / carriers for name, total in sums.items() if name not in self._failures}
            for sums in (self._values, self._layers)
        )
        return GridValues(value=value, by_layer=by_layer, failures=dict(self._failures))
