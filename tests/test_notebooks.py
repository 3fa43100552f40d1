"""The notebooks run as stored: without an error or a warning, offline, and with the same numbers.

Where a number has changed for a reason, `python tests/test_notebooks.py` runs them all and stores them again.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

BOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
#: A warning of tqdm if ipywidgets is not installed; no bar is drawn.
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found", "HF_HUB_OFFLINE": "1"}


def _executed(path: Path, folder: Path) -> Any:
    """The notebook, run in `folder` from the first cell to the last. Raises CellExecutionError."""
    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=600, kernel_name="python3", resources=where, record_timing=False).execute()
    return book


def _cells(book: Any) -> list[Any]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def _text(cell: Any) -> str:
    """The output of a cell as text: what it prints, and the text form of what it shows."""
    return "\n".join(o.text if o.output_type == "stream" else o.data["text/plain"] for o in cell.outputs)


def _agree(one: str, other: str) -> bool:
    """The same words, and the same numbers but for the last digit that is shown (processors round differently)."""
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (one, other)]
    numbers = [[float(n.replace("−", "-").replace(",", "")) for n in NUMBER.findall(text)] for text in (one, other)]
    return words[0] == words[1] and bool(np.allclose(*numbers, rtol=0, atol=0.0025))


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_it_runs_and_gives_the_stored_output(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in QUIET.items():
        monkeypatch.setenv(key, value)
    stored, now = _cells(nbformat.read(path, as_version=4)), _cells(_executed(path, tmp_path))
    assert not [o.text for cell in now for o in cell.outputs if o.get("name") == "stderr"]
    stale = [(_text(a), _text(b)) for a, b in zip(stored, now, strict=True) if not _agree(_text(a), _text(b))]
    assert not stale


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_it_is_stored_with_outputs_that_need_no_network(path: Path) -> None:
    assert path.stat().st_size < 300_000
    cells = _cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [o.data for cell in cells for o in cell.outputs if "data" in o]
    for data in shown:
        assert not re.search(
            r"<script|https?://(?!www\.w3\.org)", data.get("text/html", "") + data.get("image/svg+xml", "")
        )
        if drawing := data.get("image/svg+xml"):  # described in words for those who do not see it
            assert len(ElementTree.fromstring(drawing).attrib["aria-label"]) > 80
    assert not re.search(r"/tmp/|/home/|/root/", path.read_text(encoding="utf-8"))


def test_there_are_four() -> None:
    assert [path.stem for path in BOOKS] == ["ablation_by_hand", "emergence", "quickstart", "your_own_domain"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("EB*  0.656 k 2", "EB*   0.657  k 2", True),
        ("EB* 0.656", "EB* 0.66", False),
        ("-0.000 at step 1,000", "0.001 at step 1,000", True),
        ("step 1,000", "step 1,001", False),
        ("p 0.05 [-0.1, +0.2]", "p 0.05 [-0.1, +0.2]", True),
        ("the same: True", "the same: False", False),
        ("1 2", "1", False),
        ("head 1.4", "head 2.4", False),
    ],
)
def test_what_counts_as_the_same(one: str, other: str, same: bool) -> None:
    assert _agree(one, other) == same


if __name__ == "__main__":
    os.environ |= QUIET
    for book in BOOKS:
        with TemporaryDirectory() as place:
            nbformat.write(_executed(book, Path(place)), book)
