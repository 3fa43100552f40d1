"""What the terminal shows of a run and of its results. Plain lines where the output is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from bindscope.charts.text import chance
from bindscope.records import CheckpointRef

if TYPE_CHECKING:
    from bindscope.checkpoints.fingerprint import VerifiedSuite
    from bindscope.checkpoints.load import Loaded
    from bindscope.checkpoints.suites import Suite
    from bindscope.claims.analysis import Analysis
    from bindscope.doctor import Finding
    from bindscope.execute.sweep import Outcome
    from bindscope.quick import TermResult
    from bindscope.tables.changes import Changes
    from bindscope.tables.run import RunTables

_OUT = Console(highlight=False)
_ERR = Console(stderr=True, highlight=False)


class Progress:
    """A bar over checkpoints and one over the prompts of the current one; without a terminal a line per checkpoint."""

    def __init__(self) -> None:
        self._live = _ERR.is_terminal
        self._bars = Bars(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=_ERR,
            speed_estimate_period=300,  # steps of an ablation can take many seconds
            disable=not self._live,
        )

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, units: int) -> None:
        """units: number of checkpoints."""
        self._units = self._bars.add_task("checkpoints", total=units)
        self._steps = self._bars.add_task("prompts", total=None)
        self._count, self._done = units, 0

    def unit(self, ref: CheckpointRef, steps: int) -> None:
        """A checkpoint begins. steps: prompts to measure and texts to generate; 0 where everything is stored."""
        self._stored = steps == 0
        self._bars.reset(self._steps, total=steps, description=escape(f"{ref.suite}, {ref.label}")[:24])

    def progress(self, done: float) -> None:
        """done: steps that were finished since the last call."""
        self._bars.advance(self._steps, done)

    def end(self, ref: CheckpointRef, reason: str | None) -> None:
        """A checkpoint is finished. reason: why it failed; None if it did not."""
        self._done += 1
        self._bars.advance(self._units)
        what = "failed" if reason else "found in the store" if getattr(self, "_stored", False) else "measured"
        if not self._live:
            print(f"[{self._done}/{self._count}] {ref.suite}, {ref.label}: {what}", file=sys.stderr, flush=True)
        if reason:
            self.note(f"{ref.suite}, {ref.label} failed: {reason}")

    def note(self, text: str) -> None:
        """Print a line that is no result."""
        self._bars.console.print(f"bindscope: {text}", markup=False, soft_wrap=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show a spinner during a block, on a terminal only. what: the words beside it."""
    if _ERR.is_terminal:
        with _ERR.status(what):
            yield
    else:
        yield


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def show_analysis(analysis: Analysis, files: Sequence[str]) -> None:
    """A sentence per claim, the reference study's gate, every statistic, and what is missing."""
    shown = analysis.results[analysis.results["value"].notna()]
    for suite in shown["suite"].unique():
        _OUT.print(f"[bold]{escape(str(suite))}[/bold]")
        for row in analysis.sentences[analysis.sentences["suite"] == suite].to_dict("records"):
            _OUT.print(f"{row['claim']}: {row['text']}", markup=False)
        for row in analysis.gate[analysis.gate["suite"] == suite].to_dict("records"):
            _OUT.print(f"Gate of the reference study: {_gate(row)}.", markup=False)
        _OUT.print(_statistics(shown[shown["suite"] == suite]))
    for note in (*analysis.problems, *analysis.notes):
        _OUT.print(f"Note: {note}", markup=False, soft_wrap=True)
    _OUT.print("Intervals are 95%; n, units, clusters, methods and adjusted p (q) are in the files:")
    for file in files:
        _OUT.print(f"  {file}", markup=False, soft_wrap=True)


def _statistics(rows: pd.DataFrame) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("claim", "reading", "value", "interval", "p", "quantity"):
        table.add_column(name, justify="right" if name in ("value", "interval", "p") else "left")
    for row in rows.to_dict("records"):
        interval = "" if pd.isna(row["low"]) else f"{row['low']:+.2f} {row['high']:+.2f}"
        p = "" if pd.isna(row["p"]) else "<.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
        table.add_row(row["claim"], row["reading"], f"{row['value']:+.2f}", interval, p, escape(row["quantity"]))
    return table


def _gate(row: Mapping[Any, Any]) -> str:
    if row["go"] is None or pd.isna(row["go"]):
        return f"undefined; {row['reason']}"
    above = "above" if row["rho_above"] else "not above"
    seen = f"rho {row['rho']:+.3f} ({above} 0.3), {row['quadrant']} pairs of high EB* and low accuracy"
    return f"{'go' if row['go'] else 'no go'}; {seen}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


_SHOWN = {"eb_star": "EB*", "null": "null", "excess": "excess", "accuracy": "accuracy", "margin": "margin"}


def outcome(tables: RunTables, result: Outcome, report: Path) -> None:
    """The table at the end of a run, what failed, and where to look."""
    from bindscope.tables.summary import excluded

    recognition, generation = tables.stored("recognition"), tables.stored("generation")
    summary, binding = tables.summary, tables.own
    columns = _SHOWN if generation.empty else {**_SHOWN, "generation": "generation"}
    for suite, part in summary.groupby("suite", sort=False):
        table = Table(title=escape(str(suite)), box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("step", *columns.values()):
            table.add_column(name, justify="right")
        for row in part.to_dict("records"):
            step = str(row["revision"]) if pd.isna(row["step"]) else f"{int(row['step']):,}"
            table.add_row(escape(step), *[_number(row.get(column)) for column in columns])
        _OUT.print(table)
    measured = binding[binding["eb_star"].notna()]
    terms, prompts = measured["term"].nunique(), measured["prompt"].nunique()
    score = "" if generation.empty else "; generation: rubric score, 0 to 1"
    _OUT.print(
        f"Means over {_count(prompts, 'prompt')} of {_count(terms, 'term')}. null: windows of as many tokens elsewhere "
        f"in the prompts; excess: EB* minus null; margin: nats per token{score}."
    )
    if (summary["excess_n"] < summary["eb_star_n"]).any():
        few = measured.loc[measured["excess"].isna(), "prompt"].nunique()
        reasons = "; ".join(sorted(measured["null_reason"].dropna().unique())[:3])
        _OUT.print(f"null and excess leave out {few} of {prompts} prompts ({reasons}); EB* does not.", markup=False)
    if not recognition.empty:
        _OUT.print(f"Chance accuracy is {float((1 / recognition['choices'].map(len)).mean()):.3f}.")
    gone = excluded(binding)
    if len(gone):
        reasons = ", ".join(f"{n} {reason}" for reason, n in gone["reason"].value_counts().items())
        _OUT.print(f"Prompts without a binding value: {reasons}; the report lists them.")
    counted(result)
    if tables.has_questions:
        answers, shown = tables.store.root / "analysis", f"bindscope analyse {tables.store.root}"
        _OUT.print(f"Claims, published and controlled: {answers}/ ({shown} prints them)", markup=False, soft_wrap=True)
    _OUT.print(f"Report: {report.resolve()}", markup=False, soft_wrap=True)


def counted(result: Outcome) -> None:
    """How many checkpoints were measured, found in the store, and failed, with the reasons."""
    failed = [u for u in result.units if u.status == "failed"]
    found = len(result.units) - len(failed) - result.measured
    counts = [
        f"{n} {what}"
        for n, what in ((result.measured, "measured"), (found, "found in the store"), (len(failed), "failed"))
        if n
    ]
    _OUT.print(f"Checkpoints: {', '.join(counts)}.")
    for unit in failed:
        _OUT.print(f"  {unit.checkpoint.suite}, {unit.checkpoint.label}: {unit.reason}", markup=False, soft_wrap=True)


def compared(page: Path, found: Changes) -> None:
    """Two runs: what was not made alike, and the differences at the last checkpoint that both have."""
    for note in found.notes:
        _OUT.print(f"Note: {note}", markup=False, soft_wrap=True)
    for suite, part in found.checkpoints.groupby("suite", sort=False):
        last = part[part["revision"] == part["revision"].iloc[-1]]
        table = Table(title=escape(f"{suite}, {last['revision'].iloc[0]}"), box=box.SIMPLE_HEAD, title_justify="left")
        for name in ("quantity", "first", "second", "difference", "95% interval", "p", "pairs"):
            table.add_column(name, justify="left" if name == "quantity" else "right")
        for row in last.to_dict("records"):
            interval = "-" if pd.isna(row["low"]) else f"{row['low']:+.3f} {row['high']:+.3f}"
            table.add_row(
                row["quantity"],
                _number(row["first"]),
                _number(row["second"]),
                f"{row['difference']:+.3f}",
                interval,
                chance(row["p"]).removeprefix("p ").removeprefix("= "),
                str(row["n"]),
            )
        _OUT.print(table)
    _OUT.print("difference: first minus second, paired by prompt; interval: jackknife over terms.")
    _OUT.print(f"All checkpoints and terms: {page.resolve()}", markup=False, soft_wrap=True)


def show_terms(loaded: Loaded, terms: Sequence[TermResult]) -> None:
    """Print for each term its tokens, EB* beside the null, and the heads that bind it most."""
    shape = f"{loaded.layers} layers x {loaded.heads} heads, {loaded.dtype}, BOS {loaded.bos}"
    _OUT.print(f"{loaded.ref.suite}, {loaded.ref.label}: {shape}", markup=False)
    for item in terms:
        _OUT.print()
        _OUT.print(f"[bold]{escape(item.term)}[/bold]  " + escape(" | ".join(repr(t)[1:-1] for t in item.tokens)))
        if item.k is None:
            _OUT.print(f"  not measured: {item.reason}", markup=False)
            continue
        _OUT.print(
            f"  EB* {_number(item.eb_star)}   EB*_mass {_number(item.eb_star_mass)}   k {item.k}   best layer "
            f"{item.best_layer}   prompts {item.prompts}"
        )
        null = (
            f"  null {_number(item.null_mean)} ({item.null_n} windows)   excess {_number(item.excess)}   percentile "
            f"{_number(item.percentile)}"
        )
        _OUT.print(null if item.null_mean is not None else f"  null not available: {item.reason}", markup=False)
        for further in item.further.values():
            null = f"null {_number(further.null_mean)}   excess {_number(further.excess)}"
            null += f"   percentile {_number(further.percentile)}"
            _OUT.print(f"  {further.title} {_number(further.value)}   {null}", markup=False, soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("  head", "BSI", "previous-token score", "rank", "a previous-token head?"):
            table.add_column(name, justify="right")
        for head in item.heads:
            table.add_row(
                f"  {head.layer}.{head.head}",
                _number(head.bsi),
                _number(head.previous_token_score),
                str(head.previous_token_rank),
                "yes" if head.is_previous_token else "no",
            )
        _OUT.print(table)
        for text in head_map(item.bsi, _OUT.width, _OUT.encoding):
            _OUT.print(f"  {text}", markup=False, no_wrap=True, overflow="crop")
    _OUT.print(
        "Map: BSI of every head, layers upward, heads to the right; in hundredths where there is room. A shade darker "
        "above 0.10, 0.25, 0.50 and 0.75."
    )
    _OUT.print(
        "Heads are layer.head, from 0. A previous-token head gives more than half of its attention on neutral text "
        "to the token before; rank 1 has the highest such score of all heads. null: windows of k tokens elsewhere "
        "in the same texts; percentile: near 1, the term is bound more than almost all of them."
    )


#: BSI above each of these is one shade darker.
_LIMITS = (0.1, 0.25, 0.5, 0.75)
_SHADES = {True: " \u2591\u2592\u2593\u2588", False: " .:+#"}


def head_map(bsi: Sequence[Sequence[float]], width: int, encoding: str) -> list[str]:
    """A map of all heads in characters, one line per layer, the last layer first.

    bsi: a row per layer, a value per head.
    width: columns of the terminal; values are printed in hundredths beside the shade where there is room for them.
    encoding: of the terminal; plain ASCII is used where it has no shades.
    """
    if not bsi:
        return []
    heads, shades = len(bsi[0]), _SHADES[encoding.lower().replace("-", "") == "utf8"]
    numbers = 8 + 4 * heads <= width
    step = 4 if numbers else 2 if 8 + 2 * heads <= width else 1

    def cell(value: float) -> str:
        shade = shades[sum(value > limit for limit in _LIMITS)]
        return f"{shade}{min(round(100 * value), 99):02d} " if numbers else shade * min(2, step)

    lines = [f"{layer:>4} {''.join(map(cell, row)).rstrip()}" for layer, row in reversed(list(enumerate(bsi)))]
    every = max(1, -(-4 // step))  # so that numbers of heads do not touch
    return [*lines, "     " + "".join(f"{h:<{step * every}}" for h in range(0, heads, every)).rstrip()]


def show_audit(table: pd.DataFrame) -> None:
    """Print how each term is cut inside a sentence, and on a second line on its own where that differs."""
    for name, part in table.groupby("tokenizer", sort=False):
        _OUT.print(escape(str(name)), style="italic", soft_wrap=True)
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("term", "k", "tokens", "ids", "measurable"):
            shown.add_column(column, overflow="fold", no_wrap=column == "k")
        for row in part.to_dict("records"):
            verdict = "yes" if row["valid"] else f"no: {row['reason']}"
            shown.add_row(escape(row["term"]), *_pieces(row, "prompt"), verdict)
            if row["forms_differ"]:
                shown.add_row("  alone", *_pieces(row, "bare"), "")
        _OUT.print(shown)
    _OUT.print("k: tokens of the term inside a sentence, which is what is measured; \u00b7 is a space.")


def show_groups(name: str, counts: pd.DataFrame, warnings: Sequence[str]) -> None:
    """Print how many expressions of each group have k tokens, and which comparisons have no control."""
    _OUT.print(f"{escape(name)}: expressions by number of tokens (k)", style="italic", soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("k", no_wrap=True)
    for k in counts.columns:
        table.add_column(str(k), justify="right", no_wrap=True, min_width=2)
    for group, row in counts.iterrows():
        table.add_row(escape(str(group)), *[str(n) if n else "-" for n in row])
    _OUT.print(table)
    _OUT.print("Groups are compared at equal k only: EB* falls with k by itself.")
    for text in warnings:
        _OUT.print(f"Warning: {text}", markup=False, soft_wrap=True)


def _pieces(row: Mapping[Any, Any], form: str) -> tuple[str, str, str]:
    strings = "|".join(s.replace(" ", "\u00b7") for s in row[f"{form}_strings"])
    return str(row[f"{form}_n"]), escape(strings), " ".join(map(str, row[f"{form}_ids"]))


def show_verification(suite: Suite, verified: VerifiedSuite) -> None:
    """Print a line for every checkpoint of a suite, and its warnings below."""
    prints, faults = {p.ref: p for p in verified.prints}, dict(verified.faults)
    for ref in suite.checkpoints:
        if ref in faults:
            _OUT.print(f"{ref.label}: {faults[ref]}", markup=False, soft_wrap=True)
            continue
        known = prints[ref]
        tensors = f"tensors {known.tensors[:16]}" if known.tensors else "tensors not on this machine"
        commit = f"commit {known.commit[:12]}" if known.commit else "local"
        _OUT.print(f"{ref.label:<16} {known.name}", markup=False, soft_wrap=True)
        _OUT.print(f"    {commit}  files {known.files[:16]}  {tensors}", markup=False, soft_wrap=True)
        for flag in verified.flags:
            if ref in flag.refs:
                _OUT.print(Padding(escape(flag.text), (0, 0, 0, 4)))
    if not verified.flags and not faults:
        _OUT.print(f"All {len(prints)} checkpoints have different weights.")


def show_findings(checks: Sequence[Finding]) -> bool:
    """Print the findings of `doctor.examine`, and tell whether one of them is a fault."""
    marks = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}
    for item in checks:
        _OUT.print(f"{marks[item.state]}  {item.subject}: {item.result}", markup=False, soft_wrap=True)
    return any(item.state == "fault" for item in checks)
