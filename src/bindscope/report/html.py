"""What a report says -> report.html: one file, no request leaves it, every text escaped."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bindscope.charts.figure import Figure, inline
from bindscope.charts.table import Table
from bindscope.charts.text import line, number, plain
from bindscope.report.content import Content
from bindscope.report.explorer import explorer, packed
from bindscope.report.facts import facts, failed, missing
from bindscope.store import Store
from bindscope.tables.summary import excluded, without_null

#: Bytes of a page, and what the explorer gets of them at least, however much figures and tables take.
_LIMIT, _LEAST = 4_700_000, 400_000
#: Where the data of explorer and downloads go, when the size of everything else is known.
_HOLE = "(data)"


def _shown(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


_PAGES = Environment(
    loader=PackageLoader("bindscope.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_shown,
)


def render(template: str, **values: Any) -> str:
    """A page with the style sheet and the program of every page; only these two may run in it."""
    style, script = _part("page.css"), _part("page.js")
    return _PAGES.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=version("bindscope"),
        **values,
    )


def write_page(store: Store, content: Content) -> Path:
    """Write report.html and return its path. Raises StoreError."""
    tables = content.found.tables
    binding, recognition = tables.own, tables.stored("recognition")
    page = render(
        "report.html.j2",
        experiment=tables.run.experiment,
        content=content,
        contents=_contents(content),
        missing=missing(tables.run),
        units=len(tables.run.units),
        drawing=lambda figure: Markup(inline(content.documents[figure.name], figure.name)),  # parsed, escaped again
        numbers=numbers_of,
        explorable="tokens" in binding,
        data=_HOLE,
        tokens=_tokens(binding),
        rotated="rotation" in recognition and bool((recognition["rotation"] > 0).any()),
        failed=failed(tables.run),
        excluded=excluded(binding).to_dict("records") if not binding.empty else [],
        bare=without_null(binding).to_dict("records") if not binding.empty else [],
        **facts(store, tables.run),
    )
    before, _, behind = page.rpartition(_HOLE)
    csv = content.csv()
    explored = explorer(tables, max(_LEAST, _LIMIT - len(page.encode()) - len(packed(csv))))
    return store.write_text("report.html", before + packed({"csv": csv, "explorer": explored}) + behind)


def _part(name: str) -> str:
    return resources.files("bindscope.report").joinpath(f"templates/{name}").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _contents(content: Content) -> list[tuple[str, str]]:
    """Anchor and name of every section."""
    out = [("short", "In short"), ("training", "Over training")]
    out += [(f"claim-{card.claim}", f"{card.name}: {card.question}") for card in content.cards]
    out += [("heads", "Heads")] if content.heads else []
    out += [("measures", "Further measures")] if content.measures else []
    out += [("spread", "Between runs")] if content.spread else []
    out += [("other", "Further figures")] if content.other_figures else []
    ends = [
        ("explorer", "Explore the prompts"),
        ("tables", "Further tables"),
        ("reading", "How to read this"),
        ("facts", "Run facts"),
    ]
    return out + ends


def numbers_of(figure: Figure) -> Table:
    """The data of a figure as a table."""
    data = figure.data
    keys = next((i for i, kind in enumerate(data.dtypes) if kind.kind != "O"), len(data.columns))
    head = [str(name).replace("_", " ") for name in data]
    rows = [[_cell(value) for value in row] for row in data.itertuples(index=False)]
    return Table(
        name=figure.name,
        claim=figure.claim,
        title=figure.title,
        head=head,
        rows=rows,
        data=data,
        keys=max(1, min(keys, 3)),
    )


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return line(value)
    if value is None or pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value, 3 if isinstance(value, float) and not float(value).is_integer() else 0)


def _tokens(binding: pd.DataFrame) -> str:
    """How many prompts have a term of k tokens, by suite: EB* falls with k."""
    if binding.empty:
        return ""
    first = binding[binding["k"].notna()].drop_duplicates(["suite", "prompt"]).astype({"k": int})
    return "; ".join(
        f"{suite}: " + ", ".join(f"{n} of {k} tokens" for k, n in part["k"].value_counts().sort_index().items())
        for suite, part in first.groupby("suite", sort=False)
    )
