"""Measures from outside: found everywhere without another file knowing their names, and harmless when they fail."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import bindscope as bs
from bindscope.cli import main
from bindscope.engine.data import TextData
from bindscope.errors import RequestError, SchemaError
from bindscope.measures import Column, Needs, registry, span_measure
from bindscope.measures.base import CompletionMeasure, SpanMeasure
from bindscope.measures.eb_star import eb_star
from bindscope.measures.view import SpanView
from bindscope.schema import Table, markdown
from bindscope.store import Store

CLAIM_PAGE = (Path(__file__).parents[1] / "docs" / "your-claim.md").read_text(encoding="utf-8")
PAGE = (Path(__file__).parents[1] / "docs" / "your-measure.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules of the folder can be imported inside this block, and are forgotten behind it."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(folder)):
                del sys.modules[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The measure and the claim of the two pages, installed from a wheel as their sections on packages say."""
    root = tmp_path_factory.mktemp("plugin")
    (root / "part_cosine.py").write_text(CODE[0])
    (root / "mine.py").write_text(re.findall(r"```python\n(.*?)```", CLAIM_PAGE, re.DOTALL)[0])
    entry = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert entry
    claim = '[project.entry-points."bindscope.claims"]\nmine = "mine:CLAIM"\n'
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "part-cosine"\nversion = "1.0"\n' + entry[1] + claim + "[tool.hatch.build.targets.wheel]\n"
        'only-include = ["part_cosine.py", "mine.py"]\n'
    )
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = (root / "dist").glob("*.whl")
    site = root / "site"
    zipfile.ZipFile(wheel).extractall(site)  # what pip does with a wheel of pure Python
    return site


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that asks for the installed measure by name."""
    out = tmp_path_factory.mktemp("run")
    (out / "mine.yaml").write_text(
        'name: mine\nsuites: "tiny@0,6000"\nterms: pilot-3\nframes: carriers\n'
        "measures: [binding, recognition, part_cosine]\n"
    )
    with importable(folder):
        registry.installed.cache_clear()
        assert main(["run", str(out / "mine.yaml"), "--out", str(out / "out")]) == 0
        assert main(["report", str(out / "out"), "--pdf"]) == 0
        assert main(["export", str(out / "out"), "--to", "parquet", "--out", str(out / "tables")]) == 0
    registry.installed.cache_clear()
    return out


def test_it_is_about_twenty_lines() -> None:
    body = CODE[0].split("def part_cosine")[1]
    assert len(CODE[0].strip().splitlines()) <= 25
    assert len(body.strip().splitlines()) <= 6


def test_its_numbers_are_right(run: Path) -> None:
    table = bs.read(run / "out").read("part_cosine").query("step == 6000 and reason.isna()").set_index("prompt")
    prompts = bs.read(run / "out").read("prompts").query("step == 6000").set_index("prompt")
    loaded = bs.load("tiny", 6000)

    def stream(ids: list[int]) -> np.ndarray:
        """(L + 1, T, D) from transformers' own hooks on the layers."""
        taken: list[torch.Tensor] = []
        layers = loaded.model.gpt_neox.layers
        handles = [layers[0].register_forward_pre_hook(lambda _, args: taken.append(args[0]))]
        handles += [
            layer.register_forward_hook(lambda _, __, out: taken.append(out[0] if isinstance(out, tuple) else out))
            for layer in layers
        ]
        with torch.no_grad():
            loaded.model(torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        return torch.cat(taken).double().numpy()

    from bindscope.prompts.spans import encode, special_prefix

    prefix = list(special_prefix(loaded.tokenizer, loaded.bos))
    checked = 0
    for name, row in prompts[prompts["task"] == "carrier"].head(4).iterrows():
        text = "".join(row["tokens"][row["prefix"] :])
        ids = list(encode(loaded.tokenizer, text, loaded.bos).ids)
        span = list(row["span"])
        whole = stream(ids)[:, span[-1]]
        parts = np.mean([stream([*prefix, ids[i]])[:, -1] for i in span], 0)
        cosine = (whole * parts).sum(-1) / np.linalg.norm(whole, axis=-1) / np.linalg.norm(parts, axis=-1)
        assert table.loc[name, "part_cosine_by_layer"] == pytest.approx(cosine, abs=1e-5)
        assert table.loc[name, "part_cosine"] == pytest.approx(cosine.mean(), abs=1e-5)
        checked += 1
    assert checked == 4


def test_it_has_its_null(run: Path) -> None:
    store = bs.read(run / "out")
    table, windows = store.read("part_cosine"), store.read("part_cosine_windows")
    row = table[table["null_mean"].notna()].iloc[0]
    k = int(store.read("prompts").set_index(["step", "prompt"]).loc[(row["step"], row["prompt"]), "k"])
    carrier = "/carriers/" in row["prompt"]
    pool = windows[(windows["step"] == row["step"]) & (windows["k"] == k) & (windows["carrier"] == carrier)]
    assert row["null_n"] == len(pool)
    assert row["null_mean"] == pytest.approx(pool["part_cosine"].mean())
    assert row["excess"] == pytest.approx(row["part_cosine"] - pool["part_cosine"].mean())


def test_it_is_in_the_joined_table_and_in_parquet(run: Path) -> None:
    joined = bs.read(run / "out").read("binding")
    assert {"part_cosine", "part_cosine_excess", "eb_star", "excess"} <= set(joined)
    file = pq.ParquetFile(run / "tables" / "part_cosine.parquet")
    field = file.schema_arrow.field("part_cosine")
    assert field.metadata[b"description"] == b"cosine of last token and mean of the parts, mean over layers"
    about = json.loads(file.schema_arrow.metadata[b"bindscope"])
    assert about["title"] == "Cosine to the parts"
    assert [c["name"] for c in about["columns"]][:3] == ["suite", "revision", "step"]


def test_it_is_in_the_list_of_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with importable(folder):
        registry.installed.cache_clear()
        assert main(["tables"]) == 0
    registry.installed.cache_clear()
    assert "cosine of last token and mean of the parts" in capsys.readouterr().out


def test_it_is_on_the_page_and_in_the_paper(run: Path) -> None:
    page = (run / "out" / "report.html").read_text(encoding="utf-8")
    assert "Cosine to the parts" in page
    assert (run / "out" / "figures" / "measure-part_cosine.svg").exists()
    values = pd.read_csv(run / "out" / "tables" / "measure-part_cosine.csv")
    table = bs.read(run / "out").read("part_cosine")
    own = table[(table["step"] == 6000) & ~table["prompt"].str.contains("/carriers/")]  # the terms' own prompts
    assert values[values["step"] == 6000]["value"].iloc[0] == pytest.approx(own["part_cosine"].mean())
    assert (run / "out" / "paper.pdf").stat().st_size > 10_000


def test_the_claim_of_the_wheel_is_answered_everywhere(run: Path) -> None:
    claims = pd.read_csv(run / "out" / "analysis" / "claims.csv")
    assert set(claims[claims["claim"] == "mine"]["id"]) == {"mine.rho"}
    page = (run / "out" / "report.html").read_text(encoding="utf-8")
    assert "Are the terms that are bound most known best?" in page
    assert 'id="claim-mine"' in page
    assert (run / "out" / "figures" / "bound-and-known.svg").exists()
    assert "mine" in set(pd.read_csv(run / "out" / "analysis" / "sentences.csv")["claim"])


def test_one_file_each(folder: Path) -> None:
    """A measure is one file, a claim with its figure is one file, and nothing in the package was touched for them."""
    assert sorted(p.name for p in folder.glob("*.py")) == ["mine.py", "part_cosine.py"]


def test_it_is_shown_in_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with importable(folder):
        measure = importlib.import_module("part_cosine").part_cosine
        found = bs.measure(bs.load("tiny"), terms=["screen reader"], measures=[measure])
        assert found.terms[0].further["part_cosine"].value == pytest.approx(found.frame["part_cosine"][0])
        registry.installed.cache_clear()
        assert main(["measure", "tiny", "screen reader", "--measures", "part_cosine"]) == 0
    registry.installed.cache_clear()
    assert "Cosine to the parts" in capsys.readouterr().out


def test_the_page_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with importable(folder):
        names: dict[str, object] = {}
        exec(CODE[1], names)  # our own page
    results = names["results"]
    assert isinstance(results, Store)
    assert len(results.read("part_cosine")) == 2 * 3 * 11


def test_a_module_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        CODE[0].replace("def part_cosine", "def own").replace('value="part', 'name="own", value="part')
    )
    (tmp_path / "x.yaml").write_text('name: x\nsuites: "tiny@6000"\nterms: pilot-3\nmeasures: [own:own]\n')
    assert main(["run", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "out")]) == 0
    names = [t.name for t in bs.read(tmp_path / "out").tables()]
    assert names[0] == "prompts"
    assert {"eb_star", "own", "own_windows"} <= set(names)


def _column(**more: object) -> Column:
    return Column("x", "number", "a number", **more)  # type: ignore[arg-type]


def _make(name: str, result: object) -> SpanMeasure:
    def function(view: SpanView) -> object:
        return result(view) if callable(result) else result

    return span_measure(name=name, columns=[_column()], value="x", needs=Needs(attention=True))(function)  # type: ignore[arg-type]


def _raises(_: SpanView) -> object:
    raise ZeroDivisionError("no such\nthing")


@pytest.mark.parametrize(
    ("name", "result", "said"),
    [
        ("raising", _raises, "the measure raising is left out: ZeroDivisionError: no such thing"),
        ("shaped", lambda view: {"x": np.zeros((view.n, 2))}, r"the column 'x' has the shape (1, 2); return (1,)"),
        ("short", lambda view: {"x": np.zeros(0)}, r"the column 'x' has the shape (0,); return (1,)"),
        ("nan", lambda view: {"x": np.full(view.n, np.nan)}, "nan.x is missing in row 0, and reason does not say why"),
        ("lacking", lambda view: {}, "it did not return the column 'x'"),
        ("extra", lambda view: {"x": np.zeros(view.n), "y": np.zeros(view.n)}, "it returned the column 'y'"),
        ("typed", lambda view: {"x": np.array(["a"] * view.n)}, "the column 'x' holds <U1; it is declared as number"),
        ("plain", 3, "it returned int, not a dictionary of its columns"),
        ("unasked", lambda view: {"x": view.residual.sum((1, 2, 3))}, "declare Needs(residual=True)"),
    ],
)
def test_one_that_fails_is_one_line_and_the_others_are_kept(
    tmp_path: Path, name: str, result: object, said: str
) -> None:
    experiment = bs.Experiment(name="x", suites="tiny@6000", terms="alt text", measures=["eb_star"])
    with pytest.warns(UserWarning, match="1 measure has no results") as warned:
        store = bs.run(experiment, tmp_path, measures=[_make(name, result)])
    assert said in str(warned[0].message)
    (unit,) = store.read_run().units
    assert list(unit.lacking) == [name]
    assert said in unit.lacking[name]
    assert "\n" not in unit.lacking[name]
    assert store.read("eb_star")["eb_star"].notna().all()
    assert store.read(name).empty


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    experiment = bs.Experiment(name="x", suites="tiny@6000", terms="alt text")
    for name in ("eb_star", "prompts", "eb_star_windows"):
        with pytest.raises(RequestError, match=f"the table name '{name}' of a measure is used"):
            bs.run(experiment, tmp_path / "out", measures=[_make(name, {})])
    assert not (tmp_path / "out").exists()


def test_an_installed_one_with_a_taken_name_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site"
    about = site / "taken-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "taken_name.py").write_text(CODE[0].replace("def part_cosine", "def eb_star"))
    (site / "broken_name.py").write_text("raise OSError('no\\nluck')")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: taken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[bindscope.measures]\neb_star = taken_name:eb_star\nbroken = broken_name:broken\n"
    )
    with importable(site):
        registry.installed.cache_clear()
        (tmp_path / "x.yaml").write_text('name: x\nsuites: "tiny@6000"\nterms: alt text\nmeasures: [eb_star]\n')
        assert main(["run", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "out")]) == 0
        notes = bs.read(tmp_path / "out").read_run().notes
    registry.installed.cache_clear()
    assert len(notes) == 2
    assert "the measure broken is left out: OSError: no luck" in notes
    assert any("the measure eb_star of an installed package is left out" in note for note in notes)
    assert bs.read(tmp_path / "out").read("eb_star")["eb_star"].notna().all()
    assert "left out" in capsys.readouterr().err


def test_a_changed_file_is_measured_again(tmp_path: Path) -> None:
    keys = []
    for factor in (1, 2):
        code = CODE[0].replace("cosine.mean(1)", f"cosine.mean(1) / {factor}")
        (tmp_path / "changing.py").write_text(code)
        with importable(tmp_path):
            keys.append(registry.load("changing:part_cosine").identity)
    assert keys[0] != keys[1]
    assert eb_star.identity == "eb_star 1"


def test_every_measure_that_ships_declares_itself() -> None:
    measures = registry.built_in()
    assert {"eb_star", "mass", "norm_weighted", "sink", "recognition", "generation", "ablation"} <= set(measures)
    for measure in measures.values():
        for table in measure.tables:
            for column in table.columns:
                assert column.description, f"{table.name}.{column.name}"
    assert {m.name for m in measures.values() if isinstance(m, CompletionMeasure)} == {
        "generation", "few_shot", "variability",
    }  # fmt: skip
    code = "import bindscope.measures.registry as r, sys; r.built_in(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_eb_star_is_short() -> None:
    source = Path(importlib.import_module("bindscope.measures.eb_star").__file__ or "").read_text()
    body = source.split("def eb_star(")[1].split("\n\n\n")[0]
    assert len(body.splitlines()) <= 8


def test_views_say_what_must_be_declared() -> None:
    view = SpanView(TextData(ids=(1, 2, 3)), [1], 2)
    for name in ("attention", "residual", "alone", "norm_weighted", "last_row", "head_outputs", "previous_token"):
        with pytest.raises(ValueError, match=f"declare Needs\\({name}=True\\)"):
            getattr(view, name)


def _table(**more: object) -> Table:
    return Table("t", "a row", (_column(**more), Column("why", "text", "why", missing="a value is there")))


@pytest.mark.parametrize(
    ("more", "values", "said"),
    [
        ({}, {"x": [1.0], "why": [None], "z": [1]}, "'z' has values but is not declared"),
        ({}, {"x": [1.0]}, "'why' is declared but has no values"),
        ({}, {"x": [1.0, 2.0], "why": [None]}, "differ in length: x 2, why 1"),
        ({}, {"x": [float("nan")], "why": ["gone"]}, "t.x is missing in a row, and no reason is given"),
        ({"missing": "why"}, {"x": [1.0, None], "why": [None, None]}, "t.x is missing in row 1, and why does not say"),
        ({"range": (0, 1)}, {"x": [1.01], "why": [None]}, "t.x holds 1.01, outside of its range from 0 to 1"),
        ({"range": (0, None)}, {"x": [-0.5], "why": [None]}, "t.x holds -0.5, outside of its range from 0 to None"),
    ],
)
def test_the_schema_refuses(more: dict[str, object], values: dict[str, list[object]], said: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(said)):
        _table(**more).arrow(values)


def test_the_schema_takes_what_fits() -> None:
    table = _table(missing="why", range=(0, 1))
    rows = table.arrow({"x": [0.5, float("nan")], "why": [None, "too short"]})
    assert rows.to_pylist() == [{"x": 0.5, "why": None}, {"x": None, "why": "too short"}]
    assert rows.schema.field("x").metadata[b"range"] == b"[0, 1]"
    assert "| `x` | number | a number; may be missing: see `why` | 0 to 1 |" in markdown([table])


def test_a_taken_name_of_a_package_is_said_once_however_often_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of faults of installed packages is cached; a run of many checkpoints must not add to it."""
    offered = ({"sink": registry.built_in()["mass"]}, list[str]())
    monkeypatch.setattr(registry, "installed", lambda: offered)
    for _ in range(2):
        _, faults = registry.chosen(["eb_star"])
        assert faults == ["the measure sink of an installed package is left out: bindscope has a measure of this name"]
