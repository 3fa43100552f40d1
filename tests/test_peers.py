"""What the benchmarks compare with: contestants give bindscope's numbers, environments are made once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "peers"))

import environments
import model
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from work import batches

import measuring
import models
from bindscope.checkpoints.load import Loaded, load
from bindscope.checkpoints.suites import one, suite
from bindscope.engine.capture import TextInput
from bindscope.engine.passes import BATCH_TOKENS, _batches
from bindscope.engine.prepare import prepare
from bindscope.prompts.build import build
from bindscope.prompts.library import library
from bindscope.records import Prompt

PEERS = Path(environments.__file__).parent


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(suite("tiny").checkpoints[-1], dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Prompts of like and unlike lengths, terms of two and more tokens."""
    return [p for p in build(library().select("set-A"), order="given") if p.binds][::5]


@pytest.fixture(scope="module")
def work(loaded: Loaded, prompts: list[Prompt], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work file of the prompts."""
    items = [prepare(loaded, p) for p in prompts]
    spans = [list(item.span.tokens) if item.span else [] for item in items]
    rows = [
        {"id": item.prompt.id, "text": item.prompt.text, "ids": item.encoded.ids, "span": span}
        | ({"choices": [[0]]} if item.prompt.task == "generation" else {})  # whose token is predicted behind the text
        for item, span in zip(items, spans, strict=True)
    ]
    path = tmp_path_factory.mktemp("peers") / "work.json"
    parts: dict[str, Any] = {
        "binding": [i for i, span in enumerate(spans) if span],
        "recognition": [],
        "generation": [i for i, item in enumerate(items) if item.prompt.task == "generation"],
    }
    path.write_text(json.dumps({"rows": rows, "max_new_tokens": 5, **parts}))
    return path


class Contestant:
    """A worker, asked line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def asked(self, job: str, out: Path | None) -> dict[str, Any]:
        assert self.process.stdin is not None
        request = {"job": job, "out": None if out is None else str(out), "threads": 1}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.heard()


@contextmanager
def started(name: str, folder: Path, work: Path) -> Iterator[Contestant]:
    command = [sys.executable, PEERS / f"{name}.py", "--model", folder, "--work", work]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # closing the input ends it
        yield Contestant(process)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_eager_attention_gives_the_same_binding(
    loaded: Loaded, prompts: list[Prompt], work: Path, tmp_path: Path
) -> None:
    expected = measuring.tables(loaded, prompts, names=["eb_star"])["eb_star"]["eb_star"].dropna().tolist()
    with started("eager", Path(loaded.ref.repo), work) as worker:
        ready = worker.heard()
        assert ready["ready"]
        assert set(ready["versions"]) == {"torch", "numpy", "transformers", "python"}
        answer = worker.asked("binding", tmp_path / "out.npz")
        assert answer["seconds"] > 0
        assert answer["peak_mb"] > answer["extra_mb"] >= 0
        assert "binding" in worker.asked("bindign", None)["error"]  # and it goes on
        assert worker.asked("binding", None)["seconds"] > 0
    assert worker.process.returncode == 0
    assert len(expected) > 5
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["eb_star"], expected, atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_plain_decoding_gives_the_same_text(loaded: Loaded, prompts: list[Prompt], work: Path, tmp_path: Path) -> None:
    openings = [replace(p, max_tokens=5) for p in prompts if p.task == "generation"]
    generation = measuring.tables(loaded, openings, names=["generation"])["generation"]
    with started("plain", Path(loaded.ref.repo), work) as worker:
        assert worker.heard()["ready"]
        for job in ("forward", "read", "generation"):
            assert "error" not in worker.asked(job, tmp_path / f"{job}.npz")
    tokens = np.load(tmp_path / "generation.npz")["tokens"]
    texts = [loaded.tokenizer.decode(row[row >= 0], skip_special_tokens=True) for row in tokens]
    assert texts == generation["text"].tolist()
    assert len(set(texts)) > 1
    following = np.load(tmp_path / "read.npz")["next"]
    assert (following == tokens[:, 0]).all()


@given(st.lists(st.integers(1, 900), max_size=60))
def test_contestants_get_the_batches_of_bindscope(lengths: list[int]) -> None:
    """In other environments bindscope is not there to be asked."""
    ours = _batches([TextInput((0,) * n) for n in lengths], BATCH_TOKENS)
    assert list(batches([[0] * n for n in lengths])) == list(ours)


def test_a_model_that_cannot_be_loaded_is_said(tmp_path: Path, work: Path) -> None:
    with started("plain", tmp_path, work) as worker:
        assert str(tmp_path) in worker.heard()["error"]
    assert worker.process.returncode == 1


def test_an_environment_is_made_when_its_requirements_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    (tmp_path / "peer.txt").write_text("# nothing to install\n")
    python = environments.python_of("peer", tmp_path / "cache")
    assert subprocess.run([python, "-c", ""], check=True).returncode == 0
    mark = python.with_name("mark")
    mark.touch()
    assert environments.python_of("peer", tmp_path / "cache") == python
    assert mark.exists()
    (tmp_path / "peer.txt").write_text("# nothing else\n")
    environments.python_of("peer", tmp_path / "cache")
    assert not mark.exists()


def test_every_contestant_has_its_script_and_requirements() -> None:
    assert {name for name in environments.CONTESTANTS.values() if name} == set(environments.names())
    assert all((PEERS / f"{name}.py").is_file() for name in environments.CONTESTANTS)


@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
def test_a_saved_model_is_read_by_older_transformers(kind: str, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Whose configs name rotary parameters otherwise, and take defaults where they find none."""
    share = {"partial_rotary_factor": 0.5} if kind == "gpt_neox" else {}
    rope = {"rope_type": "default", "rope_theta": 5e4, **share}
    built = models.build(kind, {**models.ARCHITECTURES[kind][1], "vocab_size": len(words), "rope_parameters": rope})
    model.save(built, words, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {"rotary_pct": 0.5, "rotary_emb_base": 5e4} if kind == "gpt_neox" else {"rope_theta": 5e4}
    assert config.items() >= expected.items()
    again = load(one(str(tmp_path))[0], dtype="float32", device="cpu")
    assert again.model.config.rope_parameters["rope_theta"] == 5e4
