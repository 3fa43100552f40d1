"""Fixtures shared by the tests. Everything runs offline."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import settings

import tokenizers_made

if TYPE_CHECKING:  # the process that only hands out the tests reads this file too, and needs no torch
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

#: How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SHARED = Path(os.environ.get("BINDSCOPE_SHARED", Path(__file__).parents[2] / "shared"))
REAL_TOKENIZERS = ("gpt2", "neox", "olmo", "llama3", "qwen25")


def shared(*parts: str) -> Path:
    """A file of the reference data that lies beside a developer's checkout; the test is skipped where it does not."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference file {'/'.join(parts)} is not at hand (set BINDSCOPE_SHARED)")
    return path


@pytest.fixture(scope="session", params=REAL_TOKENIZERS)
def real_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each of five real tokenizers."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(shared("tokenizers", request.param, "tokenizer.json")))


@pytest.fixture(scope="session", params=tokenizers_made.KINDS)
def made_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each kind of tokenizer that published models use, with a small vocabulary made on the spot."""
    return tokenizers_made.made(request.param)


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """A small tokenizer trained on the library's prompts and the neutral text."""
    import models
    from bindscope.engine.prepare import neutral_text
    from bindscope.prompts.build import build
    from bindscope.prompts.library import library

    return models.tokenizer([p.text for p in build(library().select("accessibility"), "cloze")] + [neutral_text()])


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the README, run once for all workers of pytest-xdist, each of which has a copy of its results."""
    from bindscope.cli import main

    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    out = place / "tiny-run"
    with (place / "tiny-run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "report.html").exists():
            assert main(["run", "tiny", "--out", str(out)]) == 0
    return Path(shutil.copytree(out, tmp_path_factory.mktemp("tiny") / "run"))


@pytest.fixture(scope="session")
def suite_folder(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerFast) -> Path:
    """A suite of two random GPT-NeoX checkpoints, the way Trainer writes them."""
    import models

    folder = tmp_path_factory.mktemp("suite")
    words.save_pretrained(folder)
    for step in (0, 10):
        models.save(folder / f"checkpoint-{step}", None, seed=step, vocab_size=len(words))
    return folder
