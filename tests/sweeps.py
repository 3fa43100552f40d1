"""Small sweeps for tests: suites of random checkpoints, in a folder or on a hub, and a study of two prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

import models
from bindscope.checkpoints import suites
from bindscope.cli import main
from bindscope.measures import registry
from bindscope.schema import PROMPTS
from bindscope.store import Store

REPO = "lab/suite"
STEPS = (0, 10, 20)
_PROMPTS = [
    {"term": "alt text", "task": "recognition", "template": "For an image, alt text is",
     "choices": ["a text that stands for the image", "a heading", "a link"], "answer_idx": 0, "prompt_id": "r1"},
    {"term": "skip link", "task": "recognition", "template": "At the top of a page, a skip link leads to",
     "choices": ["the menu", "the main part of the page", "a form"], "answer_idx": 1, "prompt_id": "r1"},
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import it, and every test of the file has a cache of its own."""
    monkeypatch.setenv("BINDSCOPE_CACHE", str(tmp_path / "bindscope-cache"))


@pytest.fixture(name="steps", scope="module")
def steps_fixture(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerFast) -> dict[str, Path]:
    """Three random checkpoints: "stepN" -> folder."""
    return checkpoints(tmp_path_factory.mktemp("steps"), words, STEPS)


def checkpoints(folder: Path, words: PreTrainedTokenizerFast, steps: Iterable[int]) -> dict[str, Path]:
    """Random GPT-NeoX models, each with its tokenizer: "stepN" -> folder."""
    return {f"step{n}": models.save(folder / f"step{n}", words, seed=n, num_hidden_layers=2) for n in steps}


def catalogue(monkeypatch: pytest.MonkeyPatch, steps: Iterable[int], name: str = "lab", repo: str = REPO) -> None:
    """Put a suite of hub revisions called stepN into the catalogue."""
    entry = suites.SuiteEntry.model_validate({"repo": repo, "bos": "on", "revisions": [[f"step{n}", n] for n in steps]})
    entries = dict(suites._catalogue()) | {name: entry}
    monkeypatch.setattr(suites, "_catalogue", lambda: entries)


def experiment(folder: Path, suite: str | list[str], **changes: object) -> str:
    """A study file of two prompts."""
    folder.mkdir(exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _PROMPTS))
    asked = {"name": "s", "suites": suite, "prompts": "prompts.jsonl", "bos": "on"} | changes
    (folder / "experiment.yaml").write_text(json.dumps(asked))
    return str(folder / "experiment.yaml")


def run(experiment: str, out: Path, *options: str) -> int:
    return main(["run", experiment, "--out", str(out), *options])


def stored(*measures: str) -> list[str]:
    """The tables that a checkpoint gets by these measures of spans and questions."""
    chosen, _ = registry.chosen(measures)
    return [PROMPTS.name, *(table.name for measure in chosen.values() for table in measure.tables)]


def tables(out: Path) -> dict[str, pd.DataFrame]:
    """All that was measured, without how and when."""
    store = Store(out, create=False)
    return {name: store.read(name) for name in ("binding", *(table.name for table in registry.tables()))}


def same(a: dict[str, pd.DataFrame], b: dict[str, pd.DataFrame]) -> None:
    """Equal to the last bit."""
    assert not a["binding"].empty
    for name, frame in a.items():
        pd.testing.assert_frame_equal(frame, b[name], check_exact=True)


def shards(out: Path) -> dict[str, tuple[int, int]]:
    """Every shard, and what changes when it is written again."""
    found = {}
    for path in out.rglob("*.parquet"):
        stat = path.stat()
        found[str(path.relative_to(out))] = (stat.st_ino, stat.st_mtime_ns)
    return found
