"""Control groups: matched in tokens under real tokenizers, in the same sentences, and without effect on the terms."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerBase

from bindscope.claims.discriminant_validity import differences
from bindscope.claims.unlockability import exemplar_gains
from bindscope.cli import main
from bindscope.experiment import load
from bindscope.prompts.audit import by_k, unmatched
from bindscope.prompts.build import carriers, frames
from bindscope.prompts.library import control_groups, library
from bindscope.prompts.spans import encode, find, locate
from bindscope.records import Term
from bindscope.store import Store
from bindscope.tables.behavior import behavior, gains, positions, scoring, variability
from bindscope.tables.groups import by_group, carrier_rows
from bindscope.tables.observations import observations, own_prompts

REAL = library().select("accessibility")
GROUPS = [
    "nonsense", "rare-pairs", "cross-language", "reversed-order", "cross-term-swap", "semantic-field",
    "frequency-matched", "random-pairs", "domain-adjacent", "wrong-domain",
]  # fmt: skip


def test_ten_groups_of_at_least_twelve() -> None:
    assert list(control_groups()) == GROUPS
    members = [name for group in GROUPS for name in library().sets[group]]
    assert all(len(library().sets[group]) >= 12 for group in GROUPS)
    assert len(set(members)) == len(members) == len(library().sets["controls"])


def test_controls_and_terms_are_different_expressions() -> None:
    for group in GROUPS:
        for control in library().select(group):
            for term in REAL:
                assert not find(control.name, term.name, term.aliases), (control.name, term.name)
                assert not find(term.name, control.name), (control.name, term.name)


def test_groups_are_what_they_say() -> None:
    firsts, lasts = {t.name.split()[0] for t in REAL}, {t.name.split()[-1] for t in REAL}
    for name in library().sets["cross-term-swap"]:
        assert (name.split()[0] in firsts, name.split()[-1] in lasts) == (True, True), name
    words = {w for t in REAL for w in re.findall(r"\w+", " ".join((t.name, *t.aliases)).lower())}
    for name in library().sets["domain-adjacent"]:
        assert len(words & set(name.split())) == 1, name
    for group in ("nonsense", "rare-pairs", "random-pairs", "wrong-domain"):
        for name in library().sets[group]:
            assert not words & set(name.split()), name


def test_every_group_has_every_token_count(real_tokenizer: PreTrainedTokenizerBase) -> None:
    table = by_k(real_tokenizer, {"a11y-41": library().select("a11y-41")} | {g: library().select(g) for g in GROUPS})
    assert (table.loc[GROUPS, 2] >= 4).all()
    assert (table.loc[GROUPS, 3] >= 3).all()
    assert (table.loc[GROUPS, 4] >= 2).all()
    assert unmatched(table) == []


def test_unmatched_cells_are_named(real_tokenizer: PreTrainedTokenizerBase) -> None:
    long = Term("web content accessibility guidelines")
    table = by_k(real_tokenizer, {"terms": [long, Term("alt text")], "few": [Term("big dog")]})
    (warning,) = unmatched(table)
    k = max(table.columns)
    assert warning == f"few has no expression of {k} tokens: 1 of terms cannot be compared"


@pytest.mark.parametrize("name", ["carriers", "robustness"])
def test_frames_carry_any_expression(name: str, real_tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(frames()[name]) == {"carriers": 6, "robustness": 11}[name]
    assert len(carriers(library().select("set-B"), "robustness")) == 99
    terms = [*REAL, *(t for g in GROUPS for t in library().select(g))]
    prompts = carriers(terms, name)
    assert len(prompts) == len(terms) * len(frames()[name])  # no frame holds a term by itself
    for prompt in prompts:
        span = locate(encode(real_tokenizer, prompt.text), prompt.term, prompt.aliases)
        assert span.occurrences == 1
        assert span.tokens[0] > 0
        assert span.k >= 2


def test_audit_shows_groups_and_warns(capsys: pytest.CaptureFixture[str], suite_folder: Path) -> None:
    assert main(["audit", str(suite_folder), "--terms", "wrong-domain"]) == 0
    shown = capsys.readouterr().out
    assert "expressions by number of tokens (k)" in " ".join(shown.split())
    assert all(group in shown for group in GROUPS[:-1])
    assert shown.count("wrong-domain") == 0  # it is the terms here, and not its own control
    assert "Warning: nonsense has no expression of" in shown


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, suite_folder: Path) -> tuple[Path, Path]:
    """The same study without and with controls."""
    folder = tmp_path_factory.mktemp("controls")
    text = f"name: s\nsuites: {suite_folder}\nterms: set-B\nmeasures: [binding, recognition, few_shot]\n"
    for name, more in (("plain", ""), ("with", "controls: [reversed-order, cross-term-swap]\n")):
        (folder / f"{name}.yaml").write_text(text + more)
        assert main(["run", str(folder / f"{name}.yaml"), "--out", str(folder / name)]) == 0
    return folder / "plain", folder / "with"


def test_controls_change_nothing_about_the_terms(both: tuple[Path, Path]) -> None:
    plain, mixed = (Store(p).read("binding") for p in both)
    assert set(mixed["group"]) == {"real", "reversed-order", "cross-term-swap"}
    own = own_prompts(mixed).reset_index(drop=True)
    assert len(own) == len(plain)
    numbers = plain.select_dtypes("number").columns
    pd.testing.assert_frame_equal(own[numbers], plain[numbers], rtol=1e-5, atol=1e-6)
    a, b = ((folder / "report.html").read_text() for folder in both)
    leads = [re.findall(r'<p class="lead">.*?</p>', page) for page in (a, b)]
    assert leads[0] == leads[1] != []


def test_null_of_carriers_comes_from_carriers(both: tuple[Path, Path]) -> None:
    windows = Store(both[1]).read("eb_star_windows")
    binding = Store(both[1]).read("binding")
    enough = 0
    for row in binding[binding["eb_star"].notna()].sample(40, random_state=0).to_dict("records"):
        pool = windows[
            (windows["step"] == row["step"])
            & (windows["k"] == row["k"])
            & (windows["carrier"] == (row["task"] == "carrier"))
        ]
        assert row["null_n"] == len(pool)
        if len(pool) >= 30:
            enough += 1
            assert row["null_mean"] == pytest.approx(pool["eb_star"].mean())
            assert row["excess"] == pytest.approx(row["eb_star"] - pool["eb_star"].mean())
    assert enough > 20


def test_differences_at_equal_k_by_hand(both: tuple[Path, Path]) -> None:
    binding = Store(both[1]).read("binding")
    cells = carrier_rows(binding)
    last = cells[cells["step"] == 10]
    table = by_group(binding)
    row = table[(table["step"] == 10) & (table["group"] == "reversed-order") & table["difference"].notna()].iloc[0]
    here = last[last["k"] == row["k"]]
    weights, gaps = [], []
    for _, part in here.groupby("frame"):
        real, other = (part[part["group"] == g]["eb_star"] for g in ("real", "reversed-order"))
        weights.append(len(real))
        gaps.append(real.mean() - other.mean())
    assert row["difference"] == pytest.approx(np.average(gaps, weights=weights))
    assert row["eb_star"] == pytest.approx(here[here["group"] == "reversed-order"]["eb_star"].mean())
    found = {(r.id, r.subject, r.reading): r for r in differences(last)}
    published = found["v.difference", "reversed-order", "published"]
    real, other = (last[last["group"] == g]["eb_star"] for g in ("real", "reversed-order"))
    assert published.value == pytest.approx(real.mean() - other.mean())


def test_analysis_carries_validity_and_unlockability(
    both: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyse", str(both[1]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    claims = {(r["claim"], r["id"], r["subject"]) for r in found["claims"] if r["value"] is not None}
    assert ("V", "v.difference", "cross-term-swap") in claims
    assert ("C3", "c3.gain", None) in claims
    texts = {r["claim"]: r["text"] for r in found["sentences"]}
    assert "at equal token counts in the same sentences" in texts["V"]
    assert {"behavior", "scores", "positions", "controls", "few_shot"} <= found.keys()


def test_behavior_is_the_mean_of_both_tasks(both: tuple[Path, Path]) -> None:
    store = Store(both[0])
    recognition, generation = store.read("recognition"), store.read("generation")
    table = behavior(recognition, generation).set_index(["step", "term"])
    for step, term in ((0, "alt text"), (10, "skip link")):
        a = recognition[(recognition["step"] == step) & (recognition["term"] == term)]["correct_per_token"].mean()
        b = generation[(generation["step"] == step) & (generation["term"] == term)]["score"].mean()
        assert table.loc[(step, term), "beh"] == pytest.approx((a + b) / 2)
    alone = behavior(recognition, pd.DataFrame())
    assert alone["beh"].isna().all()
    assert set(alone["reason"]) == {"no generated answers are stored"}
    seen = observations(store.read("binding"), recognition, generation)
    assert seen.groupby("task").size().to_dict() == {"generation": 2 * 9 * 6, "recognition": 2 * 9 * 5}
    asked = seen[seen["task"] == "recognition"]
    assert (asked["behavior"] == asked["accuracy"]).all()


def test_positions_and_scores_by_hand() -> None:
    base = {"suite": "s", "revision": "r", "step": 1, "format": "listed", "choices": ["a", "b"]}
    rows = [(0, 0), (0, 1), (1, 0), (1, 0)]  # gold, predicted
    table = pd.DataFrame(
        [base | {"term": f"t{i}", "gold": g, "predicted_per_token": p} for i, (g, p) in enumerate(rows)]
    )
    for score in ("per_token", "raw", "per_byte", "pmi"):
        table[f"correct_{score}"] = table["gold"] == table["predicted_per_token"]
        table[f"margin_{score}"] = 0.5
    found = positions(table).set_index("position")
    assert found["accuracy"].to_dict() == {"A": 0.5, "B": 0.0}
    assert found["chosen"].to_dict() == {"A": 0.75, "B": 0.25}
    assert found["n"].to_dict() == {"A": 2, "B": 2}
    assert positions(table.assign(format="cloze")).empty
    by_score = scoring(table)
    assert by_score["score"].tolist() == ["per_token", "raw", "per_byte", "pmi"]
    assert set(by_score["accuracy"]) == {0.25}
    assert scoring(pd.DataFrame()).empty


def test_gains_and_copies_by_hand() -> None:
    base = {"suite": "s", "revision": "r", "step": 1, "kind": "k"}
    zero = pd.DataFrame(
        [base | {"prompt": f"{t}/g", "question": f"{t}/g", "term": t, "score": s} for t, s in (("a", 0.0), ("b", 0.5))]
    )
    few = pd.DataFrame([
        base | {"question": f"{t}/g", "term": t, "shot": shot, "score": s, "matched": m, "copied": c}
        for t, shot, s, m, c in (
            ("a", "exemplar", 1.0, ["x", "y", "z"], ["x"]), ("b", "exemplar", 0.5, ["x"], ["x"]),
            ("a", "paraphrase", 0.5, [], []), ("b", "paraphrase", 0.5, [], []),
            ("a", "mismatched", 0.25, [], []), ("b", "mismatched", 0.75, [], []),
        )
    ])  # fmt: skip
    table = gains(zero, few).set_index("term")
    assert table.loc["a", ["zero", "exemplar", "paraphrased", "mismatched"]].tolist() == [0.0, 1.0, 0.5, 0.25]
    found = {(r.id, r.reading): r.value for r in exemplar_gains(table.reset_index())}
    assert found["c3.gain", "published"] == pytest.approx(50)
    assert found["c3.relative_gain", "published"] == pytest.approx(200)
    assert found["c3.over_mismatched", "controlled"] == pytest.approx(25)
    assert found["c3.copied", "controlled"] == pytest.approx(0.5)
    assert gains(zero, pd.DataFrame()).empty


def test_variability_by_hand() -> None:
    base = {"suite": "s", "revision": "r", "step": 1, "temperature": 0.7, "term": "a"}
    rows = [("p", 1, 0.0, "x"), ("p", 2, 1.0, "y"), ("q", 1, 0.5, "z"), ("q", 2, 0.5, "z")]
    table = pd.DataFrame([base | {"prompt": p, "seed": s, "score": v, "text": t} for p, s, v, t in rows])
    (row,) = variability(table).to_dict("records")
    assert (row["prompts"], row["seeds"], row["mean"]) == (2, 2, 0.5)
    assert row["sd"] == pytest.approx(np.sqrt(0.5) / 2)
    assert row["texts"] == pytest.approx(0.75)
    assert variability(pd.DataFrame()).empty


def test_a_domain_of_ones_own_in_ten_lines(
    tmp_path: Path, suite_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of docs/terms.md runs as it is printed there."""
    page = (Path(__file__).parents[1] / "docs" / "terms.md").read_text(encoding="utf-8")
    terms, experiment = re.findall(r"```yaml\n(.*?)```", page, re.S)[:2]
    assert len(terms.splitlines()) <= 14
    (tmp_path / "my_terms.yaml").write_text(terms)
    (tmp_path / "experiment.yaml").write_text(experiment.replace("suites: tiny", f"suites: {suite_folder}"))
    assert len(load(str(tmp_path / "experiment.yaml")).selected()) >= 2
    assert main(["run", str(tmp_path / "experiment.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert "generation" in capsys.readouterr().out


_MEMORY = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import models
from bindscope.checkpoints.load import Loaded
from bindscope.checkpoints.tokenizer import tokenizer_by_name
from bindscope.engine.engine import Engine
from bindscope.execute.measuring import Session
from bindscope.measures import registry
from bindscope.prompts.spans import encode
from bindscope.records import CheckpointRef, Prompt, Protocol

words = tokenizer_by_name({words!r})
kind, config = models.ARCHITECTURES["gpt_neox"]
size = {{"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 16, "max_position_embeddings": 512}}
model = models.build(kind, config | size | {{"vocab_size": len(words)}})
loaded = Loaded(model, words, CheckpointRef("s", "r"), None, "on")
measures, _ = registry.chosen(["binding", "recognition"])
text = "the skip link of page {{}} and " + "so on and so on, as it was, " * 11

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def peak(n):
    seen, prompts = [], [Prompt(f"skip link/{{i}}", "skip link", text.format(i), "carrier") for i in range(n)]
    with Engine(loaded) as engine:
        session = Session(engine, prompts, Protocol(), progress=lambda _: seen.append(resident()))
        (outcome,) = session.passes(list(measures.values()))
    assert not outcome.failures
    rows = outcome.frame("binding")
    assert len(rows) == n
    return max(seen), int(rows["k"][0])

peak(60)  # what making tables takes from the system is there before anything is compared
(few, k), (many, _) = peak(60), peak(260)
print(many - few, 200 * 4 * 16 * len(encode(words, text.format(1)).ids) * k * 4)
"""


def test_memory_does_not_grow_with_the_bands(suite_folder: Path) -> None:
    """Prompts of 200 tokens whose bands together would be over 50 MB: they are never held at once. In a
    process of its own: what other tests have left free would hide what is taken."""
    code = _MEMORY.format(tests=str(Path(__file__).parent), words=str(suite_folder))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, held = map(int, found.stdout.split())
    assert held > 50e6
    assert grown < 0.5 * held
