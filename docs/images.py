"""Draws the pictures of the README from a run of the tiny suite:  python docs/images.py runs/tiny docs/images"""

import sys
from pathlib import Path

from bindscope.report.figures import emergence, png
from bindscope.stats.summary import by_checkpoint
from bindscope.store import Store

store, out = Store(Path(sys.argv[1]), create=False), Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
table = by_checkpoint(store.read("binding"), store.read("recognition"))
(out / "tiny-binding.png").write_bytes(
    png(emergence(table, {"eb_star": "EB* of the terms", "null": "EB* of other windows (null)"}, "Binding", "EB*"))
)
(out / "tiny-recognition.png").write_bytes(
    png(emergence(table, {"accuracy": "recognition accuracy", "chance": "chance"}, "Recognition", "accuracy"))
)
