"""The shipped suites, measured by the shipped command: sizes, dynamics, ground truth, card, table and report."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest

import measuring
from bindscope import experiment as experiments
from bindscope.checkpoints.load import load
from bindscope.checkpoints.suites import suite
from bindscope.cli import main
from bindscope.prompts.build import build
from bindscope.prompts.library import library
from bindscope.store import Store
from bindscope.tables.groups import by_group
from bindscope.tables.observations import own_prompts
from bindscope.tables.summary import by_checkpoint

SUITES = ("tiny", "tiny-seed-21")
FOLDER = Path(suite("tiny").checkpoints[0].repo).parents[1]


@pytest.mark.parametrize("name", SUITES)
def test_sizes(name: str) -> None:
    refs = suite(name).checkpoints
    steps = [ref.step for ref in refs]
    assert len(steps) >= 12
    assert steps[0] == 0
    assert steps == sorted(steps)
    tensors = load_file(Path(refs[-1].repo) / "model.safetensors")
    assert sum(t.numel() for t in tensors.values()) <= 500_000
    assert {t.dtype for t in tensors.values()} == {torch.float16}


def test_what_ships_weighs_at_most_20_megabytes() -> None:
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file()) <= 20e6


def test_every_checkpoint_has_other_weights() -> None:
    refs = [ref for name in SUITES for ref in suite(name).checkpoints]
    assert len({(Path(ref.repo) / "model.safetensors").read_bytes() for ref in refs}) == len(refs) == 24


def test_dynamics(tiny_run: Path) -> None:
    """At chance at step 0 and far above it at the end, on stems that were not trained."""
    recognition = Store(tiny_run).read("recognition")
    by_step = recognition.groupby("step")["correct_per_token"]
    assert set(by_step.size()) == {220}  # 11 terms x 5 questions x 4 rotations; per question one independent draw
    start, end = by_step.sum().iloc[0], by_step.mean().iloc[-1]
    assert binomtest(round(start / 4), 55, 0.25).pvalue > 0.01
    assert end > 0.9
    summary = by_checkpoint(Store(tiny_run).read("binding"), recognition)
    assert summary["eb_star"].iloc[0] < 0.02
    assert summary["eb_star"].max() > 0.3


@pytest.fixture(scope="module")
def whole() -> dict[str, pd.DataFrame]:
    """The last checkpoint on all that it was taught, and on the phrases that it was not."""
    ref = suite("tiny").checkpoints[-1]
    experiment = experiments.load("tiny-full").model_copy(update={"measures": ("binding", "recognition")})
    tables = measuring.tables(load(ref, bos="on"), experiment.build_prompts(), experiment.protocol_of("on"))
    place = {"suite": "tiny", "revision": "last", "step": ref.step}
    return {name: table.assign(**place) for name, table in tables.items()}


def test_model_card_gives_the_accuracy_that_is_measured(whole: dict[str, pd.DataFrame]) -> None:
    card = (FOLDER / "README.md").read_text()
    card = card[card.index("Seed 20:") : card.index("Seed 21:")]
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|", card, re.M)
    step, listed, star = rows[-1]
    assert int(step) == suite("tiny").checkpoints[-1].step
    right = whole["recognition"]["correct_per_token"]
    assert len(right) == 860
    assert float(listed) == pytest.approx(right.mean(), abs=0.0012)  # a prompt may turn on the last digit of a sum
    assert float(star) == pytest.approx(own_prompts(whole["binding"])["eb_star"].mean(), abs=6e-4)


def test_model_card_gives_the_binding_of_the_groups(whole: dict[str, pd.DataFrame]) -> None:
    card = (FOLDER / "README.md").read_text()
    card = card[card.index("Seed 20, step") : card.index("Seed 21, step")]
    rows = re.findall(r"^\| (\w+) \| (\d) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|", card, re.M)
    stated = {(group, int(k)): (int(n), float(eb), float(mass)) for group, k, n, eb, mass in rows}
    table = by_group(whole["binding"])
    names = {"concept": "real", "collocation": "tiny-collocation", "nonsense": "tiny-nonsense"}
    assert {group for group, _ in stated} == set(names)
    for (group, k), (n, eb, mass) in stated.items():
        (row,) = table[(table["group"] == names[group]) & (table["k"] == k)].to_dict("records")
        assert row["terms"] == n
        assert (row["eb_star"], row["eb_star_mass"]) == pytest.approx((eb, mass), abs=6e-4)


def test_groups_have_like_token_counts(whole: dict[str, pd.DataFrame]) -> None:
    """So that concepts, collocations and nonsense can be compared at equal k."""
    cells = by_group(whole["binding"]).pivot_table(index="group", columns="k", values="terms")
    assert len(cells) == 3
    for k in (2, 3, 4):
        assert cells[k].min() >= 4
        assert cells[k].max() - cells[k].min() <= 2


def test_prompts_were_not_in_the_training_text() -> None:
    recipe = Path(__file__).parents[1] / "recipes" / "tiny"
    if not recipe.exists():
        pytest.skip("the recipe is part of the repository, not of the package")
    code = "from corpus import corpus; print('\\n'.join(corpus(5000, 20)))"
    made = subprocess.run([sys.executable, "-c", code], cwd=recipe, capture_output=True, text=True, check=True)
    text = made.stdout.lower()
    assert "screen reader" in text
    for form in ("listed", "cloze"):
        for prompt in build(library().select("accessibility"), form, "spread"):
            assert prompt.text.lower() not in text
    for name in library().sets["tiny-nonsense"]:
        assert name not in text


def test_table_and_report(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--out", str(tiny_run)]) == 0
    shown = capsys.readouterr().out
    assert "12 found in the store" in shown
    for column in ("step", "EB*", "null", "excess", "accuracy", "margin", "generation"):
        assert column in shown
    assert str(tiny_run / "report.html") in shown
    store = Store(tiny_run)
    summary = by_checkpoint(store.read("binding"), store.read("recognition"), store.read("generation"))
    columns = ("eb_star", "null", "excess", "accuracy", "margin", "generation")
    for row in summary.to_dict("records"):
        line = next(x for x in shown.splitlines() if x.split() and x.split()[0] == f"{row['step']:,}")
        assert [float(x) for x in line.split()[1:]] == pytest.approx([row[c] for c in columns], abs=5.1e-4)
    page = (tiny_run / "report.html").read_text()
    assert page.count("<svg") == len(list((tiny_run / "figures").glob("*.svg"))) >= 12
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:,)|@import|url\((?!#)""", page)  # no request leaves it


def test_revision_by_name_and_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    stars = []
    for revision in ("checkpoint-250", "250"):
        assert main(["measure", "tiny", "skip link", "--revision", revision, "--json"]) == 0
        stars.append(capsys.readouterr().out)
    assert stars[0] == stars[1]
    assert main(["measure", "tiny", "skip link", "--revision", "251"]) == 2
    assert "checkpoint-250" in capsys.readouterr().err


def test_study_is_what_it_says() -> None:
    experiment = experiments.load("tiny")
    prompts = pd.DataFrame([vars(p) for p in experiment.build_prompts()])
    own = prompts[prompts["task"] != "carrier"]
    assert own.groupby("term")["task"].value_counts().unstack().to_numpy().tolist() == [[6, 20]] * 11
    assert set(prompts["group"]) == {"real", "tiny-collocation", "tiny-nonsense"}
    assert experiments.load("tiny-full").suites == SUITES
