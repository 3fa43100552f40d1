"""A table of formatted text, and how to write it in Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as text, with its numbers.

    name: name of its files
    title: what it shows
    head: names of the columns
    rows: cells as text
    data: the numbers
    claim: id of the claim that it belongs to, "" for none
    note: how to read it
    keys: number of first cells that name the row
    """

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: pd.DataFrame
    claim: str = ""
    note: str = ""
    keys: int = 1


def markdown(table: Table) -> str:
    """The table for a Markdown page."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    body = "\n".join(
        "| " + " | ".join(_md(cell) if i != 1 else cell for cell in row) + " |" for i, row in enumerate(lines)
    )
    return f"**{_md(table.title)}.** {_md(table.note)}\n\n{body}\n"


def _md(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escaped)


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u2212": "$-$",
    "\u00d7": r"$\times$",
    "<": "$<$",
    ">": "$>$",
}


def _tex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)


def latex(table: Table) -> str:
    """The table for a LaTeX document (booktabs)."""

    def row(cells: Iterable[str]) -> str:
        return " & ".join(_tex(cell) for cell in cells) + r" \\"

    columns = "l" * table.keys + "r" * (len(table.head) - table.keys)
    return "\n".join(
        (
            r"\begin{table}",
            rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            row(table.head),
            r"\midrule",
            *(row(r) for r in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        )
    )
