"""Everything that a report draws: stored tables, read once, and what the statistics make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from bindscope.stats.ablation import dose, draws
from bindscope.stats.analysis import Analysis
from bindscope.stats.behavior import shots
from bindscope.stats.claims import halves, paths
from bindscope.stats.groups import by_group
from bindscope.stats.heads import by_head
from bindscope.stats.observations import by_layer, observations, studied
from bindscope.stats.summary import by_checkpoint
from bindscope.stats.tokens import by_kind, cuts
from bindscope.store import RunFile, Store


@dataclass(frozen=True)
class Material:
    """binding ... few_shot: stored tables; previous: the table `heads`. summary: a row per checkpoint. analysis: None
    for a run that asks no questions. The others are of the functions of `stats` that they are named after; of every
    checkpoint: layers, paths; a row per suite and term: halves; of the last checkpoint of each suite: heads, groups,
    shots, draws, doses, cuts, kinds.
    """

    run: RunFile
    binding: pd.DataFrame
    recognition: pd.DataFrame
    generation: pd.DataFrame
    few_shot: pd.DataFrame
    previous: pd.DataFrame
    summary: pd.DataFrame
    analysis: Analysis | None
    layers: pd.DataFrame
    heads: pd.DataFrame
    groups: pd.DataFrame
    shots: pd.DataFrame
    draws: pd.DataFrame
    doses: pd.DataFrame
    halves: pd.DataFrame
    paths: pd.DataFrame
    cuts: pd.DataFrame
    kinds: pd.DataFrame

    @property
    def suites(self) -> list[str]:
        """Suites with at least one measured checkpoint, in the order of the study."""
        return list(dict.fromkeys(u.checkpoint.suite for u in self.run.units if u.status == "done"))

    def more(self, name: str) -> pd.DataFrame:
        """A further table of the analysis at each suite's last checkpoint; empty where the run does not carry it."""
        if self.analysis is None or name not in self.analysis.more:
            return pd.DataFrame()
        return last(self.analysis.more[name])

    def results(self, *claims: str) -> pd.DataFrame:
        """Rows of the claims, of single suites; all claims if none is named."""
        if self.analysis is None:
            return pd.DataFrame(columns=["suite", "claim", "quantity", "reading", "value", "low", "high", "p"])
        table = self.analysis.results
        table = table[table["suite"] != "all runs"]
        return table[table["claim"].isin(claims)] if claims else table


def gather(store: Store, analysis: Analysis | None) -> Material:
    """Read the tables and compute what is drawn. Raises StoreError where the results cannot be read."""
    run = store.read_run()
    binding, recognition, generation, few_shot, heads, ablation = (
        store.read(name) for name in ("binding", "recognition", "generation", "few_shot", "heads", "ablation")
    )
    ending, found = last(binding), draws(last(ablation))
    observed: dict[str, pd.DataFrame] = {}
    if analysis is not None:
        table = observations(binding, recognition, generation)
        observed = {str(name): part for name, part in table[table["eb_star"].notna()].groupby("suite", sort=False)}
    return Material(
        run,
        binding,
        recognition,
        generation,
        few_shot,
        heads,
        summary=pd.DataFrame({"suite": []}) if binding.empty else by_checkpoint(binding, recognition, generation),
        analysis=analysis,
        layers=pd.DataFrame() if binding.empty else by_layer(studied(binding)),
        heads=by_head(ending, heads),
        groups=by_group(ending),
        shots=pd.DataFrame() if analysis is None else shots(last(analysis.more.get("few_shot", pd.DataFrame()))),
        draws=found,
        doses=dose(found),
        halves=_each(observed, halves),
        paths=_each(observed, paths),
        cuts=cuts(binding),
        kinds=by_kind(binding),
    )


def last(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of each suite's last checkpoint."""
    if frame.empty:
        return frame
    ends = frame.groupby("suite", sort=False)["revision"].last()
    return frame[frame["revision"] == frame["suite"].map(ends)]


def _each(observed: dict[str, pd.DataFrame], compute: Any) -> pd.DataFrame:
    parts = [compute(part).assign(suite=name) for name, part in observed.items()]
    kept = [part for part in parts if not part.empty]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()
