"""Drops, specificity, p and verdicts of head edits by hand; p is uniform under the null; wrong study sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, kstest

import models
from bindscope.claims.causal import specificities
from bindscope.cli import main
from bindscope.engine.attention import hooked
from bindscope.engine.capture import TextInput
from bindscope.engine.conditions import EditValues, run
from bindscope.measures.head_sets import sets
from bindscope.records import Ablation
from bindscope.store import Store
from bindscope.tables.ablation import RULES, effects


def _table(base: Any, top: Any, bottom: Any, random: Any, task: str = "recognition") -> pd.DataFrame:
    """Scores over prompts, two of each term; the margin is ten times the score."""
    made = [("baseline", 0, base), ("top", 0, top), ("bottom", 0, bottom), *(("random", i, r) for i, r in random)]
    rows = [
        {"suite": "s", "revision": "r", "step": 1, "mode": None if name == "baseline" else "zero",
         "ranking": None if name == "baseline" else "bsi", "set": name, "k": 0 if name == "baseline" else 2,
         "draw": draw, "prompt": f"p{i}", "term": f"t{i // 2}", "task": task, "score": float(v), "margin": 10.0 * v}
        for name, draw, values in made
        for i, v in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _sets(table: pd.DataFrame, losses: dict[str, float]) -> pd.DataFrame:
    """Loss on neutral text by name of the set, and 0.01 more with every draw."""
    out = table[["suite", "revision", "step", "mode", "ranking", "set", "k", "draw"]].drop_duplicates()
    return out.assign(heads="", neutral_loss=out["set"].map(losses) + 0.01 * out["draw"])


LOSSES = {"baseline": 2.0, "top": 2.5, "bottom": 2.0, "random": 2.1}


def test_effects_by_hand() -> None:
    random = enumerate([[1, 1, 1, 1, 1, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 1, 0]])
    table = _table([1, 1, 1, 1, 1, 0], [0, 1, 0, 0, 1, 0], [1, 1, 1, 1, 0, 0], random)
    found = effects(table, _sets(table, LOSSES), 0.25).set_index("outcome")
    assert list(found.index) == ["accuracy", "margin"]
    row = found.loc["accuracy"]
    # Drops of the random sets: 0, 3/6, 2/6, 1/6; of the top 3/6. One of them is as large.
    expected = {
        "prompts": 6, "random_sets": 4, "baseline": 5 / 6, "top": 2 / 6, "bottom": 4 / 6, "random": 14 / 24,
        "random_sd": np.std([0, 3 / 6, 2 / 6, 1 / 6], ddof=1), "drop_top": 3 / 6, "drop_bottom": 1 / 6,
        "drop_random": 1 / 4, "specificity": 1 / 4, "p": 2 / 5, "p_less": 1.0,
        "loss_top": 0.5, "loss_bottom": 0.0, "loss_random": 0.115, "k": 2, "step": 1,
    }  # fmt: skip
    for name, value in expected.items():
        assert row[name] == pytest.approx(value), name
    # Random mean less top: t0 (1 - 0, 3/4 - 1), t1 (3/4 - 0, 1/4 - 0), t2 (3/4 - 1, 0): means 3/8, 1/2, -1/8.
    spread = np.std([3 / 8, 1 / 2, -1 / 8], ddof=1) / np.sqrt(3)
    assert row["high"] - row["low"] == pytest.approx(2 * 4.302653 * spread)
    assert row["high_90"] + row["low_90"] == pytest.approx(0.5)
    assert found.loc["margin", "specificity"] == pytest.approx(10 / 4)
    written = table.assign(task="generation")
    assert list(effects(written, _sets(table, LOSSES), 0.25)["outcome"]) == ["generation"]
    assert effects(table[:0], _sets(table, LOSSES), 0.25).empty


def test_specificity_of_the_published_ablation() -> None:
    """160M at step 120000: whole 4 of 6, top removed 3 of 6, random sets 4, 4, 4, 3, 3 of 6."""

    def right(n: int) -> list[int]:
        return [1] * n + [0] * (6 - n)

    table = _table(right(4), right(3), right(4), enumerate(map(right, (4, 4, 4, 3, 3))))
    found = effects(table, _sets(table, LOSSES), 0.25)
    published, controlled, _ = specificities(found)
    assert published.value == pytest.approx(4 / 6 - 3 / 6 - (4 / 6 - 3.6 / 6))
    assert (published.verdict, published.p) == ("not coupled", None)
    assert controlled.value == published.value
    assert controlled.p == pytest.approx((2 + 1) / (5 + 1))
    assert controlled.verdict == found["verdict"].iloc[0]
    assert controlled.subject == "accuracy, 2 heads by bsi, zero"


HALF, ONES, NONE = [1, 0] * 6, [1] * 12, [0] * 12
EVEN, FULL = [(i, HALF) for i in range(19)], [(i, ONES) for i in range(19)]


@pytest.mark.parametrize(
    ("verdict", "base", "top", "random"),
    [
        ("coupled", HALF, [1, *NONE[1:]], EVEN),
        ("coupled", ONES, [1, 1, *HALF[2:]], FULL),  # a ceiling does not hide what is found
        ("suppressor", HALF, [1, 0, *ONES[2:]], EVEN),
        ("ceiling", ONES, ONES, FULL),
        ("ceiling", ONES, [1, 1, *HALF[2:]], FULL[:18]),  # p cannot reach alpha
        ("floor", [1, *NONE[1:]], NONE, [(i, [1, *NONE[1:]]) for i in range(19)]),
        ("floor", [1, 1, 1, *NONE[3:]], NONE, EVEN),  # exactly at chance
        ("no effect", [1, 0] * 50, [0, *([1, 0] * 50)[1:]], [(i, [1, 0] * 50) for i in range(19)]),
        ("no evidence", HALF, [1, *NONE[1:]], EVEN[:18]),
        ("no evidence", HALF, [0, *HALF[1:]], EVEN),  # p is low, but one term alone carries it
    ],
)
def test_verdicts(verdict: str, base: Any, top: Any, random: Any) -> None:
    table = _table(base, top, base, random)
    row = effects(table, _sets(table, LOSSES), 0.25).set_index("outcome").loc["accuracy"]
    assert row["verdict"] == verdict
    assert row["rule"] == RULES[verdict]


def test_bounds_of_ceiling_and_floor() -> None:
    def verdict(right: int, chance: float, outcome: str = "accuracy") -> str:
        """Of 100 questions; the top heads cost one of them."""
        base = [1] * right + [0] * (100 - right)
        table = _table(base, [0, *base[1:]], base, [(i, base) for i in range(18)])
        return str(effects(table, _sets(table, LOSSES), chance).set_index("outcome").loc[outcome, "verdict"])

    assert [verdict(n, 0.25) for n in (30, 31, 94, 95)] == ["floor", "no effect", "no effect", "ceiling"]
    assert [verdict(n, 0.5) for n in (55, 56)] == ["floor", "no effect"]
    assert verdict(100, 0.25, "margin") == verdict(5, 0.25, "margin") == "no evidence"  # neither rule is a margin's


def test_one_term_has_no_interval() -> None:
    table = _table([1, 0], [0, 0], [1, 0], [(i, [1, 0]) for i in range(19)])
    row = effects(table, _sets(table, LOSSES), 0.25).iloc[0]
    assert (row["verdict"], row["low"]) == ("no evidence", None)
    assert "cluster" in row["reason"]


# Calibration and the study file.


@pytest.mark.slow
@pytest.mark.parametrize(("scope", "k", "heads"), [("model", 2, 24), ("layer", 2, 6), ("model", 6, 6)])
def test_p_is_uniform_where_the_ranking_says_nothing(scope: Any, k: int, heads: int) -> None:
    """200 random models of 2 layers, ranked at random: no set is special, so p is uniform on i / 100."""
    kind, base = models.ARCHITECTURES["llama"]
    config = base | {"num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": heads}
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        model = models.build(
            kind, config | {"num_hidden_layers": 2, "num_attention_heads": heads, "num_key_value_heads": heads}, seed
        )
        spec = Ablation(k=k, random=99, scope=scope, seed=seed)
        chosen = list(sets({"bsi": rng.random((2, heads))}, spec, heads))
        rows = [
            TextInput(tuple(rng.integers(3, 64, 6).tolist()), ((int(i),), (int(j),)))
            for i, j in rng.integers(3, 64, (6, 2))
        ]
        with hooked(model):
            logs = run(model, rows, [s.heads for s in chosen], "zero", EditValues())
        margins = [[float(gold[0] - other[0]) for gold, other in each] for each in logs]
        random = list(enumerate(margins[3:]))
        table = _table(*margins[:3], random)
        found.append(effects(table, _sets(table, LOSSES), 0.0).set_index("outcome").loc["margin", "p"])
    p = np.array(found)
    print(
        scope,
        k,
        "KS p",
        kstest(p, "uniform").pvalue,
        "share <= 0.05",
        (p <= 0.05).mean(),
        "<= 0.01",
        (p <= 0.01).mean(),
    )
    assert kstest(p, "uniform").pvalue > 0.01
    assert binomtest(int((p <= 0.05).sum()), len(p), 0.05, "greater").pvalue > 0.01


def _fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, section: str, rest: str = "terms: [set-A]") -> str:
    path = tmp_path / "x.yaml"
    path.write_text(f"name: x\nsuites: [tiny]\nmeasures: [ablation]\n{rest}\nablation: {{{section}}}\n")
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.err.startswith("bindscope: ")
    assert not (tmp_path / "out").exists()
    return shown.err


def test_wrong_sections(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def fails(section: str, rest: str = "terms: [set-A]") -> str:
        return _fails(capsys, tmp_path, section, rest)

    assert "heads" in fails("heads: 4")
    for alpha, needed in ((0.05, 19), (0.01, 99), (0.03, 33)):
        message = fails(f"random: {needed - 1}, alpha: {alpha}")
        assert f"set random: {needed} or more" in message
        assert Ablation(alpha=alpha).least_random == needed
    for heads in ("[4.2]", "4", '["4"]', '["4.x"]', '["-1.2"]'):
        assert "layer.head in quotes" in fails(f"heads: {heads}")
    assert "named twice" in fails('heads: ["4.2", "4.2"]')
    assert "give both or neither" in fails("rankings: [named]")
    assert "give both or neither" in fails('heads: ["4.2"], rankings: [bsi]')
    assert "ablation.k" in fails("k: 0")
    assert "alpha" in fails("alpha: 1")
    assert "softly" in fails("modes: softly")
    assert "recognition questions" in fails("", "terms: [nonsense]")


def test_named_heads_from_a_file_and_from_what_a_run_leaves(tmp_path: Path, suite_folder: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        f"name: x\nsuites: ['{suite_folder}@10']\nterms: [alt text, skip link]\nmeasures: [ablation]\n"
        'ablation: {heads: ["1.2", "2.0"], rankings: [named, bsi], k: 1, modes: [zero, knockout], '
        "sweep: [2], random: 3, alpha: 0.25, questions: 1}\n"
    )
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 0
    sets = Store(tmp_path / "out").read("ablation_sets")
    top = sets[(sets["set"] == "top") & (sets["ranking"] == "named")]
    assert [list(heads) for heads in top["heads"]] == [["1.2", "2.0"]] * 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "heads by name" in page
    assert main(["run", str(tmp_path / "out" / "experiment.yaml"), "--out", str(tmp_path / "again")]) == 0
    again = Store(tmp_path / "again").read("ablation_sets")
    pd.testing.assert_frame_equal(again, sets)
