"""A report on disk: the page, its figures and tables as files, the study to run again, and the paper if asked for."""

from __future__ import annotations

from pathlib import Path

from bindscope.report import html, paper
from bindscope.report.content import Content, compose
from bindscope.report.facts import experiment_file
from bindscope.report.figure import pdf, png
from bindscope.report.table import latex, markdown
from bindscope.stats.analysis import Analysis
from bindscope.store import Store


def write(store: Store, analysis: Analysis | None, with_paper: bool = False) -> list[Path]:
    """Draw the report of a results folder: report.html (the first path returned), figures/, tables/,
    experiment.yaml, and paper.pdf where asked for (the last).

    analysis: of the same folder, None for a run that asks no recognition questions. Raises StoreError where the results
    cannot be read or the report cannot be written.
    """
    content = compose(store, analysis)
    _beside(store, content)
    pages = [html.write(store, content)]
    return [*pages, paper.write(store, content)] if with_paper else pages


def _beside(store: Store, content: Content) -> None:
    """figures/: SVG, PNG, PDF; tables/: CSV of both, and of tables Markdown and LaTeX. What an earlier report left
    there is taken away, so that no file tells of other numbers than the page."""
    made = set[Path]()
    for figure in content.figures:
        document = content.documents[figure.name]
        made.add(store.write_text(f"figures/{figure.name}.svg", document))
        made.add(store.write_bytes(f"figures/{figure.name}.png", png(document)))
        made.add(store.write_bytes(f"figures/{figure.name}.pdf", pdf(document)))
    for name, text in content.csv().items():
        made.add(store.write_text(f"tables/{name}.csv", text))
    for table in content.tables:
        made.add(store.write_text(f"tables/{table.name}.md", markdown(table)))
        made.add(store.write_text(f"tables/{table.name}.tex", latex(table)))
    for old in {path for folder in ("figures", "tables") for path in (store.root / folder).glob("*.*")} - made:
        old.unlink()
    store.write_text("experiment.yaml", experiment_file(content.found.run))
