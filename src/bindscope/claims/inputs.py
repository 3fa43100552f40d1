"""What a claim reads: the tables of one suite for its statistics, and everything of a run for its figures."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bindscope.tables.run import RunTables, last
from bindscope.tables.series import series

#: Suite of the rows that were computed across suites.
ALL_RUNS = "all runs"
_COLUMNS = ["suite", "claim", "id", "subject", "reading", "quantity", "value", "low", "high", "p", "n"]


class Inputs:
    """The tables of one suite, each computed when a claim first asks for it. See `RunTables` for what they hold."""

    def __init__(self, tables: RunTables, suite: str) -> None:
        self.suite = suite
        self._tables = tables

    def stored(self, name: str) -> pd.DataFrame:
        """The suite's rows of a stored table; empty where the run does not hold it."""
        return self._own(self._tables.stored(name))

    @cached_property
    def observations(self) -> pd.DataFrame:
        """A row per prompt and checkpoint with an EB*: what is bound beside what is known."""
        return self._tables.observed[self.suite]

    @cached_property
    def questions(self) -> pd.DataFrame:
        """The observations that are recognition questions."""
        table = self.observations
        return table[table["task"] == "recognition"]

    @cached_property
    def final_questions(self) -> pd.DataFrame:
        """The recognition questions at the last checkpoint."""
        table = self.questions
        return table[table["t"] == table["t"].max()] if len(table) else table

    @cached_property
    def series(self) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
        """Names of the terms that have a value at every checkpoint, and their EB* and behavior (terms, checkpoints)."""
        return series(self.observations)

    @property
    def has_generation(self) -> bool:
        """Whether generated answers are among the observations."""
        return bool((self.observations["task"] == "generation").any())

    @cached_property
    def carriers(self) -> pd.DataFrame:
        """Terms and control expressions in the same carrier sentences, at the last checkpoint."""
        return last(self._own(self._tables.carriers))

    @cached_property
    def gains(self) -> pd.DataFrame:
        """Scores with and without exemplars, a row per prompt, at the last checkpoint."""
        return last(self._own(self._tables.gains))

    @cached_property
    def effects(self) -> pd.DataFrame:
        """What ablating each set of heads does, at the last checkpoint."""
        return last(self._own(self._tables.effects))

    def _own(self, table: pd.DataFrame) -> pd.DataFrame:
        return table if table.empty else table[table["suite"] == self.suite]


class Findings:
    """What the figures and tables of a report are drawn from.

    tables: the run's tables.
    results: the claims table, a row per suite and statistic; it has no rows for a run without questions.
    """

    def __init__(self, tables: RunTables, results: pd.DataFrame | None = None) -> None:
        self.tables = tables
        self.results = pd.DataFrame(columns=_COLUMNS) if results is None else results

    def rows(self, id: str, reading: str | None = None) -> pd.DataFrame:
        """Rows of one statistic that have a value, a row per suite and subject; not those computed across suites."""
        table = self.results
        table = table[(table["id"] == id) & (table["suite"] != ALL_RUNS) & table["value"].notna()]
        return table if reading is None else table[table["reading"] == reading]
