"""Prints a replication, for a width of 80 columns, and writes it as CSV files or JSON."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bindscope.errors import RequestError
from bindscope.replicate.replication import Replication

_MARK = {"match": "match", "rounded twice": "rounded twice", "mismatch": "MISMATCH", "not computable": "not computable"}


def to_csv(replication: Replication, folder: Path) -> list[Path]:
    """Write every table, and what each shows, as CSV files and return their paths.

    replication: the tables
    folder: where the files are written
    Raises RequestError where the folder cannot be written.
    """
    tables = {f.name: getattr(replication, f.name) for f in fields(replication) if f.name != "shows"}
    tables["shows"] = pd.DataFrame(replication.shows.items(), columns=["table", "shows"])
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in tables.items():
            paths.append(folder / f"{name}.csv")
            table.to_csv(paths[-1], index=False)
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror or error}") from error
    return paths


def to_dict(replication: Replication) -> dict[str, Any]:
    """The replication as plain values for JSON: every table as a list of records, missing values as null."""
    out: dict[str, Any] = {"shows": replication.shows}
    for field in fields(replication):
        table = getattr(replication, field.name)
        if isinstance(table, pd.DataFrame):
            out[field.name] = table.astype(object).where(table.notna(), None).to_dict("records")
    return out


def show(replication: Replication, console: Console | None = None) -> None:
    """Print the comparison with the paper, then the controlled statistics, then what was skipped.

    replication: the tables
    console: where they are printed, None for standard output
    """
    out = console or Console(highlight=False)
    _figures(out, replication.figures)
    _checks(out, replication.checks)
    _coupling(out, replication)
    _length(out, replication)
    _answers(out, replication)
    _spans(out, replication)
    _units(out, replication)
    _skipped(out, replication.skipped)


def _table(out: Console, title: str, columns: list[str], rows: list[list[Any]], left: int = 1) -> None:
    """Print a table; the first `left` columns are text, the others numbers."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*[escape(_text(cell)) for cell in row])
    out.print(table)


def _text(cell: Any) -> str:
    return "-" if cell is None or (not isinstance(cell, str) and pd.isna(cell)) else str(cell)


def _number(value: Any, digits: int = 2, sign: bool = False) -> str:
    return "-" if value is None or pd.isna(value) else f"{value:{'+' if sign else ''}.{digits}f}"


def _p(value: Any) -> str:
    return "<0.0001" if not pd.isna(value) and value < 1e-4 else _number(value, 4)


def _say(out: Console, text: str) -> None:
    out.print(text, markup=False)
    out.print()


def _figures(out: Console, figures: pd.DataFrame) -> None:
    rows = []
    for quantity, part in figures.groupby("quantity", sort=False):
        counts = part["verdict"].value_counts()
        rows.append([quantity, *[counts.get(name, 0) or "-" for name in _MARK]])
    total = figures["verdict"].value_counts()
    rows.append(["all", *[total.get(name, 0) for name in _MARK]])
    _table(out, "The paper's figures, computed again at the printed digits", ["quantity", *_MARK.values()], rows)
    differ = figures[figures["verdict"].isin(["rounded twice", "mismatch"])]
    for row in differ.to_dict("records"):
        digits = int(row["digits"])
        _say(
            out,
            f"{_MARK[row['verdict']]}: {row['quantity']}, {row['name']}: "
            f"paper {row['published']:.{digits}f} ({row['where']}), "
            f"recomputed {row['recomputed']:.{digits + 3}f}; {row['reason']}",
        )
    lost = figures[figures["verdict"] == "not computable"]
    for reason, part in lost.groupby("reason", sort=False):
        names = ", ".join(f"{row['quantity']} {row['name']}" for row in part.head(3).to_dict("records"))
        more = f" and {len(part) - 3} more" if len(part) > 3 else ""
        _say(out, f"Not computable, {reason}: {names}{more}")


def _checks(out: Console, checks: pd.DataFrame) -> None:
    rows = [
        [row["check"], f"{row['agree']} of {row['n']}" if row["n"] else "no records", _MARK[row["verdict"]]]
        for row in checks.to_dict("records")
    ]
    _table(out, "What must hold inside the data", ["check", "holds", "verdict"], rows)
    for row in checks.to_dict("records"):
        if row["detail"] and row["n"]:
            _say(out, f"{row['check']}: {row['detail']}")


def _coupling(out: Console, replication: Replication) -> None:
    for (source, size), part in replication.coupling.groupby(["source", "size"], sort=False):
        rows = [
            [
                row["quantity"],
                row["reading"],
                _number(row["value"], 3, True),
                "-" if pd.isna(row["low"]) else f"{row['low']:+.2f} to {row['high']:+.2f}",
                _p(row["p"]),
                row["n"],
                "-" if pd.isna(row["clusters"]) else int(row["clusters"]),
            ]
            for row in part.to_dict("records")
        ]
        title = f"Spearman(EB*, score), {source}, {size}"
        _table(out, title, ["", "reading", "rho", "interval", "p", "n", "terms"], rows, left=2)
        for row in part[part["reason"].notna()].to_dict("records"):
            _say(out, f"{row['quantity']} ({row['reading']}): {row['reason']}")
    _say(
        out,
        "Interval: 95%, redraws whole terms. Within checkpoints: each value less its checkpoint's mean. "
        + replication.shows["coupling"],
    )


def _length(out: Console, replication: Replication) -> None:
    rows = [
        [
            f"{row['size']} {row['checkpoint']}",
            row["terms"],
            row["k"],
            _number(row["rho"], 3, True),
            _number(row["two_token"]),
            _number(row["real_two_token"]),
        ]
        for row in replication.length.to_dict("records")
    ]
    columns = ["controls of", "terms", "tokens", "rho(EB*, tokens)", "k=2", "real terms, k=2"]
    if rows:
        _table(out, "EB* and the length of the term", columns, rows)
    for row in replication.length.to_dict("records"):
        _say(out, f"{row['size']} {row['checkpoint']}: {row['groups']}")
    if len(replication.constants):
        for _, part in replication.constants.groupby(["source", "size", "checkpoint", "n_term_tokens"]):
            one = part.iloc[0]
            place = f"{len(part)} of {one['source']}, {one['size']} {one['checkpoint']}"
            _say(out, f"{place}: EB* is the constant {one['constant']:.6f} of k = {one['n_term_tokens']}")
    _say(out, replication.shows["length"])


def _answers(out: Console, replication: Replication) -> None:
    wanted = replication.answers[replication.answers["checkpoint"].isin(["all", "step0"])]
    rows = [
        [
            f"{row['set']} {row['size']}, {row['checkpoint']}",
            row["items"],
            row["gold"],
            *[row[letter] for letter in "ABCD"],
            _number(row["accuracy"]),
            _number(row["guesser"]),
        ]
        for row in wanted.to_dict("records")
    ]
    columns = ["prompts, checkpoint", "items", "gold", "A", "B", "C", "D", "accuracy", "always A"]
    if rows:
        _table(out, "Where the answer stands, and which option is predicted", columns, rows)
    _say(out, replication.shows["answers"])


def _spans(out: Console, replication: Replication) -> None:
    rows = []
    for row in replication.spans.to_dict("records"):
        verdict = "not compared" if row["agree"] is None else "agree" if row["agree"] else "WRONG TOKENS"
        place = f"{row['published']} {row['published_text']}"
        rows.append(
            [
                f"{row['term']} {row['prompt_id']}",
                place,
                f"{row['located']} {row['located_text']}",
                verdict,
                row["reason"],
            ]
        )
    if rows:
        _table(
            out, "Tokens of the published spans (BOS is 0)", ["prompt", "published", "term", "", "why"], rows, left=5
        )
    _say(out, replication.shows["spans"])


def _units(out: Console, replication: Replication) -> None:
    rows = [
        [
            row["statistic"],
            *[
                _text(row[c]) if pd.isna(row[c]) else int(row[c])
                for c in ("n", "terms", "prompts", "checkpoints", "runs")
            ],
            _p(row["p"]),
        ]
        for row in replication.units.to_dict("records")
    ]
    columns = ["statistic", "n", "terms", "prompts", "checkpoints", "runs", "p"]
    if rows:
        _table(out, "Records and independent units", columns, rows)
    for row in replication.units[replication.units["statistic"].str.contains("ablation")].to_dict("records"):
        _say(out, f"{row['statistic']}: {row['note']}")
    _say(out, replication.shows["units"])


def _skipped(out: Console, skipped: pd.DataFrame) -> None:
    if skipped.empty:
        _say(out, "Every file gave rows.")
        return
    rows = skipped[["kind", "file", "reason"]].values.tolist()
    _table(out, "Files, records and checkpoints that gave no rows", ["kind", "file", "reason"], rows, left=3)
