"""The shipped suite, measured by the shipped command: sizes, dynamics, table and report."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest

from bindscope import study as studies
from bindscope.cli import main
from bindscope.models.suites import suite
from bindscope.stats.summary import by_checkpoint
from bindscope.store import Store
from bindscope.terms.library import library
from bindscope.terms.prompts import build

FOLDER = Path(suite("tiny").checkpoints[0].repo).parent


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of the README, run once."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    assert main(["run", "tiny", "--out", str(out)]) == 0
    return out


def test_sizes() -> None:
    refs = suite("tiny").checkpoints
    steps = [ref.step for ref in refs]
    assert len(steps) >= 10
    assert steps[0] == 0
    assert steps == sorted(steps)
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) <= 11e6
    tensors = load_file(Path(refs[-1].repo) / "model.safetensors")
    assert sum(t.numel() for t in tensors.values()) <= 500_000
    assert {t.dtype for t in tensors.values()} == {torch.float16}


def test_every_checkpoint_has_other_weights() -> None:
    assert len({(Path(r.repo) / "model.safetensors").read_bytes() for r in suite("tiny").checkpoints}) == 12


def test_dynamics(ran: Path) -> None:
    """At chance at step 0 and far above it at the end, on frames that were not trained."""
    recognition = Store(ran).read("recognition")
    by_step = recognition.groupby("step")["correct_per_token"]
    n = len(recognition) // recognition["step"].nunique()
    assert n == 220
    start, end = by_step.sum().iloc[0], by_step.mean().iloc[-1]
    # 220 prompts are 55 questions in four rotations; per question at most one independent draw
    assert binomtest(round(start / 4), 55, 0.25).pvalue > 0.05
    assert end > 0.9
    summary = by_checkpoint(Store(ran).read("binding"), recognition)
    assert summary["eb_star"].iloc[0] < 0.02
    assert summary["eb_star"].max() > 0.3


def test_model_card_gives_the_accuracies_that_are_measured(ran: Path) -> None:
    card = (FOLDER / "README.md").read_text()
    stated = {
        int(step): float(listed)
        for step, listed in re.findall(r"^\| (\d+) \| ([\d.]+) \| [\d.]+ \| [\d.]+ \|$", card, re.M)
    }
    measured = Store(ran).read("recognition").groupby("step")["correct_per_token"].mean().to_dict()
    assert stated == pytest.approx(measured, abs=0.0051)  # one prompt of 220 may turn on the last digit of a sum


def test_prompts_were_not_in_the_training_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes" / "tiny"))
    corpus = pytest.importorskip("corpus", reason="the recipe is part of the repository, not of the package")
    text = " ".join(document for document, _ in zip(corpus.corpus(5000, 20), range(5000), strict=False)).lower()
    assert "screen reader" in text
    for form in ("listed", "cloze"):
        for prompt in build(library().select("accessibility"), form, "spread"):
            assert prompt.text.lower() not in text
    del sys.modules["corpus"]


def test_table_and_report(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--out", str(ran)]) == 0
    shown = capsys.readouterr().out
    assert "12 found in the store" in shown
    for column in ("step", "EB*", "null", "excess", "accuracy", "margin"):
        assert column in shown
    assert str(ran / "report.html") in shown
    summary = by_checkpoint(Store(ran).read("binding"), Store(ran).read("recognition"))
    for row in summary.to_dict("records"):
        line = next(x for x in shown.splitlines() if x.split() and x.split()[0] == f"{row['step']:,}")
        assert [float(x) for x in line.split()[1:]] == pytest.approx(
            [row[c] for c in ("eb_star", "null", "excess", "accuracy", "margin")], abs=5.1e-4
        )
    page = (ran / "report.html").read_text()
    assert page.count("<svg") == 2
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)|@import|url\(""", page)  # no request leaves the page


def test_revision_by_name_and_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    stars = []
    for revision in ("checkpoint-250", "250"):
        assert main(["measure", "tiny", "skip link", "--revision", revision, "--json"]) == 0
        stars.append(capsys.readouterr().out)
    assert stars[0] == stars[1]
    assert main(["measure", "tiny", "skip link", "--revision", "251"]) == 2
    assert "checkpoint-250" in capsys.readouterr().err


def test_study_is_what_it_says() -> None:
    study = studies.load("tiny")
    prompts = pd.DataFrame([vars(p) for p in study.build_prompts()])
    assert prompts["term"].nunique() == 11
    assert prompts.groupby("term")["task"].value_counts().unstack().to_numpy().tolist() == [[6, 20]] * 11
