"""A results folder -> paper.pdf: methods, results with vector figures, raw tables, typeset by typst without a network.

Texts reach typst as strings of a JSON file: none of them is read as markup.
"""

from __future__ import annotations

import json
import re
import tempfile
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bindscope.charts.figure import Figure, pdf
from bindscope.charts.table import Table
from bindscope.charts.text import line
from bindscope.errors import StoreError
from bindscope.report.content import Content
from bindscope.report.facts import facts, failed
from bindscope.store import RunFile, Store

#: What a figure may fill of a page, in points.
_WIDTH, _HEIGHT = 458.0, 560.0
#: Points of a unit of an SVG document.
_POINT = 0.75
_PARTS = ("paper.typ", "references.yml")


def write_paper(store: Store, content: Content) -> Path:
    """Typeset the paper and return its path. Raises StoreError where it cannot be written."""
    import typst  # only the paper needs it

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in _PARTS:
            (root / name).write_text(
                resources.files("bindscope.report").joinpath(f"templates/{name}").read_text("utf-8"), "utf-8"
            )
        for figure in content.figures:
            (root / f"{figure.name}.pdf").write_bytes(pdf(content.documents[figure.name]))
        (root / "data.json").write_text(json.dumps(_data(store, content), ensure_ascii=False), "utf-8")
        try:
            made = typst.compile(str(root / "paper.typ"), root=folder, package_path=folder, package_cache_path=folder)
        except typst.TypstError as error:
            raise StoreError(f"typst cannot set the paper: {error.message}") from error
    return store.write_bytes("paper.pdf", made)


def _data(store: Store, content: Content) -> dict[str, Any]:
    run = content.found.tables.run
    known = facts(store, run)
    drawn = {figure.name: _drawing(figure, content.documents[figure.name]) for figure in content.figures}
    rows = [
        [line(r["name"]), line(r["commit"]), line(r["fingerprint"]), line(r["check"])] for r in known["checkpoints"]
    ]
    title = "Checkpoints as measured"
    note = "A fingerprint is a SHA-256 over weights, config and tokenizer files, here its first 16 digits."
    listed = Table(
        name="measured",
        title=title,
        note=note,
        head=["Checkpoint", "Commit", "Fingerprint", "Self-check"],
        rows=rows,
        data=content.found.tables.summary,
        keys=4,
    )
    given = dict(known["facts"])
    return {
        "title": f"{line(run.experiment['name'])}: when are terms bound, when are they known?",
        "about": line(run.experiment.get("about") or ""),
        "made": f"Made by bindscope {version('bindscope')} from stored results.",
        "asked": content.asked,
        "answer": content.answer,
        "measures": ", ".join(run.experiment.get("measures") or []),
        "format": "Format of the questions: "
        f"{given.get('Format', 'it differs between checkpoints, see the run facts')}.",
        "many": content.many,
        "summary": _table(_summary(content)),
        "checkpoints": _table(listed),
        "claims": [
            {
                "heading": f"{card.name}: {card.question}",
                "limit": card.limit,
                "figures": [drawn[f.name] for f in card.figures],
                "tables": [_table(t) for t in card.tables],
                "answers": [{"suite": a.suite, "word": a.word, "detail": a.detail} for a in card.answers],
            }
            for card in content.cards
        ],
        "training": [drawn[f.name] for f in (*content.lead, *content.training)],
        "heads": [drawn[f.name] for f in content.heads],
        "measures_drawn": [drawn[f.name] for f in content.measures],
        "spread": [drawn[f.name] for f in content.spread],
        "facts": [[line(name), line(value)] for name, value in known["facts"]],
        "other": [drawn[f.name] for f in content.other_figures],
        "left": [*content.problems, *_unmeasured(run)],
        "appendix": [
            _table(t) for t in (*content.checkpoints, *content.further, *(c.every for c in content.cards if c.every))
        ],
    }


def _unmeasured(run: RunFile) -> list[str]:
    return [f"Not measured: {line(unit['name'])}: {line(unit['reason'])}" for unit in failed(run)]


def _summary(content: Content) -> Table:
    many = content.many
    rows = [
        [card.name, card.question, *([a.suite] if many else []), f"{a.word}. {a.text}"]
        for card in content.cards
        for a in card.answers
    ]
    head = ["", "Question", *(["Suite"] if many else []), "Answer"]
    return Table(
        name="summary",
        title="What the claims become",
        note="As published, and controlled for a known confound.",
        head=head,
        rows=rows,
        data=content.found.tables.summary,
        keys=4,
    )


def _drawing(figure: Figure, document: str) -> dict[str, Any]:
    wide, high = (float(v) * _POINT for v in re.findall(r'<svg[^>]* width="([\d.]+)" height="([\d.]+)"', document)[0])
    width = wide * min(1.0, _WIDTH / wide, _HEIGHT / high)
    return {
        "file": f"{figure.name}.pdf",
        "width": width,
        "title": line(figure.title),
        "note": line(figure.note),
        "text": line(figure.text),
    }


def _table(table: Table) -> dict[str, Any]:
    """As typst takes it; a column is as wide as the square root of its longest texts, which wraps long ones."""
    rows = [[line(cell) for cell in row] for row in table.rows]
    columns = list(zip(table.head, *rows, strict=True))
    widths = [max(2.0, sorted(len(cell) for cell in column)[-1] ** 0.62) for column in columns]
    texts = (
        [i < table.keys or max(len(cell) for cell in column[1:]) > 40 for i, column in enumerate(columns)]
        if rows
        else []
    )
    return {
        "title": line(table.title),
        "note": line(table.note),
        "head": list(table.head),
        "rows": rows,
        "widths": widths,
        "align": ["l" if text else "r" for text in texts] or ["l"] * len(widths),
    }
