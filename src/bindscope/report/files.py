"""A report on disk: the page, its figures and tables as files, the experiment to run again, and the paper."""

from __future__ import annotations

from pathlib import Path

from bindscope.charts.figure import pdf, png
from bindscope.charts.table import latex, markdown
from bindscope.claims.analysis import Analysis
from bindscope.report.content import Content, compose
from bindscope.report.facts import experiment_file
from bindscope.report.html import write_page
from bindscope.report.paper import write_paper
from bindscope.store import Store
from bindscope.tables.run import RunTables


def write_report(run: RunTables, analysis: Analysis | None, with_paper: bool = False) -> list[Path]:
    """Draw the report of a run into its folder: report.html, figures/, tables/, experiment.yaml, and paper.pdf where it
    is asked for. Returns the path of the page, and behind it that of the paper.

    analysis: of the same run; None for one that asks no recognition questions. Raises StoreError where the results
    cannot be read or the report cannot be written.
    """
    store, content = run.store, compose(run, analysis)
    _write_parts(store, content)
    pages = [write_page(store, content)]
    return [*pages, write_paper(store, content)] if with_paper else pages


def _write_parts(store: Store, content: Content) -> None:
    """figures/: SVG, PNG, PDF; tables/: CSV of both, and of tables Markdown and LaTeX. What an earlier report left
    there is deleted, so that no file holds other numbers than the page."""
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
    store.write_text("experiment.yaml", experiment_file(content.found.tables.run))
