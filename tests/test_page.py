"""The page in a browser: accessible in every state, all of it by keyboard, nothing requested, every text only text.

Headless Chromium (Debian: `apt-get install chromium`) driven by Playwright; rules of axe-core.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from bindscope.report.comparison import write_comparison
from bindscope.report.files import write_report
from bindscope.store import Store
from bindscope.tables.run import RunTables
from stores import Invention, analysed

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install '.[dev]')")
pytest.importorskip("axe_playwright_python", reason="axe-core is not installed (pip install '.[dev]')")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")

MARK = (
    " <script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'`{{7*7}}\u202e\u0007\u2028 \u05e9\u05dc\u05d5\u05dd"
)
SEEN = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'`{{7*7}}\u27e8U+202E\u27e9\u27e8U+0007\u27e9"
WIDTHS = {"desktop": 1280, "phone": 320}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
#: The only rules of axe-core whose result depends on the color scheme.
COLOR_RULES = ["color-contrast", "link-in-text-block"]


def _report(folder: Path, mark: str) -> Path:
    store = Invention(folder, suites=2, steps=6, terms=3, mark=mark).store
    return write_report(RunTables(store), analysed(store))[0]


@pytest.fixture(scope="session")
def plain_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every figure in it."""
    return _report(tmp_path_factory.mktemp("page") / "run", "")


@pytest.fixture(scope="session")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with markup, script, and characters that act, in every field that holds text."""
    return _report(tmp_path_factory.mktemp("hostile") / "run", MARK)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """An open page, with what it requested and complained about."""

    def __init__(self, browser: Any, path: Path, wait: str = "#x:not([hidden])", **options: Any) -> None:
        self.context = browser.new_context(**{"reduced_motion": "reduce", "offline": True} | options)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(f"dialog: {dialog.message}"))
        self.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            self.page.locator(wait).first.wait_for()

    def violations(self, rules: Sequence[str] = RULES) -> list[str]:
        """What axe-core finds. The rows of a table are alike: three of each stand for all, others are left out."""
        from axe_playwright_python.sync_playwright import Axe

        self.page.evaluate("document.querySelectorAll('tbody tr:nth-child(n + 4)').forEach((row) => row.remove())")
        options = {"runOnly": list(rules), "resultTypes": ["violations"]}
        found = Axe().run(self.page, options=options).response["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html'][:200]} ({len(v['nodes'])} nodes)" for v in found]

    def open_all(self) -> None:
        self.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    opened: list[Visit] = []

    def start(path: Path, **options: Any) -> Visit:
        opened.append(Visit(browser, path, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.context.close()


@pytest.mark.parametrize(("width", "scheme"), [("desktop", "light"), ("phone", "light"), ("desktop", "dark")])
def test_no_rule_of_axe_is_broken_in_any_state(visit: Any, plain_page: Path, scheme: str, width: str) -> None:
    at = visit(plain_page, color_scheme=scheme, viewport={"width": WIDTHS[width], "height": 800})
    at.open_all()
    at.page.select_option("#x-suite", "1")
    at.page.select_option("#x-point", "0")
    at.page.select_option("#x-prompt", index=5)  # a generation prompt: texts instead of choices
    at.page.locator("#x-heads input").nth(2).check()
    assert at.page.locator("#x-texts mark").count() > 0
    assert at.violations(RULES if scheme == "light" else COLOR_RULES) == []
    assert at.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]
    assert at.faults == []


def test_no_rule_of_axe_is_broken_before_anything_is_opened(visit: Any, plain_page: Path) -> None:
    assert visit(plain_page).violations() == []


def test_zoomed_to_200_percent_nothing_is_cut_off(visit: Any, plain_page: Path) -> None:
    """1,280 pixels at 200% are 640 of the page's: it flows anew, only figures and tables scroll."""
    at = visit(plain_page, viewport={"width": 640, "height": 400}, device_scale_factor=2)
    at.open_all()
    assert at.page.evaluate("document.documentElement.scrollWidth") <= 640
    wide = "[...document.querySelectorAll('main p, main li, main dd, summary, select, button')].filter((e) => "
    assert at.page.evaluate(f"{wide} e.offsetParent && e.getBoundingClientRect().right > 641).length") == 0


def test_the_comparison_breaks_no_rule(visit: Any, plain_page: Path, tmp_path: Path) -> None:
    other = Invention(tmp_path / "other", suites=2, steps=6, terms=3, seed=1).store
    compared, _ = write_comparison(RunTables(other), RunTables(Store(plain_page.parent, create=False)))
    at = visit(compared, wait=".downloads:not([hidden])")
    at.open_all()
    assert at.violations() == []
    assert at.faults == []
    assert at.requests == [compared.as_uri()]


def test_hostile_text_is_only_text(visit: Any, hostile_page: Path) -> None:
    at = visit(hostile_page)
    at.open_all()
    for place in ("#x-suite", "#x-point", "#x-term", "#x-prompt"):
        for value in at.page.locator(f"{place} option").evaluate_all("all => all.map((o) => o.value)")[:6]:
            at.page.select_option(place, value)
    assert at.faults == []
    assert at.page.evaluate("document.querySelectorAll('script, img, iframe, object, embed').length") == 2
    assert (
        at.page.evaluate(
            "[...document.querySelectorAll('*')].some((e) => e.getAttributeNames().some((n) => n.startsWith('on')))"
        )
        is False
    )
    text = at.page.evaluate("document.body.textContent")
    assert text.count(SEEN) > 100
    assert "\u202e" not in text
    assert "\u0007" not in text
    for place in ("h1", "main .lead", "figure svg", "#x-tokens", "#x-table", "#x-written", "#x-status", "dd", "table"):
        seen = at.page.locator(place).first.evaluate("(e) => e.textContent")
        if place == "#x-table" and not seen:
            at.page.select_option("#x-prompt", index=0)
            seen = at.page.locator(place).first.evaluate("(e) => e.textContent")
        assert "<script>alert(1)</script>" in seen or place == "table", place
    assert at.violations() == []
    assert at.requests == [hostile_page.as_uri()]


def test_no_request_leaves_the_page(visit: Any, plain_page: Path) -> None:
    at = visit(plain_page)
    at.open_all()
    assert at.requests == [plain_page.as_uri()]
    targets = at.page.evaluate(
        "[...document.querySelectorAll('[href], [src]')].map((e) => e.getAttribute('href') || e.getAttribute('src'))"
    )
    assert all(t.startswith("#") or t == "data:," for t in targets)
    policy = at.page.locator("meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_everything_is_reached_by_keyboard(visit: Any, plain_page: Path) -> None:
    at = visit(plain_page, viewport={"width": 1000, "height": 800})
    page = at.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0  # it shows when it has the focus
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    seen, stops = set[str](), 0
    while stops < 600:
        page.keyboard.press("Tab")
        stops += 1
        here = page.evaluate(
            "(() => { const e = document.activeElement, s = getComputedStyle(e); "
            "return e === document.body ? null : [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)]; })()"
        )
        if here is None:
            break
        tag, style, width = here
        seen.add(tag)
        assert style != "none", tag
        assert width >= 2, tag
    assert seen >= {"A", "SUMMARY", "BUTTON", "SELECT", "INPUT"}
    assert stops < 600


def test_the_explorer_by_keyboard_alone(visit: Any, plain_page: Path) -> None:
    page = visit(plain_page).page
    said = page.locator("#x-status")
    before = said.text_content()
    page.locator("#x-suite").focus()
    page.keyboard.press("ArrowDown")
    assert "model-1" in page.locator("#x-suite option:checked").text_content()
    assert said.text_content() != before
    page.keyboard.press("Tab")  # the checkpoint: the last one is chosen
    page.keyboard.press("Home")
    assert "step 0" in said.text_content()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert said.text_content().startswith("term 1,")
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert "generation: tutorial" in said.text_content()
    page.keyboard.press("Tab")  # the heads
    shown = page.locator("#x-looks").text_content()
    values = page.locator("#x-tokens small").all_text_contents()
    page.keyboard.press("ArrowDown")
    assert page.locator("#x-looks").text_content() != shown
    assert page.locator("#x-tokens small").all_text_contents() != values


def test_the_explorer_shows_what_the_store_holds(visit: Any, plain_page: Path) -> None:
    store = Store(plain_page.parent, create=False)
    binding, asked = store.read("binding"), store.read("recognition")
    row = binding[
        (binding["suite"] == "model-0") & (binding["step"] == 5000) & (binding["task"] == "recognition")
    ].iloc[0]
    page = visit(plain_page).page
    assert f"EB* {row['eb_star']:.3f}" in page.locator("#x-status").text_content()
    weights = [float(v) for v in page.locator("#x-tokens small").all_text_contents()]
    assert weights == pytest.approx([round(v, 2) for v in row["top_rows"][0]], abs=0.0051)
    marked = page.locator("#x-tokens .term bdi").all_text_contents()
    assert marked == [s.replace(" ", "\u00b7") for s in row["span_strings"]]
    mine = asked[(asked["suite"] == "model-0") & (asked["step"] == 5000) & (asked["question"] == row["question"])]
    assert len(mine) == 4
    for column, (_, question) in enumerate(mine.iterrows()):
        for place, choice in enumerate(question["choices"]):
            cells = page.locator("#x-table tbody tr").filter(has_text=choice).locator("td").all_text_contents()
            value = f"{question['logprob'][place] / question['choice_tokens'][place]:.2f}".replace("-", "\u2212")
            chosen = " \u25c0 chosen" if place == question["predicted_per_token"] else ""
            assert cells[column] == f"{value} ({'ABCD'[place]}){chosen}"
    right = page.locator("#x-table tbody th").filter(has_text="(right answer)").text_content()
    assert right.startswith(mine.iloc[0]["choices"][mine.iloc[0]["gold"]])


def test_downloads_are_the_files_of_the_folder(visit: Any, plain_page: Path) -> None:
    page = visit(plain_page, accept_downloads=True).page
    row = page.locator("[data-name='heads']")
    for label, name in (("Download CSV", "heads.csv"), ("Download SVG", "heads.svg")):
        with page.expect_download() as event:
            row.get_by_text(label).click()
        assert event.value.suggested_filename == name
        text = Path(event.value.path()).read_text(encoding="utf-8")
        if name.endswith("csv"):
            assert text == (plain_page.parent / "tables" / name).read_text(encoding="utf-8")
        else:
            assert "var(" not in text
            assert "#0067a5" in text


def test_it_can_be_read_without_javascript(visit: Any, plain_page: Path) -> None:
    page = visit(plain_page, java_script_enabled=False).page
    assert page.locator("#x").is_hidden()
    assert page.locator("#x-needs").is_visible()
    assert page.locator("figure svg").count() > 20
    assert page.locator("table").count() > 20


def test_motion_and_print(visit: Any, plain_page: Path) -> None:
    at = visit(plain_page)
    assert at.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    at.page.emulate_media(media="print")
    assert at.page.locator("nav").is_hidden()
    assert at.page.locator("#explorer").is_hidden()
    assert at.page.pdf(format="A4").startswith(b"%PDF")


def test_colors_stand_out_on_their_paper_in_both_themes() -> None:
    """Marks at 3:1 and more, texts and numbers in cells at 4.5:1 (WCAG 1.4.3, 1.4.11)."""
    style = resources.files("bindscope.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{([^}]*--s1[^}]*)\}", style)
    assert len(blocks) == 2
    for block in blocks:
        color = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for name in ("s1", "s2", "s3", "s4", "s5", "s6", "axis"):
            assert _contrast(color[name], color["paper"]) >= 3, name
        for name in ("ink", "soft", "link"):
            assert _contrast(color[name], color["paper"]) >= 4.5, name
        for i in range(8):
            assert _contrast(color["ink" if i < 4 else "paper"], color[f"h{i}"]) >= 4.5, i


def _contrast(a: str, b: str) -> float:
    def light(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
