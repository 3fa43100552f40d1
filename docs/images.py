"""Draws the pictures of the README from a run of the tiny suite:  python docs/images.py runs/tiny docs/images"""

import sys
from pathlib import Path

import pandas as pd

from bindscope.report.figures import emergence, png
from bindscope.stats.groups import by_group
from bindscope.stats.summary import by_checkpoint
from bindscope.store import Store

store, out = Store(Path(sys.argv[1]), create=False), Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)


def draw(table: pd.DataFrame, lines: dict[str, str], title: str, axis: str, name: str) -> None:
    (out / name).write_bytes(png(emergence(table, lines, title, axis)))


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
