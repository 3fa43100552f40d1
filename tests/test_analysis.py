"""Claims on a run's own measurements: joined rightly, computed as defined, and missing with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr, ttest_1samp, ttest_ind

import bindscope as bs
from bindscope.claims.analysis import answered, statistics_of
from bindscope.claims.base import as_table
from bindscope.claims.discriminant_validity import differences
from bindscope.claims.inputs import Inputs
from bindscope.claims.late_coupling import halves
from bindscope.claims.precedence import between_runs
from bindscope.claims.registry import built_in
from bindscope.claims.unlockability import exemplar_gains
from bindscope.cli import main
from bindscope.errors import StoreError
from bindscope.stats.correlate import Undefined
from bindscope.store import Store
from bindscope.tables.gate import gate
from bindscope.tables.observations import by_layer, by_term, observations
from bindscope.tables.series import emergence, threshold
from stores import Given, Invention, analysed


@pytest.fixture(scope="module")
def seen(tiny_run: Path) -> pd.DataFrame:
    return observations(Store(tiny_run).read("binding"), Store(tiny_run).read("recognition"))


def invented(
    terms: int = 12, checkpoints: int = 8, questions: int = 5, seed: int = 0, lag: int = 0, coupling: float = 0.0
) -> pd.DataFrame:
    """Observations of one suite: EB* rises, accuracy rises `lag` checkpoints later and follows EB*'s noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for term in range(terms):
        pull = rng.normal(0, 0.05, checkpoints)
        for t in range(checkpoints):
            for q in range(questions):
                eb = 0.1 * t + pull[t] + rng.normal(0, 0.02)
                known = 0.1 * max(t - lag, 0) + coupling * pull[t] + rng.normal(0, 0.02)
                rows.append(
                    {
                        "suite": "s",
                        "revision": f"r{t}",
                        "step": 10.0 * t,
                        "t": t,
                        "term": f"term {term}",
                        "question": f"{term}/{q}",
                        "task": "recognition",
                        "kind": f"k{q}",
                        "eb_star": eb,
                        "eb_star_mass": eb,
                        "excess": eb,
                        "position_excess": eb,
                        "k": 2.0 + term % 2,
                        "n_tokens": 20 + q,
                        "accuracy": known,
                        "behavior": known,
                        "eb_per_layer": [eb / 2, eb, eb / 3],
                        "margin": known,
                        "chance": 0.25,
                    }
                )
    return pd.DataFrame(rows)


def computed(table: pd.DataFrame) -> pd.DataFrame:
    """Every claim's statistics of one suite's observations."""
    inputs = Inputs(Given({"s": table}), "s")
    frames = [as_table(statistics_of(claim, inputs)).assign(claim=claim.id) for claim in built_in()]
    return pd.DataFrame([row for frame in frames for row in frame.to_dict("records")])


def _value(frame: pd.DataFrame, id: str, reading: str, subject: str | None = None) -> pd.Series:
    rows = frame[(frame["id"] == id) & (frame["reading"] == reading)]
    rows = rows if subject is None else rows[rows["subject"] == subject]
    assert len(rows) == 1
    return rows.iloc[0]


def test_every_question_meets_its_own_score(tiny_run: Path, seen: pd.DataFrame) -> None:
    binding, recognition = Store(tiny_run).read("binding"), Store(tiny_run).read("recognition")
    assert len(seen) == 12 * 11 * 5
    for row in seen.iloc[::37].to_dict("records"):
        mine = recognition[
            (recognition["term"] == row["term"])
            & (recognition["kind"] == row["kind"])
            & (recognition["revision"] == row["revision"])
        ]
        assert len(mine) == 4
        assert row["accuracy"] == mine["correct_per_token"].mean()
        assert row["margin"] == pytest.approx(mine["margin_per_token"].mean())
        bound = binding[(binding["prompt"] == f"{row['question']}/0") & (binding["revision"] == row["revision"])]
        assert row["eb_star"] == bound["eb_star"].item()
    assert seen.groupby("revision")["t"].first().to_dict()["checkpoint-6000"] == 11


def test_the_published_statistic_is_scipys_on_all_pairs(seen: pd.DataFrame) -> None:
    frame = computed(seen)
    row = _value(frame, "c1a.rho.all", "published")
    expected = spearmanr(seen["eb_star"], seen["accuracy"])
    assert (row["value"], row["p"], row["n"]) == (
        pytest.approx(expected.statistic),
        pytest.approx(expected.pvalue),
        660,
    )
    late = _value(frame, "c4a.rho.late", "published")
    part = seen[seen["t"] >= 6]
    assert late["value"] == pytest.approx(spearmanr(part["eb_star"], part["accuracy"]).statistic)


def test_tiny_is_go_as_published_and_nothing_as_controlled(tiny_run: Path) -> None:
    """What the suite was made to show: both series rise over training, and that is all they share."""
    found = analysed(Store(tiny_run))
    assert found.gate["go"].tolist() == [True]
    frame = found.results[found.results["suite"] == "tiny"]
    published = _value(frame, "c1a.rho.all", "published")
    controlled = _value(frame, "c1a.repeated", "controlled")
    assert published["value"] > 0.3
    assert published["p"] < 1e-6
    assert controlled["low"] < 0 < controlled["high"]
    assert (controlled["clusters"], controlled["cluster"]) == (11, "term")
    assert set(found.results["claim"]) == {"V", "C1-A", "C1-B", "C2", "C3", "C4-A", "C4-B", "C5", "robustness"}
    assert frame[frame["claim"].isin(["C3", "C5"])]["reason"].notna().all()
    validity = frame[(frame["claim"] == "V") & (frame["id"] == "v.difference")]
    assert set(validity["subject"]) == {"tiny-collocation", "tiny-nonsense"}
    assert found.problems == ()
    assert set(validity["reading"]) == {"published", "controlled"}
    assert validity["value"].notna().all()


def test_coupling_beyond_the_shared_rise_is_found() -> None:
    apart, together = computed(invented()), computed(invented(coupling=1.0))
    quantity = "c1a.repeated"
    assert _value(apart, quantity, "controlled")["p"] > 0.05
    assert _value(together, quantity, "controlled")["low"] > 0.2
    assert _value(apart, "c1a.rho.all", "published")["p"] < 1e-10  # the rise alone


def test_windows_are_the_studys_halves() -> None:
    parts = halves(invented())
    assert {name: sorted(part["t"].unique()) for name, part in parts.items()} == {
        "early": [0, 1, 2, 3],
        "late": [4, 5, 6, 7],
    }
    assert halves(invented(checkpoints=3)) == {}
    assert _value(computed(invented()), "c1a.rho.all", "published")["n"] == 8 * 12 * 5


def test_emergence_by_hand() -> None:
    table = invented(lag=2)
    table["eb_star"], table["accuracy"] = table["t"] / 10, (table["t"] - 2).clip(lower=0) / 10
    dates = emergence(table)
    # halfway of 0 to 0.7 is 0.35: reached at t = 4; accuracy: halfway of 0 to 0.5 is 0.25, reached at t = 5
    ends = dates[["binding_left", "binding_right", "knowing_left", "knowing_right"]].drop_duplicates()
    assert ends.to_numpy().tolist() == [[30.0, 40.0, 40.0, 50.0]]
    frame = computed(table)
    medians = [_value(frame, "c1b.median_step", "controlled", what) for what in ("binding", "knowing")]
    assert [(row["low"], row["high"]) for row in medians] == [(30.0, 40.0), (40.0, 50.0)]
    row = _value(frame, "c1b.order", "controlled", "0.50")
    assert (row["value"], row["reason"]) == (12.0, "12 before, 0 after, 0 cannot be told")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t[t["t"] == 0], "checkpoints"),
        (lambda t: t[t["term"] == "term 0"], "1 group;"),
        (lambda t: t.assign(accuracy=0.5), "constant"),
        (lambda t: t.assign(eb_star=0.5), "constant"),
        (lambda t: t.assign(step=np.nan), "steps of the checkpoints are not known"),
        (lambda t: t.iloc[:0], ""),
    ],
    ids=["one checkpoint", "one term", "constant accuracy", "constant binding", "unknown steps", "nothing"],
)
def test_what_the_data_cannot_carry_is_a_row_with_its_reason(change, reason: str) -> None:  # type: ignore[no-untyped-def]
    frame = computed(change(invented()))
    assert set(frame["claim"]) >= {"V", "C1-A", "C1-B", "C2", "C3", "C4-B", "C5", "robustness"}
    missing = frame[frame["value"].isna()]
    assert missing["reason"].notna().all()
    assert missing["reason"].str.contains(reason).any()
    for claim in built_in():
        rows = frame[frame["claim"] == claim.id]
        assert rows.empty or answered(claim, rows).detail


def test_gate_by_hand() -> None:
    table = invented(terms=2, checkpoints=2, questions=2).assign(
        eb_star=[1, 2, 3, 4, 5, 6, 7, 8], accuracy=[1, 2, 3, 4, 5, 6, 8, 0]
    )
    found = gate(table)
    assert found["rho"] == pytest.approx(spearmanr(table["eb_star"], table["accuracy"]).statistic)
    assert found["quadrant"] == 1  # 8 is bound most and known least
    assert found["go"] == (found["rho"] > 0.3)  # type: ignore[operator]
    assert gate(table.assign(accuracy=1.0))["reason"]


def _runs(tables: dict[str, pd.DataFrame]) -> list[Inputs]:
    given = Given(tables)
    return [Inputs(given, name) for name in tables]


def test_swap_test_needs_runs() -> None:
    one = as_table(between_runs(_runs({"a": invented()})))
    assert "one training run" in one["reason"].iloc[0]
    five = as_table(between_runs(_runs({str(s): invented(seed=s) for s in range(5)})))
    assert five["n"].iloc[0] == 5
    assert five["p"].iloc[0] >= 2**-5


def test_spread_over_seeds_has_the_run_as_its_unit(tmp_path: Path) -> None:
    found = analysed(Invention(tmp_path / "run", suites=4, steps=6, terms=5).store)
    rows = found.results[found.results["id"] == "c1a.repeated"]
    values = rows.loc[rows["suite"] != "all runs", "value"]
    mean = rows[rows["suite"] == "all runs"].iloc[0]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert len(values) == 4
    assert mean["value"] == pytest.approx(np.mean(values))
    assert (mean["low"], mean["high"]) == pytest.approx((expected.low, expected.high))
    assert (mean["n"], mean["unit"]) == (4, "training run")


def test_discriminant_validity_that_is_token_count_only() -> None:
    """EB* = 2/k plus noise; controls are longer. Published: a huge effect. At equal k: none."""
    rng = np.random.default_rng(0)
    rows = [
        {"term": f"{group} {i}", "group": group, "k": k, "frame": frame, "eb_star": 2 / k + rng.normal(0, 0.02)}
        for group, ks in (("real", (2, 2, 2, 3)), ("nonsense", (2, 3, 4, 5)))
        for i, k in enumerate(ks * 5)
        for frame in range(3)
    ]
    table = pd.DataFrame(rows)
    frame = as_table(differences(table))
    d = frame[frame["id"] == "v.cohen_d"].iloc[0]
    plain = frame[(frame["reading"] == "published") & frame["p"].notna()].iloc[0]
    strata = frame[frame["reading"] == "controlled"].iloc[0]
    real, control = (table[table["group"] == g]["eb_star"] for g in ("real", "nonsense"))
    assert d["value"] > 1
    assert plain["p"] == pytest.approx(ttest_ind(real, control, equal_var=False).pvalue)
    assert strata["low"] < 0 < strata["high"]
    assert strata["reason"] == "6 of 12 strata have no match and are left out"
    with pytest.raises(ValueError, match="lacks the columns frame"):
        list(differences(table.drop(columns="frame")))


def test_unlockability_by_hand() -> None:
    table = pd.DataFrame(
        {
            "term": ["a", "a", "b", "b", "c", "c"],
            "prompt": range(6),
            "zero": [0, 1, 0, 1, 0, 0],
            "exemplar": [1, 1, 1, 1, 1, 2 / 3],
            "mismatched": [1, 1, 1, 0, 1, 2 / 3],
        }
    )
    frame = as_table(exemplar_gains(table))
    assert _value(frame, "c3.gain", "published")["value"] == pytest.approx(100 * (17 / 18 - 1 / 3))
    assert _value(frame, "c3.relative_gain", "published")["value"] == pytest.approx(183.3, abs=0.05)
    over = _value(frame, "c3.over_mismatched", "controlled")
    assert over["value"] == pytest.approx(100 / 6)
    assert over["low"] < 0 < over["high"]
    assert "not measured" in _value(frame, "c3.paraphrased", "controlled")["reason"]
    none = as_table(exemplar_gains(table.assign(zero=0)))
    assert "nothing to relate" in _value(none, "c3.relative_gain", "published")["reason"]


def test_shards_of_another_protocol_are_named(
    tmp_path: Path, suite_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = {"name": "s", "suites": [str(suite_folder)], "terms": ["pilot-3"], "bos": "on"}
    for bos in ("off", "on"):
        (tmp_path / "s.yaml").write_text(json.dumps(experiment | {"bos": bos}))
        bs.run(str(tmp_path / "s.yaml"), tmp_path / "out")
    assert main(["analyse", str(tmp_path / "out")]) == 0
    assert "24 shards of another experiment, protocol or schema" in capsys.readouterr().out


def test_a_term_that_misses_a_checkpoint_is_left_out() -> None:
    table = invented()
    names, values = by_term(table[~((table["term"] == "term 3") & (table["t"] == 2))], "eb_star")
    assert "term 3" not in names
    assert values.shape == (11, 8)


def test_layers_are_means_over_questions() -> None:
    table = invented()
    layers = by_layer(table)
    part = table[table["t"] == 3]
    row = layers[(layers["revision"] == "r3") & (layers["layer"] == 1)].iloc[0]
    assert row["eb"] == pytest.approx(part["eb_star"].mean())
    assert row["n"] == len(part)


def test_rows_twice_are_refused(tiny_run: Path) -> None:
    binding, recognition = Store(tiny_run).read("binding"), Store(tiny_run).read("recognition")
    with pytest.raises(StoreError, match="table recognition holds 1 rows twice"):
        observations(binding, pd.concat([recognition, recognition.iloc[:1]]))
    with pytest.raises(StoreError, match="no recognition"):
        observations(binding, recognition.iloc[:0])


def test_thresholds_need_a_rise() -> None:
    assert threshold(np.array([[0.0, 1.0], [0.2, 1.2]]), 0.5) == pytest.approx(0.6)
    with pytest.raises(Undefined, match="never rises"):
        threshold(np.array([[1.0, 0.5]]), 0.5)


def test_command(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyse", str(tiny_run)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "As published:",
        "Controlled:",
        "Gate of the reference study: go",
        "over runs: one training run",
        "claims.csv",
    ):
        assert part in shown
    frame = pd.read_csv(tiny_run / "analysis" / "claims.csv")
    assert {
        "suite",
        "claim",
        "id",
        "subject",
        "quantity",
        "reading",
        "value",
        "low",
        "high",
        "p",
        "q",
        "n",
        "unit",
        "method",
    } <= set(frame)
    adjusted = frame[frame["p"].notna()]
    assert len(adjusted) > 10
    assert (adjusted["q"] >= adjusted["p"] - 1e-12).all()
    assert main(["analyse", str(tiny_run), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {
        "claims", "sentences", "gate", "emergence", "layers", "behavior", "scores", "positions", "controls"
    }  # fmt: skip


def test_unfinished_units_are_named(tmp_path: Path, suite_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = {"name": "s", "suites": [str(suite_folder), "no/such"], "terms": ["pilot-3"], "bos": "on"}
    (tmp_path / "s.yaml").write_text(json.dumps(experiment))
    assert main(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 1
    capsys.readouterr()
    assert main(["analyse", str(tmp_path / "out")]) == 0
    assert "Note: no/such, final:" in capsys.readouterr().out
