"""The tables of one results folder: stored tables, each read once, and derived tables, each computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import pandas as pd

from bindscope.schema import Table
from bindscope.stats.correlate import Undefined
from bindscope.store import RunFile, Store
from bindscope.tables import ablation as edits
from bindscope.tables import behavior as answers
from bindscope.tables import series
from bindscope.tables.groups import by_group, carrier_rows
from bindscope.tables.heads import by_head
from bindscope.tables.observations import by_layer, observations, own_prompts
from bindscope.tables.summary import by_checkpoint
from bindscope.tables.tokens import by_kind, cuts


class RunTables:
    """The tables of a results folder; each is read or computed at its first use and kept.

    Callers must not change the tables, since claims, report and terminal share them.

    store: the results folder
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._stored: dict[str, pd.DataFrame] = {}

    @cached_property
    def run(self) -> RunFile:
        """The recorded run: its experiment and its checkpoints."""
        return self.store.read_run()

    def stored(self, name: str) -> pd.DataFrame:
        """A stored table, after the columns suite, revision and step; empty where the run does not hold it.

        Raises StoreError for a shard that is missing or damaged.
        """
        if name not in self._stored:
            self._stored[name] = self.store.read(name)
        return self._stored[name]

    @cached_property
    def declared(self) -> tuple[Table, ...]:
        """The declarations of the stored tables."""
        return self.store.tables()

    @property
    def suites(self) -> list[str]:
        """Suites with at least one measured checkpoint, in the order of the experiment."""
        return list(dict.fromkeys(u.checkpoint.suite for u in self.run.units if u.status == "done"))

    @property
    def has_questions(self) -> bool:
        """Whether the run has recognition questions, which claims need."""
        return not self.stored("recognition").empty

    @cached_property
    def own(self) -> pd.DataFrame:
        """Binding rows of the terms' own prompts."""
        return own_prompts(self.stored("binding"))

    @cached_property
    def observations(self) -> pd.DataFrame:
        """Binding and behavior of each prompt and checkpoint. Raises the errors of `observations.observations`."""
        return observations(self.stored("binding"), self.stored("recognition"), self.stored("generation"))

    @cached_property
    def observed(self) -> dict[str, pd.DataFrame]:
        """Suite -> its observations that have an EB*; empty for a run without questions."""
        if not self.has_questions:
            return {}
        by_suite = self.observations.groupby("suite", sort=False)
        return {str(name): part[part["eb_star"].notna()] for name, part in by_suite}

    @cached_property
    def carriers(self) -> pd.DataFrame:
        """Terms and control expressions in the same carrier sentences."""
        return carrier_rows(self.stored("binding"))

    @cached_property
    def gains(self) -> pd.DataFrame:
        """Scores of each opening without an exemplar and after each kind of exemplar."""
        return answers.gains(self.stored("generation"), self.stored("few_shot"))

    @cached_property
    def effects(self) -> pd.DataFrame:
        """The effects of ablation, compared with random sets; empty where nothing was ablated."""
        if self.stored("ablation").empty:
            return pd.DataFrame()
        chance = float(self.observations["chance"].mean())
        return edits.effects(self.stored("ablation"), self.stored("ablation_sets"), chance)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """A row per checkpoint: means over prompts."""
        binding = self.stored("binding")
        if binding.empty:
            return pd.DataFrame({"suite": []})
        return by_checkpoint(binding, self.stored("recognition"), self.stored("generation"))

    @cached_property
    def layers(self) -> pd.DataFrame:
        """EB of each layer, over the terms' own prompts, by suite and checkpoint."""
        return pd.DataFrame() if self.stored("binding").empty else by_layer(self.own)

    @cached_property
    def observed_layers(self) -> pd.DataFrame:
        """EB of each layer, over the observations, by suite and checkpoint."""
        return by_layer(self.observations)

    @cached_property
    def groups(self) -> pd.DataFrame:
        """Terms and control groups at equal token counts, by suite and checkpoint."""
        return by_group(self.stored("binding"))

    @cached_property
    def heads(self) -> pd.DataFrame:
        """Every head at the last checkpoint of each suite."""
        return by_head(last(self.stored("binding")), self.stored("previous_token"))

    @cached_property
    def behavior(self) -> pd.DataFrame:
        """Recognition accuracy, generation score and their mean, by suite, checkpoint and term."""
        return answers.behavior(self.stored("recognition"), self.stored("generation"))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Accuracy and margin under each score of a choice, by suite, checkpoint and format."""
        return answers.scoring(self.stored("recognition"))

    @cached_property
    def positions(self) -> pd.DataFrame:
        """Accuracy by position of the right option, by suite and checkpoint."""
        return answers.positions(self.stored("recognition"))

    @cached_property
    def variability(self) -> pd.DataFrame:
        """Spread of the rubric score over sampling seeds, by suite, checkpoint, temperature and term."""
        return answers.variability(self.stored("variability"))

    @cached_property
    def shots(self) -> pd.DataFrame:
        """Means by kind of exemplar, at the last checkpoint of each suite."""
        return answers.shots(last(self.gains))

    @cached_property
    def draws(self) -> pd.DataFrame:
        """The drop under each set of heads, at the last checkpoint of each suite."""
        return edits.draws(last(self.stored("ablation")))

    @cached_property
    def doses(self) -> pd.DataFrame:
        """`draws` by the number of heads that were ablated."""
        return edits.dose(self.draws)

    @cached_property
    def cuts(self) -> pd.DataFrame:
        """How the tokenizer of each suite splits the terms."""
        return cuts(self.stored("binding"))

    @cached_property
    def kinds(self) -> pd.DataFrame:
        """Mean EB* by suite, term and kind of prompt, at the last checkpoint."""
        return by_kind(self.stored("binding"))

    @cached_property
    def paths(self) -> pd.DataFrame:
        """EB* and behavior by suite, term and checkpoint; empty for a run without questions."""
        return self.each_suite(series.paths)

    @cached_property
    def emergence(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """When binding and behavior of each term reach half of their rise, and a message for each suite without it."""
        parts, reasons = [], []
        for suite, table in self.observed.items():
            try:
                parts.append(series.emergence(table).assign(suite=suite))
            except Undefined as error:
                reasons.append(f"{suite}: when binding and behavior emerge is undefined, {error}")
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        return table.reindex(columns=list(series.EMERGENCE)), tuple(reasons)

    def each_suite(self, compute: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
        """Apply a function to the observations of each suite and concatenate the results, with a last column suite."""
        parts = [compute(part).assign(suite=name) for name, part in self.observed.items() if not part.empty]
        kept = [part for part in parts if not part.empty]
        return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def last(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of each suite's last checkpoint."""
    if frame.empty:
        return frame
    ends = frame.groupby("suite", sort=False)["revision"].last()
    return frame[frame["revision"] == frame["suite"].map(ends)]
