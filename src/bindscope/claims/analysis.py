"""A results folder -> every claim of every suite, with its answer, and the tables of analysis/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from bindscope.claims.answers import compared
from bindscope.claims.base import READINGS, Answer, Claim, Statistic, as_table, missing
from bindscope.claims.inputs import ALL_RUNS, Findings, Inputs
from bindscope.claims.registry import in_a_line, registered
from bindscope.errors import StoreError
from bindscope.stats.compare import benjamini_hochberg
from bindscope.store import TABLES
from bindscope.tables.gate import gate
from bindscope.tables.run import RunTables

#: Stored table -> what is said where a claim needs it and the run does not hold it.
_ABSENT = {
    "generation": "the run has no generated answers",
    "few_shot": "the run has no few-shot answers",
    "variability": "the run has no sampled answers",
    "ablation": "the run has no ablations",
    "ablation_sets": "the run has no ablations",
}
_Key = tuple[str, str, str | None]


@dataclass(frozen=True)
class Analysis:
    """Every claim on every suite of a results folder.

    results: a row per suite and statistic, with `q`, the p adjusted within its family (Benjamini & Hochberg 1995; a
        family is all p of one suite and reading). Columns as the fields of `Statistic`, and suite, claim, q.
    sentences: a row per suite and claim: state, sentence (the answer in words) and text (the same with numbers).
    gate: the reference study's go/no-go numbers, a row per suite.
    emergence: when binding and behavior emerge, a row per suite and term.
    layers: EB by suite, checkpoint and layer.
    more: further tables by name, those that the run carries.
    claims: the claims that were asked, in their order.
    problems: a line for each claim that is left out.
    notes: a line for whatever else is missing.
    tables_read: the tables that all of this was computed from; a report takes them from here.
    """

    results: pd.DataFrame
    sentences: pd.DataFrame
    gate: pd.DataFrame
    emergence: pd.DataFrame
    layers: pd.DataFrame
    more: dict[str, pd.DataFrame]
    claims: tuple[Claim, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    tables_read: RunTables

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the name of their CSV file."""
        return {
            "claims": self.results,
            "sentences": self.sentences,
            "gate": self.gate,
            "emergence": self.emergence,
            "layers": self.layers,
            **self.more,
        }

    @property
    def findings(self) -> Findings:
        """What figures and tables are drawn from."""
        return Findings(self.tables_read, self.results)


def analyse(tables: RunTables, claims: Iterable[Claim] = ()) -> Analysis:
    """Every claim on every suite: those of bindscope, of installed packages, of the experiment's file, and `claims`.

    A claim that cannot be computed is left out and named in `problems`. Raises StoreError where there is nothing to
    analyse.
    """
    asked, problems = registered(claims, tables.run.experiment.get("claims") or ())
    suites = {name: Inputs(tables, name) for name in _measured(tables)}
    kept, computed = _computed(asked, suites)
    problems = (*problems, *(text for text in computed.values() if isinstance(text, str)))
    frames = [_of_suite(kept, computed, name) for name in suites]
    together = _across(kept, computed)
    results = _stacked([*frames, together])
    rows = [_sentence(claim, name, frame) for name, frame in zip(suites, frames, strict=True) for claim in kept]
    sentences = pd.DataFrame([row for row in rows if isinstance(row, dict)])
    problems = (*problems, *(row for row in rows if isinstance(row, str)))
    emergence, undefined = tables.emergence
    notes = (*_left_out(tables), *undefined)
    notes += tuple(f"over runs: {reason}" for reason in together.loc[together["value"].isna(), "reason"])
    more = {
        "behavior": tables.behavior,
        "scores": tables.scores,
        "positions": tables.positions,
        "controls": tables.groups,
        "few_shot": tables.gains,
        "variability": tables.variability,
        "ablation": tables.effects,
    }
    return Analysis(
        results=results,
        sentences=sentences,
        gate=pd.DataFrame([{"suite": name} | gate(inputs.observations) for name, inputs in suites.items()]),
        emergence=emergence,
        layers=tables.observed_layers,
        more={name: frame for name, frame in more.items() if not frame.empty},
        claims=kept,
        problems=problems,
        notes=notes,
        tables_read=tables,
    )


def _measured(tables: RunTables) -> list[str]:
    """Suites that have observations. Raises StoreError where there are none to be had."""
    return list(dict.fromkeys(map(str, tables.observations["suite"])))


def _left_out(tables: RunTables) -> list[str]:
    """What of the run is not in the analysis."""
    notes = [
        f"{unit.checkpoint.suite}, {unit.checkpoint.label}: {unit.reason or unit.status}"
        for unit in tables.run.units
        if unit.status != "done"
    ]
    table = tables.observations
    if gone := int(table["eb_star"].isna().sum()):
        notes.append(f"{gone} of {len(table)} rows have no span and are left out")
    if others := tables.store.strangers():
        notes.append(f"{others} shards of another experiment, protocol or schema are in the folder and are not read")
    return notes


_Computed = dict[str, dict[str, list[Statistic]] | str]


def _computed(asked: Sequence[Claim], suites: dict[str, Inputs]) -> tuple[tuple[Claim, ...], _Computed]:
    """The claims that could be computed, and by id their statistics by suite, or a line on why there are none."""
    out: _Computed = {}
    owner: dict[str, str] = {}
    for claim in asked:
        try:
            per = {name: _checked(claim, statistics_of(claim, inputs)) for name, inputs in suites.items()}
            if claim.across is not None:
                per[ALL_RUNS] = _checked(claim, claim.across(list(suites.values())))
            for id in {each.id for part in per.values() for each in part}:
                if (other := owner.setdefault(id, claim.id)) != claim.id:
                    raise ValueError(f"the statistic id {id!r} is one of {other}'s; give it another")
            out[claim.id] = per
        except StoreError:
            raise
        except Exception as error:  # a claim may be somebody else's code: whatever it raises, the others are kept
            out[claim.id] = f"claim {claim.id} is left out: {in_a_line(error)}"
    return tuple(claim for claim in asked if not isinstance(out[claim.id], str)), out


def statistics_of(claim: Claim, inputs: Inputs) -> Iterable[Statistic]:
    """The claim's statistics on a suite; both leading ones missing, with the reason, where it lacks a table.

    Raises ValueError where it needs a table that no run stores.
    """
    if odd := [name for name in claim.needs if name not in TABLES]:
        raise ValueError(f"it needs a table {odd[0]!r}, which no run stores; tables: {', '.join(TABLES)}")
    absent = next((name for name in claim.needs if inputs.stored(name).empty), None)
    if absent is None:
        return claim.statistics(inputs)
    reason = _ABSENT.get(absent, f"the run has no table {absent}")
    ids = (claim.published, claim.controlled)
    return [
        missing(id=id, reading=reading, quantity=claim.name, reason=reason)
        for id, reading in zip(ids, READINGS, strict=True)
    ]


def _checked(claim: Claim, statistics: Iterable[Statistic]) -> list[Statistic]:
    """The statistics, each made sure of. Raises TypeError or ValueError for one that cannot be used."""
    out: dict[_Key, Statistic] = {}
    for each in statistics:
        if not isinstance(each, Statistic):
            raise TypeError(f"it yields {type(each).__name__}, not a bindscope.claims.base.Statistic")
        if each.reading not in READINGS:
            raise ValueError(f"{each.id}: reading is {each.reading!r}; one of {', '.join(READINGS)} is needed")
        if each.value is None or pd.isna(each.value):
            if not each.reason:
                raise ValueError(f"{each.id} has no value and no reason why")
        elif not np.isfinite(each.value):
            raise ValueError(f"{each.id} is {each.value}; give a finite value, or None with a reason")
        key = (each.id, each.reading, each.subject)
        if key in out:
            raise ValueError(f"{each.id} ({each.reading}) comes twice; tell them apart by `subject`")
        out[key] = each
    return list(out.values())


def _of_suite(kept: Sequence[Claim], computed: _Computed, suite: str) -> pd.DataFrame:
    """The rows of one suite, claim by claim."""
    return _adjusted(_rows(kept, lambda claim: _part(computed, claim, suite)), suite)


def _part(computed: _Computed, claim: Claim, suite: str) -> list[Statistic]:
    per = computed[claim.id]
    return [] if isinstance(per, str) else per.get(suite, [])


def _across(kept: Sequence[Claim], computed: _Computed) -> pd.DataFrame:
    """What several runs give: each claim's own statistics across them, and the mean over runs of all others."""

    def statistics(claim: Claim) -> list[Statistic]:
        per = computed[claim.id]
        values: dict[_Key, list[Statistic]] = {}
        for suite, part in per.items() if isinstance(per, dict) else ():
            for each in part if suite != ALL_RUNS else ():
                if each.value is not None:
                    values.setdefault((each.id, each.reading, each.subject), []).append(each)
        spreads = [_spread(part) for part in values.values() if len(part) > 1]
        return [*_part(computed, claim, ALL_RUNS), *spreads]

    return _adjusted(_rows(kept, statistics), ALL_RUNS)


def _spread(part: Sequence[Statistic]) -> Statistic:
    """The mean of one statistic over training runs, with the t interval of their spread."""
    values = [float(each.value) for each in part if each.value is not None]
    n, mean, deviation = len(values), float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(student.ppf(0.975, n - 1)) * deviation / np.sqrt(n)
    return Statistic(
        id=part[0].id,
        subject=part[0].subject,
        reading=part[0].reading,
        quantity=part[0].quantity,
        value=mean,
        low=mean - half,
        high=mean + half,
        n=n,
        unit="training run",
        method=f"mean over training runs, t interval; standard deviation between runs {deviation:.3g}",
        clusters=n,
        cluster="training run",
    )


def _rows(kept: Sequence[Claim], statistics: Callable[[Claim], list[Statistic]]) -> pd.DataFrame:
    frames = [as_table(statistics(claim)).assign(claim=claim.id) for claim in kept]
    rows = [row for frame in frames for row in frame.to_dict("records")]
    return pd.DataFrame(rows, columns=list(frames[0]))


def _adjusted(frame: pd.DataFrame, suite: str) -> pd.DataFrame:
    """The rows with suite and claim in front and q behind."""
    q = pd.Series(np.nan, index=frame.index)
    for _, part in frame[frame["p"].notna()].groupby("reading"):
        q[part.index] = benjamini_hochberg(part["p"].astype(float))
    order = ["suite", "claim", *[name for name in frame if name != "claim"], "q"]
    return frame.assign(q=q, suite=suite)[order]


def _stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.DataFrame([row for frame in frames for row in frame.to_dict("records")], columns=list(frames[0]))


def _sentence(claim: Claim, suite: str, frame: pd.DataFrame) -> dict[str, Any] | str | None:
    """The claim's answer as a row; a line where it raises or is no answer; nothing where it has no statistic."""
    rows = frame[frame["claim"] == claim.id]
    if rows.empty:
        return None
    try:
        answer = answered(claim, rows)
    except Exception as error:  # as in `_computed`
        return f"claim {claim.id} gives no answer for {suite}: {in_a_line(error)}"
    text = answer.detail or answer.sentence
    return {"suite": suite, "claim": claim.id, "state": answer.state, "sentence": answer.sentence, "text": text}


def answered(claim: Claim, rows: pd.DataFrame) -> Answer:
    """What the claim's rows of one suite say. Raises TypeError where it gives something that is no answer."""
    answer = compared(rows, claim.published, claim.controlled) if claim.answer is None else claim.answer(rows)
    if not isinstance(answer, Answer):
        raise TypeError(f"its answer is {type(answer).__name__}, not a bindscope.claims.base.Answer")
    return answer


def write_tables(analysis: Analysis) -> list[str]:
    """Write the tables as CSV files into the folder's analysis/ and return their paths.

    Raises StoreError where they cannot be written.
    """
    store, tables = analysis.tables_read.store, analysis.tables().items()
    return [str(store.write_text(f"analysis/{name}.csv", frame.to_csv(index=False))) for name, frame in tables]


def write_analysis(tables: RunTables) -> Analysis | None:
    """The analysis, its tables written; None for a run that asks no recognition questions. Raises as `write_tables`."""
    if not tables.has_questions:
        return None
    analysis = analyse(tables)
    write_tables(analysis)
    return analysis
