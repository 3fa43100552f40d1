"""Stored measurements -> answers: every claim of every suite, with a sentence on what the pair of readings shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from bindscope.errors import StoreError
from bindscope.stats.ablation import effects
from bindscope.stats.behavior import behavior, gains, positions, scoring, variability
from bindscope.stats.claims import claims, emergence
from bindscope.stats.compare import benjamini_hochberg
from bindscope.stats.correlate import Undefined, spearman
from bindscope.stats.groups import by_group, carried
from bindscope.stats.observations import by_layer, observations
from bindscope.stats.result import Result
from bindscope.stats.result import table as as_table
from bindscope.stats.runs import across_runs
from bindscope.store import Store

#: Per claim, the quantity whose published and controlled readings are set side by side in words.
PAIRS = {
    "C1-A": ("rho(EB*, accuracy), all checkpoints", "r(EB*, accuracy) within terms and checkpoints"),
    "C1-B": ("share of terms that EB* leads", "share of terms that EB* leads"),
    "C3": ("gain with an exemplar (pp)", "gain over another term's exemplar (pp)"),
    "C2": ("ICC of EB* by term", "ICC of EB* by term"),
    "C4-A": ("rho(EB*, accuracy), late half", "rho(EB*, accuracy), late half, within checkpoints"),
    "C4-B": ("share of terms that decouple", "the same share if halves had nothing to do with each other"),
    "robustness": ("rho(EB*, prompt length)", "rho(EB*, prompt length)"),
}


_EMERGENCE = ["suite", "term", *(f"{what}_{part}" for what in ("binding", "knowing") for part in (
    "left", "right", "threshold"
))]  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """results: a row per suite and statistic, with `q`, the p adjusted within its family (Benjamini & Hochberg 1995; a
    family is all p of one suite and reading). sentences: suite, claim, text. gate: the study's go/no-go numbers by
    suite. emergence: a row per suite and term. layers: EB by suite, checkpoint and layer. more: further tables by name
    (behavior, scores, positions, controls, few_shot, variability, ablation), those that the run carries. notes: what
    is missing.
    """

    results: pd.DataFrame
    sentences: pd.DataFrame
    gate: pd.DataFrame
    emergence: pd.DataFrame
    layers: pd.DataFrame
    more: dict[str, pd.DataFrame]
    notes: tuple[str, ...]

    def tables(self) -> dict[str, pd.DataFrame]:
        """The tables by the name of their CSV file."""
        return {
            "claims": self.results, "sentences": self.sentences, "gate": self.gate,
            "emergence": self.emergence, "layers": self.layers, **self.more,
        }  # fmt: skip


def analyse(store: Store) -> Analysis:
    """Every claim on every suite of a results folder. Raises StoreError where there is nothing to analyse."""
    run = store.read_run()
    binding, recognition, generation = (store.read(name) for name in ("binding", "recognition", "generation"))
    table = observations(binding, recognition, generation)
    gained, groups = gains(generation, store.read("few_shot")), carried(binding)
    edited = effects(store.read("ablation"), store.read("ablation_sets"), float(table["chance"].mean()))
    notes = [
        f"{u.checkpoint.suite}, {u.checkpoint.label}: {u.reason or u.status}" for u in run.units if u.status != "done"
    ]
    if gone := int(table["eb_star"].isna().sum()):
        notes.append(f"{gone} of {len(table)} rows have no span and are left out")
    if others := store.unused():
        notes.append(f"{others} shards of another study, protocol or schema are in the folder and are not read")
    suites = {str(name): part for name, part in table.groupby("suite", sort=False)}
    frames, said, gates, when = [], [], [], []
    per_run: dict[str, list[Result]] = {}
    for name, part in suites.items():
        per_run[name] = claims(part, _of(groups, name), _of(gained, name), _of(edited, name))
        frame = _adjusted(as_table(per_run[name]))
        frames.append(frame.assign(suite=name))
        said += [{"suite": name, "claim": claim, "text": text} for claim, text in sentences(frame).items()]
        gates.append({"suite": name} | gate(part))
        try:
            when.append(emergence(part[part["eb_star"].notna()]).assign(suite=name))
        except Undefined as error:
            notes.append(f"{name}: emergence is undefined, {error}")
    together = _adjusted(as_table(across_runs(suites, per_run))).assign(suite="all runs")
    notes += [f"over runs: {reason}" for reason in together[together["value"].isna()]["reason"]]
    results = _stacked([*frames, together])
    order = ["suite", *[c for c in results if c != "suite"]]
    crossed = _stacked(when).reindex(columns=_EMERGENCE)
    tables = results[order], pd.DataFrame(said), pd.DataFrame(gates), crossed, by_layer(table)
    more = {
        "behavior": behavior(recognition, generation),
        "scores": scoring(recognition),
        "positions": positions(recognition),
        "controls": by_group(binding),
        "few_shot": gained,
        "variability": variability(store.read("variability")),
        "ablation": edited,
    }
    return Analysis(*tables, {name: frame for name, frame in more.items() if not frame.empty}, tuple(notes))


def _of(table: pd.DataFrame, suite: str) -> pd.DataFrame:
    return table if table.empty else table[table["suite"] == suite]


def _stacked(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.DataFrame([row for frame in frames for row in frame.to_dict("records")])


def write(found: Analysis, store: Store) -> list[str]:
    """The tables as CSV files in the folder's analysis/. Raises StoreError where they cannot be written."""
    try:
        (store.root / "analysis").mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot write to {store.root}: {error.strerror or error}") from error
    tables = found.tables().items()
    return [str(store.write_text(f"analysis/{name}.csv", frame.to_csv(index=False))) for name, frame in tables]


def _adjusted(frame: pd.DataFrame) -> pd.DataFrame:
    q = pd.Series(np.nan, index=frame.index)
    for _, part in frame[frame["p"].notna()].groupby("reading"):
        q[part.index] = benjamini_hochberg(part["p"].astype(float))
    return frame.assign(q=q)


def gate(table: pd.DataFrame) -> dict[str, object]:
    """The study's go/no-go: rho(EB*, accuracy) > 0.3 over all pairs, and at least one pair with EB* at or above its
    75th percentile while accuracy is at or below its 25th. `reason` says why a part is missing."""
    kept = table[table["eb_star"].notna() & (table["task"] == "recognition")]
    out: dict[str, object] = {
        "rho": None,
        "rho_above": None,
        "quadrant": None,
        "go": None,
        "n": len(kept),
        "reason": None,
    }
    try:
        rho = spearman(kept["eb_star"], kept["accuracy"]).rho
    except Undefined as error:
        return out | {"reason": str(error)}
    high = kept["eb_star"] >= kept["eb_star"].quantile(0.75)
    low = kept["accuracy"] <= kept["accuracy"].quantile(0.25)
    quadrant = int((high & low).sum())
    return out | {"rho": rho, "rho_above": rho > 0.3, "quadrant": quadrant, "go": bool(rho > 0.3 and quadrant > 0)}


def sentences(frame: pd.DataFrame) -> dict[str, str]:
    """Per claim, what the published and the controlled reading say, without more than they carry."""
    out = {}
    for claim in frame["claim"].unique():
        rows = frame[frame["claim"] == claim]
        if rows["value"].isna().all():
            out[claim] = f"Not carried by these data: {rows['reason'].iloc[-1]}."
            continue
        if claim in ("V", "C5"):
            out[claim] = _validity(rows) if claim == "V" else _edits(rows)
            continue
        first, second = PAIRS[claim]
        published = rows[(rows["reading"] == "published") & (rows["quantity"] == first)]
        controlled = rows[(rows["reading"] == "controlled") & (rows["quantity"] == second)]
        out[claim] = f"As published: {_said(published)}. Controlled: {_said(controlled)}.{_verdict(claim, controlled)}"
    return out


def _edits(rows: pd.DataFrame) -> str:
    """C5 in words: what each way of taking heads out gives, published and controlled."""
    published = rows[rows["reading"] == "published"]
    controlled = rows[rows["reading"] == "controlled"]
    coupled = published["reason"].str.startswith("coupled").sum()
    words = controlled["reason"].str.partition(":")[0].value_counts()
    told = ", ".join(f"{n} {word}" for word, n in words.items())
    return (
        f"As published: {coupled} of {len(published)} edits are called coupled. Controlled, against random sets: "
        f"{told} (of {len(controlled)}; each verdict has its rule in the table)."
    )


def _validity(rows: pd.DataFrame) -> str:
    """V in words: from how many control groups real terms differ, as published and at equal k in the same frames."""
    found = rows[rows["quantity"].str.startswith("difference of")].dropna(subset="value")
    texts = {}
    for reading, part in found.groupby("reading"):
        groups = part["quantity"].str.removeprefix("difference of EB*, real terms against ")
        above, below = groups[part["low"] > 0], groups[part["high"] < 0]
        text = f"real terms are bound more than {len(above)} of {len(part)} control groups"
        text += f" ({', '.join(above)})" if 0 < len(above) < len(part) else ""
        texts[reading] = text + (f" and less than {', '.join(below)}" if len(below) else "")
    missing = rows[(rows["reading"] == "controlled") & rows["value"].isna()]
    tail = f" {len(missing)} groups have no match." if len(missing) else ""
    return (
        f"As published: {texts.get('published', 'missing')}. Controlled, at equal token counts in the same sentences: "
        f"{texts.get('controlled', 'missing')} (95% intervals).{tail}"
    )


def _said(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    if pd.isna(row["value"]):
        return f"{row['quantity']} is missing ({row['reason']})"
    text = f"{row['quantity']} {row['value']:+.2f}"
    if pd.notna(row["low"]):
        text += f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    if pd.isna(row["p"]):
        return text
    return text + (", p < 0.001" if row["p"] < 0.001 else f", p {row['p']:.3f}")


def _verdict(claim: str, rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    if claim == "C1-B" and pd.notna(row["value"]):
        return (
            " The interval is where the share falls when nothing leads; "
            "one training run cannot tell a lead from a later rise."
        )
    if claim == "C4-B" and pd.notna(row["value"]):
        return " The rule is met that often by chance alone."
    if claim == "C2" or pd.isna(row["value"]) or pd.isna(row["low"]):
        return ""
    if (row["low"] > 0 or row["high"] < 0) and row["p"] >= 0.05:
        return " The interval leaves out zero and the test does not reject it: too few clusters to conclude."
    if row["low"] > 0 or row["high"] < 0:
        return " The controlled interval leaves out zero."
    return " The controlled interval holds zero: no evidence here, which is not evidence of no effect."
