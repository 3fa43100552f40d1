"""The documents as a site: built strictly, asking nobody for anything, accessible; what is generated is up to date."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import models
from bindscope.checkpoints.suites import names
from bindscope.cli import main
from bindscope.engine.data import TextData
from bindscope.measures.best_head import best_head
from bindscope.measures.eb_star import eb_star
from bindscope.measures.mass import mass as mass_of
from bindscope.measures.nulls import compare_with_null, window_starts
from bindscope.measures.view import SpanView
from conftest import shared

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@cache
def script(name: str) -> dict[str, Any]:
    """The names that a script of docs/ defines; what it does when it is run is left out."""
    return runpy.run_path(str(DOCS / f"{name}.py"))


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


# What is generated


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    made = script("cli")
    assert page("cli").split() == made["page"]().split(), "stale: python docs/cli.py"
    assert re.findall(r"^## bindscope (\w+)$", page("cli"), re.M) == made["commands"]()
    assert len(made["commands"]()) >= 9


def test_the_catalogue_on_its_page_is_the_catalogue() -> None:
    shown = script("sections")["section"]("checkpoints", "catalogue")
    assert shown == script("catalogue")["tables"]().strip(), "stale: python docs/catalogue.py"
    assert re.findall(r"^\| `([^`]+)`<br>", shown, re.M) == names()
    assert "byte-identical" in shown


def test_a_generated_section_is_replaced_and_the_words_around_it_stay(tmp_path: Path) -> None:
    sections = script("sections")
    sections["replace"].__globals__["DOCS"] = tmp_path
    try:
        path = tmp_path / "p.md"
        other = "<!-- begin a-b -->\n<!-- end a-b -->\n"
        path.write_text(f"before\n{other}<!-- begin a: how -->\nold\n<!-- end a -->\nafter\n")
        sections["replace"]("p", "a", r"new \1 | text")
        assert sections["section"]("p", "a") == r"new \1 | text"
        assert sections["section"]("p", "a-b") == ""
        assert path.read_text().startswith(f"before\n{other}<!-- begin a: how -->\n")
        assert path.read_text().endswith("<!-- end a -->\nafter\n")
        with pytest.raises(ValueError, match="no section 'c'"):
            sections["replace"]("p", "c", "text")
    finally:
        sections["replace"].__globals__["DOCS"] = DOCS


@pytest.mark.parametrize("name", ["smollm2", "causal"])
def test_the_sections_that_a_script_writes_are_on_the_page(name: str) -> None:
    source = (DOCS / f"{name}.py").read_text(encoding="utf-8")
    direct = re.findall(r'replace\("smollm2", "([\w-]+)"', source)
    written = {*direct, *re.findall(r'^        "([\w-]+)": \w+\(', source, re.M)}
    assert len(written) >= 4
    for section in written:
        assert script("sections")["section"]("smollm2", section), section


def test_pictures_are_drawn_from_the_example() -> None:
    for name, draw in script("pictures")["PICTURES"].items():
        assert (DOCS / "images" / f"{name}.svg").read_text(encoding="utf-8") == draw(), "stale: python docs/pictures.py"


# The worked example


def test_the_worked_example_is_what_the_functions_give() -> None:
    text, made = page("concepts"), script("pictures")
    rows = np.array(
        [[float(x) for x in row.split("|")[2:-1]] for row in re.findall(r"^\| \d \|.*\|$", text, re.M)], np.float64
    )
    assert rows.shape == (4, 5)
    P = np.zeros((2, 4, 12, 3), np.float32)
    P[0, :, 3, 1], P[0, :, 4, 2], P[0, :, 4, 1] = rows[:, 0], rows[:, 1], rows[:, 2]
    P[1, :, 3, 1] = P[1, :, 4, 2] = P[1, :, 4, 1] = 0.2
    np.testing.assert_array_equal(P, made["band"]())  # the pictures show the same example
    view = SpanView(TextData(ids=tuple(range(12)), band=P), [2], 3)
    bsi, each = view.bsi[0], mass_of(view)["mass"][0]
    np.testing.assert_allclose(bsi[0], rows[:, 3], atol=1e-7)
    np.testing.assert_allclose(each[0], rows[:, 4], atol=1e-7)
    star, mass = eb_star(view)["eb_per_layer"][0], mass_of(view)["eb_star_mass"]
    assert star.argmax() == 0
    assert star[1] == pytest.approx(0)
    null = compare_with_null(float(star.max().round(6)), np.array(made["WINDOWS"]), 5)
    assert window_starts(12, 3, {2, 3, 4}).tolist() == [5, 6, 7, 8, 9]
    assert sum(made["ROW"]) == pytest.approx(1)
    assert made["ROW"][2:4] == rows[0, 1:3].tolist()
    for stated in (
        f"= {bsi[0, 0]:.3f} for head 0",
        f"{bsi[0].max():.3f} - {bsi[0].mean():.3f} = {star[0]:.3f}",
        f"**EB\\*** is the largest EB over the layers: {star.max():.3f}, in layer 0",
        f"entropy of {best_head(view)['entropy'][0]:.3f} nats",
        f"ln 4 = {np.log(4):.3f}",
        f"{each[0].max():.3f} - {each[0].mean():.3f} = {mass.max():.3f}",
        ", ".join(f"{v:.2f}" for v in made["WINDOWS"][:4]) + f" and {made['WINDOWS'][4]:.2f}",
        f"{star.max():.3f} - {null['null_mean']:.3f} = {null['excess']:.3f}",
        f"(4 + 1) / (5 + 1) = {null['percentile']:.3f}",
    ):
        assert stated in " ".join(text.split()), stated


@pytest.mark.parametrize(("k", "stated"), [(2, "0.9167 for any term of two"), (3, "0.6111 for three"), (4, "0.4583 f")])
def test_a_previous_token_head_scores_what_the_page_says(k: int, stated: str) -> None:
    P = np.zeros((1, 12, 9, k), np.float32)
    P[0, 5, 2:, 1] = 1
    star = float(eb_star(SpanView(TextData(ids=tuple(range(9)), band=P), [3], k))["eb_star"][0])
    assert star == pytest.approx(2 / k * (1 - 1 / 12))
    assert f"{star:.4f}" == stated[:6]
    assert stated in " ".join(page("concepts").split())


# The reference study


def test_the_numbers_of_the_reference_studys_files_are_what_they_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tokenizer = shared("tokenizers", "neox", "tokenizer.json")
    assert main(["replicate", str(shared("published")), "--tokenizer", str(tokenizer)]) == 0
    shown, text = " ".join(capsys.readouterr().out.split()), " ".join(page("claims").split())
    for printed, stated in (
        (
            "all 153 5 1 36",
            "Of 195 printed figures, 153 come out of the published files at the printed digits, and 5 more",
        ),
        ("all pairs controlled +0.239", "all 288 pairs +0.24"),
        ("without step 0 controlled +0.061 -0.00 to +0.11", "+0.06 [-0.00, +0.11]"),
        ("within checkpoints controlled +0.016 -0.03 to +0.03", "+0.02 [-0.03, +0.03]"),
        ("window: early controlled +0.380", "steps 0 to 60k +0.38"),
        ("window: late controlled -0.030", "steps 90k to 143k -0.03"),
        ("window: early without step0 controlled +0.140 -0.06 to +0.31", "+0.14 [-0.06, +0.31]"),
        ("15 2-7 -0.964 0.87 0.82", "rho -0.96 (160M)"),
        ("15 2-7 -0.977 0.70 0.60", "average 0.87 and 0.70; real terms of two tokens 0.82 and 0.60"),
        ("0.35 (pilot 160m), 0.62 (pilot 1b), 0.62 (pilot 2.8b)", "0.35, 0.62 and 0.62"),
        ("2 of 12 prompts have their span on other tokens than the term's, which is 48 of 288", "48 of the 288 values"),
        ("without mis-located spans controlled +0.253", "rho is +0.25 instead of +0.24"),
        ("1 of 6 items change; with 5 random sets p cannot be below 0.17", "1 and 2 of 6 items change"),
        ("stand in the prompt files 0 of 18", "the one-shot texts that were used (18) stand in none"),
    ):
        assert printed in shown, printed
        assert stated in text, stated


def test_the_summary_of_our_runs_agrees_with_their_pages() -> None:
    text = page("claims")
    mine = text[text.index("## Measured on SmolLM2-135M") : text.index("## What stands")]
    intervals = re.findall(r"\[[+-]?[\d.]+, [+-]?[\d.]+\]", mine)
    assert len(intervals) == 3
    for interval in intervals:
        assert interval in page("smollm2"), interval


def test_the_headline_is_the_number_of_the_page_of_claims() -> None:
    assert "+0.01 [-0.01, +0.03]" in page("claims")
    assert "(d 0.88, p < 0.001)" in page("claims")
    for text in ((ROOT / "README.md").read_text(encoding="utf-8"), page("index")):
        words = " ".join(text.split())
        assert "Cohen's d 0.9" in words
        assert "0.01 [-0.01, 0.03]" in words


def test_the_readme_is_short_and_its_example_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 75
    (example,) = _blocks(text, "console")
    command, *shown = example.splitlines()
    assert main(shlex.split(command.removeprefix("$ bindscope "))) == 0
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert len(shown) == 5
    for line in shown:
        assert " ".join(line.split()) in printed, line


# What the pages tell a reader to type


def _blocks(text: str, language: str) -> list[str]:
    return [code for named, code in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S) if named == language]


def _typed(text: str) -> list[list[str]]:
    """Lines of code blocks without a language that call bindscope."""
    lines = [line for block in _blocks(text, "") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("bindscope ")]


def test_every_command_of_the_first_page_runs(
    tmp_path: Path, suite_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order of the page; the one on SmolLM2 is in tests/test_smollm2.py."""
    (tmp_path / "checkpoints").symlink_to(suite_folder)
    (experiment,) = _blocks(page("start"), "yaml")
    (tmp_path / "experiment.yaml").write_text(experiment)
    monkeypatch.chdir(tmp_path)
    commands = _typed(page("start"))
    assert [words[0] for words in commands] == ["measure", "audit", "measure", "plan", "run", "analyse", "report"]
    for words in commands:
        if "smollm2-135m" in words:
            continue
        assert main(words) == 0, words
        shown = capsys.readouterr().out
        if words[:2] == ["measure", "tiny"]:
            (said,) = _blocks(page("start"), "text")
            assert " ".join(said.split()) in " ".join(shown.split())
    (code,) = _blocks(page("start"), "python")
    exec(code, {})
    assert "screen reader" in capsys.readouterr().out


def test_every_command_on_your_own_model_runs(suite_folder: Path, words: Any, tmp_path: Path) -> None:
    model = models.save(tmp_path / "model", words)
    commands = [c for c in _typed(page("your-model")) if not any(word.startswith("org/") for word in c)]
    assert len(commands) == 2
    for command in commands:
        named = {"path/to/model": str(model), "path/to/run": str(suite_folder), "500": "10"}
        assert main([named.get(word, word) for word in command]) == 0, command


# The site


class _Resources(HTMLParser):
    """Addresses that a browser fetches by itself: link, script, img, source, iframe, and url() of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.images_without_text: list[str] = []
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        at = dict(attrs)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in ("link", "script", "img", "source", "iframe", "video", "audio", "object", "embed"):
            fetched = at.get("href") if tag == "link" else at.get("src") or at.get("data")
            if fetched and at.get("rel") not in ("canonical", "next", "prev"):
                self.found.append(fetched)
        if tag == "img" and not at.get("alt"):
            self.images_without_text.append(str(at))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("material", "mkdocstrings_handlers"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install '.[docs]')")
    out = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return out


def _pages(site: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(site.rglob("*.html")):
        yield path.relative_to(site).as_posix(), path.read_text(encoding="utf-8")


def test_no_page_asks_another_server(site: Path) -> None:
    pages = dict(_pages(site))
    assert len(pages) == len([*DOCS.rglob("*.md")]) + 1  # and 404.html
    for name, text in pages.items():
        assert not [url for url in _Resources(text).found if re.match(r"(https?:)?//", url)], name
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)[^;)]*https?://", style.read_text(encoding="utf-8")), style


def test_every_image_has_a_text_and_headings_come_in_order(site: Path) -> None:
    for name, text in _pages(site):
        read = _Resources(text)
        assert read.images_without_text == [], name
        assert read.headings[0] == 1, name
        assert read.headings.count(1) == 1, name
        assert all(b <= a + 1 for a, b in zip(read.headings, read.headings[1:], strict=False)), (name, read.headings)


def test_every_document_is_in_the_navigation(site: Path) -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    there = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")}
    assert there == listed
    assert len(there) <= 20
    assert {p.replace(".md", ".html") for p in listed & there} <= {name for name, _ in _pages(site)}


def test_public_modules_are_in_the_reference(site: Path) -> None:
    text = (site / "library.html").read_text(encoding="utf-8")
    modules = [
        "api",
        "records",
        "store",
        "errors",
        "prompts.library",
        "prompts.spans",
        "measures.base",
        "measures.view",
        "measures.nulls",
        "engine.data",
        "claims.base",
        "schema",
        "measures.recognition",
        "measures.pairings",
        "prompts.recombine",
        "recombined",
    ]
    for part in ("stats", "tables", "claims"):
        files = (ROOT / "src/bindscope" / part).glob("*.py")
        modules += [f"{part}.{p.stem}" for p in files if p.stem not in ("__init__", "causal_figures")]
    for module in modules:
        assert f'id="bindscope.{module}"' in text, module
        tree = ast.parse((ROOT / "src/bindscope" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"
                assert f'id="bindscope.{module}.{node.name}"' in text, f"{module}.{node.name}"
    assert 'id="bindscope.store.Store.read"' in text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    page = import_or_skip()
    with page.sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=page.CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def import_or_skip() -> Any:
    """tests/test_page.py, which skips by name where Playwright or axe-core is missing."""
    import test_page

    if test_page.CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    return test_page


@pytest.mark.parametrize(
    ("name", "scheme"), [*((page, "light") for page in ("concepts", "calibration", "library")), ("concepts", "dark")]
)
def test_pages_break_no_rule_of_axe(site: Path, browser: Any, name: str, scheme: str) -> None:
    at = import_or_skip().Visit(browser, site / f"{name}.html", wait="main", color_scheme=scheme)
    try:
        at.page.wait_for_load_state("load")
        assert at.faults == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in at.requests)
        if scheme == "light":
            assert at.violations() == []
        else:
            assert at.violations(import_or_skip().COLOR_RULES) == []
    finally:
        at.context.close()


def test_pages_are_read_without_javascript(site: Path, browser: Any) -> None:
    at = import_or_skip().Visit(browser, site / "concepts.html", java_script_enabled=False)
    try:
        assert at.page.locator("h1").is_visible()
        assert at.page.locator("article img").count() == 4
        assert at.page.locator("article table").count() == 3
        assert at.page.get_by_role("link", name="the claims").is_visible()
    finally:
        at.context.close()


# Citation


def test_the_citation_is_valid_and_of_this_version() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert version is not None
    assert cff["cff-version"] == "1.2.0"
    assert str(cff["version"]) == version[1]
    assert f"version = {{{version[1]}}}" in page("index")
    assert {"cff-version", "message", "title", "authors"} <= cff.keys()  # what the schema requires
    assert cff["type"] in ("software", "dataset")
    for authors in [cff["authors"], *(reference["authors"] for reference in cff["references"])]:
        assert authors
        assert all({"name"} <= a.keys() or {"family-names"} <= a.keys() for a in authors)
    (reference,) = cff["references"]
    assert reference["url"] in page("index")
    assert reference["title"] in page("index")
    assert cff["title"] in page("index")
