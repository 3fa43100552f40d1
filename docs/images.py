"""Draws the pictures of README and docs/ from runs of the tiny suite and of SmolLM2-135M (smollm2-causal):

python docs/images.py runs/tiny runs/smollm2-causal docs/images

`bindscope report` writes the page, and Chromium takes the pictures of it (Debian: chromium). If paper.pdf is there,
pdftoppm (poppler-utils) draws its first page.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from playwright.sync_api import sync_playwright

from bindscope.charts.axes import lines as curves
from bindscope.charts.figure import png, styled, svg
from bindscope.store import Store
from bindscope.tables.groups import by_group
from bindscope.tables.summary import by_checkpoint

store, other, out = Store(Path(sys.argv[1]), create=False), Path(sys.argv[2]), Path(sys.argv[3])
out.mkdir(parents=True, exist_ok=True)


def draw(table: pd.DataFrame, lines: dict[str, str], title: str, axis: str, name: str) -> None:
    (out / name).write_bytes(png(svg(styled(curves(table, lines, axis).properties(title=title)))))


groups = by_group(store.read("binding"))
pairs = groups[groups["k"] == 2].set_index("step")
table = pd.DataFrame({"step": pairs.index.unique()}).set_index("step")
for group, name in (("real", "terms"), ("tiny-collocation", "others")):
    for end in ("", "_low", "_high"):
        table[f"{name}{end}"] = pairs.loc[pairs["group"] == group, f"eb_star{end}"]
lines = {"terms": "terms that the model is taught facts about", "others": "phrases as frequent, without any facts"}
draw(table.reset_index(), lines, "Binding of two tokens, same sentences", "EB*", "tiny-binding.png")
summary = by_checkpoint(store.read("binding"), store.read("recognition"))
lines = {"accuracy": "recognition accuracy", "chance": "chance"}
draw(summary, lines, "Recognition", "accuracy", "tiny-recognition.png")

with sync_playwright() as browsers:
    chromium = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    for run, scheme, width, anchor, name in (
        (store.root, "light", 1100, "", "report-light.png"),
        (store.root, "dark", 1100, "", "report-dark.png"),
        (store.root, "light", 1100, "explorer", "report-explorer.png"),
        (store.root, "dark", 1100, "claim-V", "report-claim.png"),
        (store.root, "light", 360, "", "report-phone.png"),
        (other, "light", 1100, "claim-C5", "smollm2-edits.png"),
    ):
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
        page.goto((run / "report.html").resolve().as_uri() + f"#{anchor}")
        page.locator("#x").wait_for(state="attached")
        page.wait_for_timeout(300)
        page.screenshot(path=out / name)
    chromium.close()

if (paper := store.root / "paper.pdf").exists():
    subprocess.run(
        ["pdftoppm", "-r", "60", "-png", "-f", "1", "-l", "1", "-singlefile", paper, out / "paper"], check=True
    )
