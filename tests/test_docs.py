"""The pages are complete and right: all columns are documented, and experiments and files that they name exist."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pandas as pd
import pytest

from bindscope import experiment as experiments
from bindscope.cli import main
from bindscope.measures import registry
from bindscope.store import Store

ROOT = Path(__file__).parents[1]
TABLES = [table.name for table in registry.tables()]
PAGE = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, suite_folder: Path) -> Path:
    """A run with every measure."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "s.yaml").write_text(
        f"name: s\nsuites: {suite_folder}\nterms: [skip link, alt text, screen reader]\ncontrols: nonsense\n"
        "measures: [binding, recognition, few_shot, variability, ablation]\nablation: {k: 1, random: 3, alpha: 0.25}\n"
    )
    assert main(["run", str(folder / "s.yaml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.mark.parametrize("table", ["binding", *TABLES])
def test_every_stored_column_is_documented(whole: Path, table: str) -> None:
    """Where it is described, or in front of all tables; a column of `binding` may have the name of its table before."""
    frame = Store(whole, create=False).read(table)
    assert not frame.empty
    stored = PAGE[: PAGE.index("## Computed")]
    sections = {part.split("`")[1]: part for part in stored.split("\n### ")[1:]}
    described = {name: set(re.findall(r"^\| `(\w+)` \|", part, re.M)) for name, part in sections.items()}
    front = set(re.findall(r"`(\w+)`", stored[: stored.index("\n### ")]))
    known = described.get(table) or {
        column for name, columns in described.items() for own in columns for column in (own, f"{name}_{own}")
    }
    assert set(frame.columns) <= known | front, set(frame.columns) - known - front


def test_the_page_of_tables_is_what_tables_declare() -> None:
    made, sections = (runpy.run_path(str(ROOT / "docs" / f"{name}.py")) for name in ("tables", "sections"))
    for name, text in made["sections"]().items():
        assert sections["section"]("tables", name) == text.strip(), "stale: python docs/tables.py"


def test_every_stored_column_has_a_type_of_its_own(whole: Path, tmp_path: Path) -> None:
    """What `bindscope export` writes of a run with every measure is what the store holds."""
    assert main(["export", str(whole), "--to", "parquet", "--out", str(tmp_path / "tables")]) == 0
    for table in TABLES:
        exported = pd.read_parquet(tmp_path / "tables" / f"{table}.parquet")
        assert exported.to_json() == Store(whole, create=False).read(table).to_json()


def test_every_computed_table_is_documented(whole: Path) -> None:
    files = {path.stem for path in (whole / "analysis").glob("*.csv")}
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE[PAGE.index("## Computed") :], re.M))
    assert files == rows
    for path in (whole / "analysis").glob("*.csv"):
        assert len(pd.read_csv(path).columns) > 1


def test_the_report_answers_the_claims(whole: Path) -> None:
    page = (whole / "report.html").read_text()
    for part in (
        "What the study",
        "C3: What does an exemplar unlock?",
        "C5: Do the binding heads matter?",
        "Heads removed",
    ):
        assert part in page


def test_experiments_and_files_that_the_pages_name_exist() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    links = runs = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"bindscope run ([a-z0-9-]+) ", text):
            assert name in experiments.names(), (page.name, name)
            runs += 1
        for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
            assert (page.parent / link).exists(), (page.name, link)
            links += 1
    assert runs > 3
    assert links > 20
