"""Claims are plugins: found, checked, drawn and answered by id, whatever their texts say and whoever wrote them."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from bindscope.charts.figure import Figure
from bindscope.charts.table import Table
from bindscope.claims import analysis as analysis_module
from bindscope.claims import registry
from bindscope.claims.analysis import Analysis, analyse
from bindscope.claims.base import Answer, Claim, Statistic
from bindscope.claims.registry import built_in, registered
from bindscope.cli import main
from bindscope.errors import RequestError
from bindscope.experiment import load
from bindscope.report.content import compose
from bindscope.report.files import write_report
from bindscope.report.paper import _data
from bindscope.store import Store
from bindscope.tables.run import RunTables
from stores import Invention

_KEYS = ["suite", "claim", "id", "reading", "subject"]
PAGE = Path(__file__).parents[1] / "docs" / "your-claim.md"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run that carries every claim."""
    return Invention(tmp_path_factory.mktemp("claims") / "run", suites=2, steps=6, terms=4).store


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One checkpoint, which is analysed at once."""
    return Invention(tmp_path_factory.mktemp("claims") / "run", steps=1, terms=3).store


@pytest.fixture(scope="module")
def plain(store: Store) -> Analysis:
    return analyse(RunTables(store))


def _one(value: float = 0.5, **changes: Any) -> Statistic:
    given = {
        "id": "x.value",
        "reading": "published",
        "quantity": "a value",
        "n": 3,
        "unit": "term",
        "method": "by hand",
    }
    return Statistic(**{**given, "value": value, **changes})


def _both(id: str = "x.value") -> list[Statistic]:
    return [_one(id=id, p=0.01), _one(id=id, reading="controlled", low=0.1, high=0.9, p=0.01)]


def _claim(id: str = "x", statistics: Any = None, **changes: Any) -> Claim:
    own = f"{id}.value"
    given = {"id": id, "name": "extra", "question": "Is it so?", "limit": "Nothing.", "published": own}
    given |= {"controlled": own, "statistics": statistics or (lambda inputs: _both(own))}
    return Claim(**{**given, **changes})


# What is found, and in which order.


def test_every_file_with_a_claim_is_one_and_ids_are_its_own(plain: Analysis) -> None:
    claims = built_in()
    assert [claim.id for claim in claims] == ["V", "C1-A", "C1-B", "C2", "C3", "C4-A", "C4-B", "C5", "robustness"]
    files = Path(registry.package.__path__[0]).glob("*.py")
    assert len(claims) == sum(bool(re.search(r"^CLAIM = ", f.read_text(), re.M)) for f in files)
    assert plain.claims == tuple(claims)
    assert plain.problems == ()
    for claim in claims:
        ids = set(plain.results.loc[plain.results["claim"] == claim.id, "id"])
        assert {claim.published, claim.controlled} <= ids
        assert len({id.partition(".")[0] for id in ids}) == 1
    own = plain.results[plain.results["suite"] == "model-0"]
    assert not own.duplicated(["id", "reading", "subject"]).any()


def test_no_claim_is_named_outside_its_file() -> None:
    """The report, the terminal and the analysis know no claim, no statistic and no label."""
    root = Path(registry.package.__path__[0]).parent
    ids = [f'"{claim.id}"' for claim in built_in()]
    ids += [f'"{claim.published.partition(".")[0]}.' for claim in built_in()]
    labels = ['"rho(', '"share of terms', '"specificity of', '"difference of']
    files = [*(root / "report").glob("*.py"), *(root / "terminal").glob("*.py"), *(root / "charts").glob("*.py")]
    files += [root / "claims" / f"{name}.py" for name in ("analysis", "answers", "base", "inputs", "registry")]
    for path in files:
        code = re.sub(r'"""[\s\S]*?"""|#.*', "", path.read_text())
        assert not [text for text in (*ids, *labels) if text in code], path


# Texts are only texts.


def _shape(run: RunTables, analysis: Analysis) -> dict[str, Any]:
    content = compose(run, analysis)
    return {
        "problems": content.problems,
        "figures": [(figure.name, figure.claim, len(figure.data)) for figure in content.figures],
        "tables": [(table.name, table.claim, len(table.rows), len(table.head)) for table in content.tables],
        "cards": [
            (
                card.claim,
                [answer.state for answer in card.answers],
                [figure.name for figure in card.figures],
                [table.name for table in card.tables],
                card.every is None,
            )
            for card in content.cards
        ],
        "numbers": analysis.results[
            ["suite", "claim", "id", "reading", "value", "low", "high", "p", "q", "n"]
        ].to_csv(),
    }


def test_every_text_can_be_reworded(store: Store, plain: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other words in every label, method, unit, reason, question and sentence: figures, tables and states stay."""
    before = _shape(RunTables(store), plain)
    rng = random.Random(0)

    def words(_: object = None) -> str:
        return "".join(rng.choices("abcdefghij klmnop: qrstuvwxyz", k=24))

    first = Statistic.__init__
    texts = ("quantity", "unit", "method", "cluster", "reason")

    def reworded(self: Statistic, **given: Any) -> None:
        first(self, **{name: words() if name in texts and value else value for name, value in given.items()})

    monkeypatch.setattr(Statistic, "__init__", reworded)
    claims = [replace(claim, name=words(), question=words(), limit=words()) for claim in built_in()]
    monkeypatch.setattr(registry, "built_in", lambda: claims)
    run = RunTables(store)
    after = analyse(run)
    assert set(after.results["quantity"]).isdisjoint(plain.results["quantity"])
    assert _shape(run, after) == before
    sentences = after.sentences.assign(sentence="", text=[words() for _ in range(len(after.sentences))])
    assert _shape(run, replace(after, sentences=sentences)) == before


# One from outside.


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of the page "Write your own claim", written to a folder."""
    (tmp_path / "mine.py").write_text(_blocks("python")[0])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


def _experiment(folder: Path, **changes: Any) -> Any:
    (folder / "mine.yaml").write_text(yaml.safe_dump(yaml.safe_load(_blocks("yaml")[0]) | changes))
    return load(str(folder / "mine.yaml"))


def _with_claims(store: Store, claims: list[str]) -> None:
    raw = json.loads((store.root / "run.json").read_text())
    raw["experiment"]["claims"] = claims
    (store.root / "run.json").write_text(json.dumps(raw))


def test_the_page_on_ones_own_claim_runs(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Invention(mine / "runs" / "tiny", steps=4, terms=4)
    monkeypatch.syspath_prepend(str(mine))
    names: dict[str, Any] = {}
    exec(_blocks("python")[1], names)
    assert names["found"].problems == ()
    shown = capsys.readouterr().out
    assert "model-0" in shown
    assert "controlled" in shown
    entry = re.search(r'"(.+)"\]\n(\w+) = "(.+)"', _blocks("toml")[0])
    assert entry is not None
    assert entry[1] == registry.GROUP


def test_a_claim_of_the_experiments_file_is_everywhere(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = _experiment(mine)
    assert experiment.claims == (f"{mine.resolve()}/mine:CLAIM",)
    store = Invention(mine / "run", suites=2, steps=4, terms=4).store
    _with_claims(store, list(experiment.claims))
    assert main(["report", str(store.root), "--pdf"]) == 0
    page = (store.root / "report.html").read_text(encoding="utf-8")
    assert "Mine: Are the terms that are bound most known best?" in page
    assert 'id="bound-and-known-drawing"' in page
    assert page.index('id="claim-robustness"') < page.index('id="claim-mine"')
    made = {path.name for path in (store.root / "tables").glob("*.csv")}
    assert {"bound-and-known.csv", "pair-mine.csv", "claim-mine.csv"} <= made
    assert set(pd.read_csv(store.root / "tables" / "spread.csv")["claim"]) >= {"C1-A", "mine"}
    assert (store.root / "paper.pdf").read_bytes().startswith(b"%PDF")
    run = RunTables(store)
    paper = _data(store, compose(run, analyse(run)))
    assert paper["claims"][-1]["heading"].startswith("Mine:")
    assert [figure["file"] for figure in paper["claims"][-1]["figures"]] == ["bound-and-known.pdf"]
    capsys.readouterr()
    assert main(["analyse", str(store.root)]) == 0
    shown = capsys.readouterr().out
    assert "mine: As published: rho(EB*, margin)" in shown
    assert "is left out" not in shown
    again = yaml.safe_load((store.root / "experiment.yaml").read_text())
    assert again["claims"] == list(experiment.claims)
    assert load(str(store.root / "experiment.yaml")).claims == experiment.claims


def test_a_claim_that_is_gone_is_named_and_the_others_are_kept(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Invention(mine / "run", steps=4, terms=4).store
    _with_claims(store, [f"{mine}/gone:CLAIM", "json:CLAIM", f"{mine}/json:CLAIM"])
    assert main(["report", str(store.root)]) == 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert f"claim {mine}/gone:CLAIM is left out: ModuleNotFoundError" in lines[0]
    assert "the module json has no CLAIM" in lines[1]
    assert "another module called json is loaded" in lines[2]
    page = (store.root / "report.html").read_text(encoding="utf-8")
    assert "gone:CLAIM is left out" in page
    assert 'id="claim-C1-A"' in page


@pytest.mark.parametrize("claims", ["mine", "mine.py", "a b:C", ":CLAIM", "mine:"])
def test_a_name_that_is_none_is_refused(mine: Path, claims: str) -> None:
    with pytest.raises(RequestError, match="module:name"):
        _experiment(mine, claims=claims)


def test_packages_offer_claims(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(mine))
    offered = [EntryPoint(n, v, registry.GROUP) for n, v in (("mine", "mine:CLAIM"), ("no", "nowhere:CLAIM"))]
    monkeypatch.setattr(registry, "entry_points", lambda group: [e for e in offered if e.group == group])
    claims, problems = registered()
    assert [claim.id for claim in claims][-1] == "mine"
    assert len(problems) == 1
    assert problems[0].startswith("claim entry point nowhere:CLAIM is left out: ModuleNotFoundError")


# Wrong ones.


def _raises(inputs: Any) -> Iterator[Statistic]:
    yield _one()
    raise ZeroDivisionError("no luck")


WRONG: list[tuple[Any, str]] = [
    (_claim("a", _raises), "claim a is left out: ZeroDivisionError: no luck"),
    (_claim("b", lambda inputs: [{"value": 1}]), "claim b is left out: TypeError: it yields dict, not a"),
    (_claim("c", lambda inputs: [_one(float("nan"))]), "claim c is left out: ValueError: x.value has no value and no"),
    (_claim("d", lambda inputs: [_one(float("inf"))]), "x.value is inf; give a finite value"),
    (_claim("e", lambda inputs: [_one(), _one()]), "x.value (published) comes twice"),
    (_claim("f", lambda inputs: [_one(reading="other")]), "reading is 'other'"),
    (_claim("g", lambda inputs: [_one(id="c2.icc")]), "the statistic id 'c2.icc' is one of C2's"),
    (_claim("h", lambda inputs: 5), "claim h is left out: TypeError"),
    (_claim("C2"), "claim 'C2' is left out: the id 'C2' is taken"),
    (_claim("j", answer=lambda rows: "yes"), "claim j gives no answer for model-0: TypeError: its answer is str"),
    (_claim("k", lambda inputs: [_one(id="k.value")]), "claim k gives no answer for model-1: KeyError"),
    (3, "claim 3 is left out: it is int, not a bindscope.claims.base.Claim"),
]


@pytest.fixture(scope="module")
def wrong(store: Store) -> Analysis:
    return analyse(RunTables(store), [claim for claim, _ in WRONG])


@pytest.mark.parametrize("text", [text for _, text in WRONG])
def test_a_wrong_claim_is_named(wrong: Analysis, text: str) -> None:
    assert any(text in problem for problem in wrong.problems), wrong.problems
    assert all("\n" not in problem for problem in wrong.problems)


def test_the_other_claims_are_kept(wrong: Analysis, plain: Analysis) -> None:
    columns = [*_KEYS, "value", "low", "high", "p", "n"]
    kept = wrong.results[~wrong.results["claim"].isin(["j", "k"])]
    pd.testing.assert_frame_equal(kept[columns].reset_index(drop=True), plain.results[columns].reset_index(drop=True))
    pd.testing.assert_frame_equal(wrong.sentences, plain.sentences)
    named = len(WRONG) + 2  # two of them give no answer for either suite
    assert len(wrong.problems) == named


def test_missing_tables_are_a_reason() -> None:
    given = _claim(needs=("variability",))
    rows = analysis_module.statistics_of(given, _Bare())  # type: ignore[arg-type]
    assert [(row.reading, row.value, row.reason) for row in rows] == [
        ("published", None, "the run has no sampled answers"),
        ("controlled", None, "the run has no sampled answers"),
    ]


class _Bare:
    def stored(self, name: str) -> pd.DataFrame:
        return pd.DataFrame()


def _bad_figure(found: Any) -> Iterator[Figure]:
    raise ValueError("no ink")
    yield


def _undrawable(found: Any) -> Iterator[Figure]:
    import altair as alt

    chart = alt.Chart(pd.DataFrame({"a": [1]})).mark_point().encode(x="nothing")
    chart.mark = "no such mark"
    yield Figure(name="broken", title="t", chart=chart, text="t", data=pd.DataFrame({"a": [1]}))


def _figure(name: str) -> Figure:
    import altair as alt

    data = pd.DataFrame({"a": [1.0]})
    return Figure(name=name, title="t", chart=alt.Chart(data).mark_point().encode(x="a:Q"), text="t", data=data)


BAD_PARTS: list[tuple[dict[str, Any], str]] = [
    ({"figures": (_bad_figure,)}, "claim x0: a figure is left out: ValueError: no ink"),
    ({"figures": (lambda found: [_figure("heads")],)}, "there is another figure called 'heads'"),
    ({"figures": (lambda found: [_figure("../up")],)}, "a figure's name is of letters"),
    ({"figures": (lambda found: ["drawing"],)}, "str is no bindscope.charts.figure.Figure"),
    ({"figures": (_undrawable,)}, "claim x4: the figure broken is left out"),
    ({"tables": (lambda found: [7],)}, "int is no bindscope.charts.table.Table"),
    (
        {"tables": (lambda found: [Table(name="a b", title="t", head=[], rows=[], data=pd.DataFrame())],)},
        "a table's name is of letters",
    ),
]


def test_a_wrong_figure_or_table_is_named_and_the_others_are_kept(small: Store) -> None:
    run, claims = RunTables(small), [_claim(f"x{i}", **changes) for i, (changes, _) in enumerate(BAD_PARTS)]
    content = compose(run, analyse(run, claims))
    assert len(content.problems) == len(BAD_PARTS)
    for (_, text), problem in zip(BAD_PARTS, sorted(content.problems), strict=True):
        assert text in " ".join(content.problems), problem
    assert [card.claim for card in content.cards][-len(BAD_PARTS) :] == [claim.id for claim in claims]
    shown = {figure.name for figure in content.figures}
    assert shown == {figure.name for figure in compose(run, analyse(run)).figures}


def test_an_id_must_name_a_file() -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        _claim(id="a/b")


def test_a_figure_without_an_answer_has_a_section(small: Store) -> None:
    """A claim without statistics here has no card; what it draws is shown all the same."""
    run = RunTables(small)
    found = analyse(run, [_claim(statistics=lambda inputs: [], figures=(lambda found: [_figure("alone")],))])
    assert [figure.name for figure in compose(run, found).other_figures] == ["alone"]
    page = write_report(run, found)[0].read_text(encoding="utf-8")
    assert "Further figures" in page
    assert 'id="alone-drawing"' in page


def test_the_bound_of_no_effect_is_on_the_page(small: Store) -> None:
    run = RunTables(small)
    limits = {card.claim: card.limit for card in compose(run, analyse(run)).cards}
    assert "within \u00b10.05" in limits["C5"]
    assert "\u00b1" not in limits["C2"]


def test_an_answer_of_ones_own_and_a_subject(small: Store) -> None:
    def statistics(inputs: Any) -> list[Statistic]:
        return [_one(subject=name, reading=r) for name in "ab" for r in ("published", "controlled")]  # type: ignore[arg-type]

    run = RunTables(small)
    claim = _claim(
        statistics=statistics, answer=lambda rows: Answer("in part", f"{rows['subject'].nunique()} subjects.")
    )
    found = analyse(run, [claim])
    (text,) = set(found.sentences.loc[found.sentences["claim"] == "x", "text"])
    assert text == "2 subjects."
    names = {table.name for table in compose(run, found).tables}
    assert "claim-x" in names
    assert "pair-x" not in names


# Each shard is read once.


@pytest.mark.parametrize("command", [["report", "--pdf"], ["analyse"]])
def test_each_shard_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    store = Invention(tmp_path / "run", suites=2, steps=2, terms=3).store
    read: list[Path] = []
    whole = Store._shard

    def counted(self: Store, ref: Any, measure: str, key: str) -> Any:
        read.append(self.path(ref, measure, key))
        return whole(self, ref, measure, key)

    monkeypatch.setattr(Store, "_shard", counted)
    assert main([command[0], str(store.root), *command[1:]]) == 0
    assert len(read) == len(set(read))
    shards = {path for path in (store.root / "shards").rglob("*.parquet") if not path.name.startswith("windows")}
    if command[0] == "report":
        assert set(read) == shards
