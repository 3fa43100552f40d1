"""What the terminal shows of suites and of plans."""

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


def show_catalogue(suites: Sequence[Suite]) -> None:
    """Print a line for each suite, with its faults and notes below where the suite before has others."""
    _OUT.print(f"{'suite':<25}{'checkpoints':>11}  {'size':>7}  {'tokens seen':<17}where", markup=False)
    before: set[str] = set()
    for suite in suites:
        where = _home(suite.checkpoints[-1]) if suite.checkpoints else "not installed"
        size = short(suite.entry.parameters) if suite.entry else "?"
        line = f"{suite.name:<25}{len(suite.checkpoints):>11}  {size:>7}  {_tokens_seen(suite):<17}"
        if len(line) + len(where) > _OUT.width:
            line = f"{line.rstrip()}\n    "
        _OUT.print(line + where, markup=False, soft_wrap=True)
        notes = dict.fromkeys(_notes(suite))
        for text in notes:
            if text not in before:
                _OUT.print(Padding(escape(text), (0, 0, 0, 4)))
        before = set(notes)
    _OUT.print("`bindscope suites NAME` shows one in full.", markup=False)


def show_suites(suites: Sequence[Suite]) -> None:
    """Print each suite in full, with every checkpoint."""
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


def show_plan(plan: Plan) -> None:
    """Print what an experiment needs: the whole, a line for each suite, and why a value is missing."""
    prompts = ", ".join(f"{n:,} {task}" for task, n in plan.prompts.items())
    checkpoints = sum(c.checkpoints for c in plan.suites)
    _OUT.print(f"[bold]{escape(plan.experiment)}[/bold], {plan.protocol}: {plan.terms} terms; prompts: {prompts}")
    _OUT.print(f"{plan.units:,} units: {checkpoints} checkpoints x {', '.join(plan.tables)}", markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("suite", overflow="fold")
    for name in ("here", "download", "read", "generated", "weights", "batch", "time"):
        table.add_column(name, justify="right")
    missing: dict[str, list[str]] = {}
    for c in plan.suites:
        table.add_row(escape(c.suite), f"{c.at_hand} of {c.checkpoints}", *_amounts(c))
        for reason in c.reasons:
            missing.setdefault(reason, []).append(c.suite)
    _OUT.print(table)
    for reason, suites in missing.items():
        _OUT.print(f"Missing of {', '.join(suites)}: {reason}.", markup=False)
    need = "unknown" if plan.download is None else decimal(plan.download)
    room = "" if plan.download is None or plan.download <= plan.free else "; not all of them fit at a time"
    _OUT.print(f"Disk: {need} to download, {decimal(plan.free)} free in {plan.cache}{room}.", markup=False)
    if plan.seconds is not None:
        where = f"{plan.device}, {plan.dtype}"
        _OUT.print(f"Time: about {duration(plan.seconds)} on this machine ({where}), without downloads.")
    _OUT.print(
        "here: checkpoints that need no download. read, generated: tokens of each checkpoint, the latter at most. "
        "weights, batch: memory, from the shapes of the architecture. time: of all checkpoints, from two prompts "
        "measured on one. ~: from the number of parameters in the catalogue."
    )


def _amounts(c: Cost) -> tuple[str, ...]:
    """Download, tokens read and generated, memory of weights and batch, time; "?" for what is not known."""
    size = "?" if c.download is None else f"{'~' if c.by == 'catalogue' else ''}{decimal(c.download)}"
    read, written = ("?", "?") if c.work is None else (short(c.work.read), short(c.work.written))
    weights, batch = ("?" if n is None else decimal(n) for n in (c.memory.weights, c.memory.batch))
    return size, read, written, weights, batch, "?" if c.seconds is None else duration(c.seconds)


def duration(seconds: float) -> str:
    """A time with two digits, in the largest unit of which there is one or more."""
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


def _tokens_seen(suite: Suite) -> str:
    tokens = [ref.tokens for ref in suite.checkpoints if ref.tokens is not None]
    return f"{short(tokens[0])} to {short(tokens[-1])}" if len(tokens) > 1 else "?"


def short(number: int | None) -> str:
    """A number with three digits and k, M, B or T; "?" for None."""
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
