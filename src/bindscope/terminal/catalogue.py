"""What the terminal shows of suites and of plans: what there is to measure, and what it would cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from bindscope.checkpoints.suites import Suite
from bindscope.records import CheckpointRef

if TYPE_CHECKING:
    from bindscope.execute.plan import Cost, Plan

_OUT = Console(highlight=False)


def catalogue(suites: Sequence[Suite]) -> None:
    """A line each, with faults and notes below where they are not those of the line above."""
    _OUT.print(f"{'suite':<25}{'checkpoints':>11}  {'parameters':>10}  {'tokens seen':<18}where", markup=False)
    above: set[str] = set()
    for suite in suites:
        where = _home(suite.checkpoints[-1]) if suite.checkpoints else "not installed"
        size = short(suite.entry.parameters) if suite.entry else "?"
        line = f"{suite.name:<25}{len(suite.checkpoints):>11}  {size:>10}  {_seen(suite):<18}{where}"
        _OUT.print(line, markup=False, soft_wrap=True)
        notes = dict.fromkeys(_notes(suite))
        for text in notes:
            if text not in above:
                _OUT.print(Padding(escape(text), (0, 0, 0, 4)))
        above = set(notes)
    _OUT.print("`bindscope suites NAME` shows one in full.", markup=False)


def page(suites: Sequence[Suite]) -> None:
    """Each suite in full, with every revision."""
    for suite in suites:
        _OUT.print(f"[bold]{escape(suite.name)}[/bold]")
        facts = Table.grid(padding=(0, 2))
        for what, value in _facts(suite):
            facts.add_row(f"  {what}", escape(value))
        _OUT.print(facts)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("  revision")
        table.add_column("step", justify="right")
        table.add_column("tokens", justify="right")
        for ref in suite.checkpoints:
            step = "?" if ref.step is None else f"{ref.step:,}"
            table.add_row(escape(f"  {_label(ref)}"), step, short(ref.tokens))
        _OUT.print(table)


def cost(plan: Plan) -> None:
    """What a study would cost: the whole, a line for each suite, and why something is missing."""
    prompts = ", ".join(f"{n:,} {what}" for what, n in plan.prompts.items())
    checkpoints = sum(c.checkpoints for c in plan.suites)
    _OUT.print(f"[bold]{escape(plan.experiment)}[/bold], {plan.protocol}: {plan.terms} terms; prompts: {prompts}")
    _OUT.print(f"{plan.units:,} units: {checkpoints} checkpoints x {', '.join(plan.tables)}\n", markup=False)
    line = "{:<25}{:>11}{:>6}{:>10}{:>9}{:>9}{:>18}{:>9}".format
    _OUT.print(
        line("suite", "checkpoints", "here", "download", "read", "written", "memory", "time"),
        markup=False,
        soft_wrap=True,
    )
    why: dict[str, list[str]] = {}
    for c in plan.suites:
        _OUT.print(line(c.suite, c.checkpoints, c.at_hand, *_amounts(c)), markup=False, soft_wrap=True)
        for reason in c.reasons:
            why.setdefault(reason, []).append(c.suite)
    for reason, suites in why.items():
        _OUT.print(f"Missing of {', '.join(suites)}: {reason}.", markup=False, soft_wrap=True)
    need = "unknown" if plan.download is None else decimal(plan.download)
    room = "" if plan.download is None or plan.download <= plan.free else "; not all of them at a time"
    _OUT.print(
        f"\nDisk: {need} to download, {decimal(plan.free)} free in {plan.cache}{room}.", markup=False, soft_wrap=True
    )
    if plan.seconds is not None:
        where = f"{plan.device}, {plan.dtype}"
        _OUT.print(f"Time: about {duration(plan.seconds)} on this machine ({where}), downloads not counted.")
    _OUT.print(
        "read, written: tokens of each checkpoint, written ones at most. memory: weights + a batch, by their shapes. "
        "time: of all checkpoints, from two prompts timed on one. ~: the catalogue's parameters times their bytes."
    )


def _amounts(c: Cost) -> tuple[str, str, str, str, str]:
    size = "?" if c.download is None else f"{'~' if c.by == 'catalogue' else ''}{decimal(c.download)}"
    read, written = ("?", "?") if c.work is None else (short(c.work.read), short(c.work.written))
    held = " + ".join("?" if n is None else decimal(n) for n in (c.memory.weights, c.memory.batch))
    return size, read, written, held, "?" if c.seconds is None else duration(c.seconds)


def duration(seconds: float) -> str:
    """Two digits, in the unit that fits."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def _facts(suite: Suite) -> Iterator[tuple[str, str]]:
    row = suite.entry
    if suite.checkpoints:
        first = suite.checkpoints[0]
        yield (
            "weights",
            first.repo if len({ref.repo for ref in suite.checkpoints}) == 1 else str(Path(first.repo).parent),
        )
        yield "tokenizer", first.tokenizer or "with the weights"
    yield "BOS", {"default": "what the tokenizer adds"}.get(suite.bos, suite.bos)
    if row is None:
        return
    if row.parameters:
        stored = f", stored as {row.dtype}" if row.dtype else ""
        yield "parameters", f"{row.parameters:,}{stored}"
    shown = {"licence": row.licence, "attention": row.attention, "faults": row.faults, "note": row.note}
    yield from ((what, text) for what, text in shown.items() if text)
    if not suite.checkpoints and row.install:
        yield "install", row.install


def _notes(suite: Suite) -> Iterator[str]:
    if suite.entry is None:
        return
    if not suite.checkpoints and suite.entry.install:
        yield f"to install it: {suite.entry.install}"
    if suite.entry.faults:
        yield f"faults: {suite.entry.faults}"
    if suite.entry.note:
        yield suite.entry.note


def _seen(suite: Suite) -> str:
    tokens = [ref.tokens for ref in suite.checkpoints if ref.tokens is not None]
    return f"{short(tokens[0])} to {short(tokens[-1])}" if len(tokens) > 1 else "?"


def short(number: int | None) -> str:
    """Three digits and a unit of thousands; "?" for what is not known."""
    if number is None:
        return "?"
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _label(ref: CheckpointRef) -> str:
    return ref.gguf or ref.revision or (Path(ref.repo).name if Path(ref.repo).is_dir() else "main")


def _home(ref: CheckpointRef) -> str:
    return "on this machine" if Path(ref.repo).exists() else ref.repo
