"""What a report leaves on disk: figures, tables, the study to run again, the paper, and the comparison of two runs."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from bindscope import experiment as experiments
from bindscope.charts.table import Table, latex, markdown
from bindscope.charts.text import chance, plain, span
from bindscope.claims.analysis import answered
from bindscope.claims.decoupling import halves
from bindscope.claims.registry import built_in
from bindscope.cli import main
from bindscope.records import Provenance
from bindscope.report.comparison import write_comparison
from bindscope.report.files import write_report
from bindscope.schema import PROMPTS, Measurement
from bindscope.store import Store
from bindscope.tables.ablation import draws, effects
from bindscope.tables.changes import changes
from bindscope.tables.heads import by_head
from bindscope.tables.observations import observations
from bindscope.tables.run import RunTables
from bindscope.tables.tokens import cuts
from bindscope.terminal.results import head_map
from stores import Invention, analysed

MARK = " #let x = 1 $a_b$ <lab> \\ @ref [a] *b* `c` | & % ~ ^ { } \u202e\u0007 \u05e9\u05dc \U0001f600"


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A reported run with every figure, hostile to Markdown, LaTeX and typst in every field."""
    store = Invention(tmp_path_factory.mktemp("report") / "run", suites=2, steps=6, terms=3, mark=MARK).store
    store.write_text("figures/gone.svg", "of an earlier report")
    write_report(RunTables(store), analysed(store), with_paper=True)
    return store


def test_every_figure_in_every_form_and_every_table(reported: Store) -> None:
    page = (reported.root / "report.html").read_text(encoding="utf-8")
    figures = {path.stem for path in (reported.root / "figures").glob("*.svg")}
    shown = set(re.findall(r'<div class="scroll"[^>]*id="([\w-]+)-drawing"', page))
    assert figures == shown  # what an earlier report left is gone
    assert {"emergence-log", "heads", "terms-1", "validity", "controls-1", "leads", "onset-1", "layers", "exemplars",
            "early-late", "decoupling", "ablation-1", "dose-1", "prompts-1", "spread", "runs"} <= figures  # fmt: skip
    for name in figures:
        assert (reported.root / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (reported.root / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_csv(reported.root / "tables" / f"{name}.csv")) > 0
    for path in (reported.root / "tables").glob("*.md"):
        assert path.with_suffix(".tex").exists()
        assert path.with_suffix(".csv").exists()
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in path.read_text().splitlines() if row.startswith("|")}
        assert len(widths) == 1, path


def test_the_paper_is_a_tagged_pdf_of_its_texts(reported: Store) -> None:
    made = (reported.root / "paper.pdf").read_bytes()
    assert made.startswith(b"%PDF")
    assert b"/StructTreeRoot" in made
    assert b"/Marked true" in made


def test_markdown_and_latex_hold_any_text() -> None:
    table = Table(
        name="t",
        title="A_b",
        note="50% & more",
        head=["Name", "Value"],
        rows=[["a|b*c_d<e>", "\u22120.5"]],
        data=pd.DataFrame(),
    )
    assert "| a\\|b\\*c\\_d&lt;e&gt; | \u22120.5 |" in markdown(table)
    text = latex(table)
    assert r"\caption{A\_b. 50\% \& more}" in text
    assert r"a|b*c\_d$<$e$>$ & $-$0.5 \\" in text


def test_texts_for_people() -> None:
    assert plain("a\u202eb\x07\n") == "a\u27e8U+202E\u27e9b\u27e8U+0007\u27e9\n"
    assert span(None, None) == ""
    assert span(-0.1234, 0.5) == "[\u22120.123,\u00a00.500]"
    assert [chance(p) for p in (None, 0.0004, 0.04)] == ["", "p < 0.001", "p = 0.040"]


def test_the_study_file_of_a_report_asks_the_same(tiny_run: Path) -> None:
    again = experiments.load(str(tiny_run / "experiment.yaml"))
    assert again.model_dump(mode="json") == Store(tiny_run, create=False).read_run().experiment


def test_one_checkpoint_without_more_draws_no_empty_chart(tmp_path: Path) -> None:
    store = Invention(tmp_path / "one", steps=1, terms=3).store
    page = write_report(RunTables(store), analysed(store))[0].read_text(encoding="utf-8")
    figures = {path.stem for path in (tmp_path / "one" / "figures").glob("*.svg")}
    assert figures.isdisjoint(
        {"emergence-log", "runs", "spread", "layers", "decoupling", "early-late", "onset-1", "leads"}
    )
    assert {"heads", "prompts-1", "ablation-1"} <= figures
    assert "nothing to draw over training" in page
    assert page.count("These data cannot say") >= 2


@pytest.mark.slow
def test_a_large_run_stays_below_five_megabytes(tmp_path: Path) -> None:
    """Three models of 32 x 32 heads, 8 checkpoints, 41 terms, 451 prompts and as many carriers."""
    store = Invention(tmp_path / "large", suites=3, steps=8, terms=41, layers=32, heads=32, sets=199).store
    page = write_report(RunTables(store), analysed(store))[0]
    assert page.stat().st_size < 5_000_000


def test_stored_heads_and_tokens_summed_by_hand(tmp_path: Path) -> None:
    store = Invention(tmp_path / "run", steps=1, terms=3).store
    binding = store.read("binding")
    own = binding[binding["task"] != "carrier"]
    table = by_head(binding, store.read("previous_token"))
    mean = np.mean(np.stack(own["bsi"].to_list()), 0)
    np.testing.assert_allclose(table["bsi"], mean)
    np.testing.assert_allclose(table["excess"], mean / 2)  # the invented null of a head is half of its BSI
    assert table.loc[table["rank"] == 1, "bsi"].item() == mean.max()
    assert by_head(binding.drop(columns="null_bsi"), store.read("previous_token"))["excess"].isna().all()
    (first, *_), n = cuts(binding).to_dict("records"), len(own) // 3
    assert (first["term"], first["prompts"], first["forms"]) == ("term 0", n, 1)
    assert list(first["tokens"]) == list(own[own["term"] == "term 0"]["span_strings"].iloc[0])


def test_what_is_drawn_is_what_the_claims_count(tmp_path: Path) -> None:
    store = Invention(tmp_path / "run", steps=6, terms=5).store
    found = analysed(store)
    drops = draws(store.read("ablation"))
    edits = effects(store.read("ablation"), store.read("ablation_sets"), 0.25)
    for row in edits.to_dict("records"):
        mine = drops[(drops["k"] == row["k"]) & (drops["outcome"] == row["outcome"])]
        random = mine.loc[mine["set"] == "random", "drop"]
        top = mine.loc[mine["set"] == "top", "drop"].item()
        assert top - random.mean() == pytest.approx(row["specificity"])
        assert (1 + (random >= top - 1e-12).sum()) / (len(random) + 1) == pytest.approx(row["p"])
    table = observations(store.read("binding"), store.read("recognition"), store.read("generation"))
    rows = found.results
    share = rows[(rows["claim"] == "C4-B") & (rows["reading"] == "published")]["value"].item()
    assert halves(table)["decoupled"].mean() == pytest.approx(share)


def test_answers_say_what_both_readings_carry(tmp_path: Path) -> None:
    store = Invention(tmp_path / "run", steps=6, terms=5).store
    found = analysed(store)

    def state(claim: str, **changes: object) -> str:
        rows = found.results.copy()
        for key, value in changes.items():
            reading, column = key.split("_")
            rows.loc[(rows["claim"] == claim) & (rows["reading"] == reading), column] = value
        own = rows[(rows["claim"] == claim) & (rows["suite"] == "model-0")]
        return answered(next(each for each in built_in() if each.id == claim), own).state

    sure = {"controlled_value": 0.5, "controlled_low": 0.2, "controlled_p": 0.01}
    weak = {"controlled_value": 0.1, "controlled_low": -0.2, "controlled_p": 0.4}
    yes, no = {"published_value": 0.5, "published_p": 0.01}, {"published_value": 0.5, "published_p": 0.3}
    assert state("C1-A", **yes, **sure) == "both"
    assert state("C1-A", **yes, **weak) == "published only"
    assert state("C1-A", **no, **sure) == "controlled only"
    assert state("C1-A", **no, **weak) == "neither"
    assert state("C1-A", **yes, controlled_value=None) == "open"
    assert state("C1-A", published_value=-0.5, published_p=0.01, **weak) == "neither"  # the other direction
    assert state("C4-B", published_value=0.4, published_p=0.01, **sure) == "controlled only"  # below one half


def _pair(tmp_path: Path) -> tuple[Store, Store]:
    return tuple(Invention(tmp_path / name, steps=2, terms=3, seed=seed).store for seed, name in enumerate("ab"))  # type: ignore[return-value]


def test_two_runs_differ_by_the_paired_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = _pair(tmp_path)
    found = changes(RunTables(first), RunTables(second))
    assert set(found.checkpoints["quantity"]) == {"EB*", "excess", "accuracy", "margin", "generation"}
    a, b = (
        s.read("binding").query("task != 'carrier' and step == 1000").set_index("prompt")["eb_star"]
        for s in (first, second)
    )
    row = found.checkpoints.query("quantity == 'EB*' and revision == 'step1000'").iloc[0]
    assert row["difference"] == pytest.approx((a - b).mean())
    assert row["n"] == len(a) == 33
    assert row["low"] < row["difference"] < row["high"]
    assert found.notes == ()
    assert main(["report", str(first.root), str(second.root)]) == 0
    assert f"{row['difference']:+.3f}" in capsys.readouterr().out
    page = (first.root / "compared.html").read_text(encoding="utf-8")
    assert "Both were made in the same way" in page


def test_what_two_runs_do_not_share_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Invention(tmp_path / "a", steps=2, terms=3).store
    other = Invention(tmp_path / "c", steps=3, terms=4, suites=2).store
    _, found = write_comparison(RunTables(first), RunTables(other))
    text = " ".join(found.notes)
    assert "step2000" in text
    assert "11 prompts are in the second run only" in text
    marked = Invention(tmp_path / "d", steps=2, terms=3, mark="!").store
    assert main(["report", str(first.root), str(marked.root)]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert main(["report", str(first.root), str(other.root), "--pdf"]) == 2


def test_a_prompt_of_another_text_is_not_compared(tmp_path: Path) -> None:
    first, second = _pair(tmp_path)
    key = "key of prompts"
    for unit in second.read_run().units:
        columns = pq.read_table(second.path(unit.checkpoint, "prompts", key)).to_pydict()
        columns["tokens"][0] = [*columns["tokens"][0][:-1], " other"]
        about = Provenance(**second.provenance(unit.checkpoint, "prompts", key))
        second.write(unit.checkpoint, key, Measurement(PROMPTS, PROMPTS.arrow(columns)), about)
    found = changes(RunTables(first), RunTables(second))
    assert "1 prompts have one name and two texts" in " ".join(found.notes)
    assert set(found.checkpoints.query("quantity == 'EB*'")["n"]) == {32}


def test_head_map_in_characters() -> None:
    rows = head_map([[0.0, 0.3, 1.0], [0.12, 0.6, 0.8]], 80, "utf-8")
    assert rows == ["   1 \u259112 \u259360 \u258880", "   0  00 \u259230 \u258899", "     0   1   2"]
    assert head_map([[0.0, 0.3], [0.12, 0.9]], 80, "ascii")[0] == "   1 .12 #90"
    wide = head_map([[0.9] * 40] * 2, 60, "utf-8")
    assert wide[0] == "   1 " + "\u2588" * 40
    assert all(len(text) <= 60 for text in wide)
    assert head_map([], 80, "utf-8") == []


def test_csv_files_are_read_back_whole(reported: Store) -> None:
    text = (reported.root / "tables" / "claim-C1-A.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text)))
    assert len({len(row) for row in rows}) == 1
