"""Every text that reaches the page is escaped, and the page says what it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindscope.charts.axes import lines
from bindscope.charts.figure import inline, styled, svg
from bindscope.charts.text import number
from bindscope.cli import main
from bindscope.stats.resample import cluster_mean
from bindscope.tables.summary import by_checkpoint, excluded

HOSTILE = "<script>alert(1)</script><b onload=x>\u202e\u0007&amp;\"'"


def test_markup_in_every_text_is_escaped(tmp_path: Path, suite_folder: Path) -> None:
    rows = [
        {"term": f"alt text {HOSTILE}", "task": "generation", "template": "nothing", "prompt_id": HOSTILE},
        {
            "term": "alt text",
            "task": "recognition",
            "template": "Alt text is",
            "choices": [HOSTILE, "b"],
            "answer_idx": 0,
            "prompt_id": "r",
        },
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    experiment = {
        "name": HOSTILE,
        "about": HOSTILE,
        "suites": [str(suite_folder), f"no/{'x' * 5}"],
        "prompts": "p.jsonl",
    }
    (tmp_path / "s.yaml").write_text(json.dumps(experiment))
    assert main(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<script") == 2  # the data and the program of the page
    assert "<b onload" not in page
    assert page.count("&lt;script&gt;") >= 4
    assert "no/xxxxx" in page  # the suite that failed is named


def test_numbers_for_people() -> None:
    assert number(-0.5, 2) == "\u22120.50"
    assert number(None) == number(float("nan")) == "not available"


def test_figure_draws_every_point_and_escapes_labels() -> None:
    table = pd.DataFrame(
        {"step": [0, 10, 100], "a": [0.1, 0.2, 0.3], "a_low": [0.0, 0.1, 0.2], "a_high": [0.2, 0.3, 0.4]}
    )
    drawn = svg(styled(lines(table, {"a": "<i>label</i>"}, "axis")))
    assert drawn.startswith("<svg")
    assert "<i>" not in drawn
    page = inline(drawn, "figure")
    assert "&lt;i&gt;label&lt;/i&gt;" in page
    assert len(re.findall(r'<path [^>]*d="M3\.\d,0A', page)) == 3  # a circle for each point
    assert not re.search(r'(fill|stroke)="#', page.replace('fill="#fff"', ""))  # the page's theme colors every mark


def _tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    base = {"suite": "s", "revision": "r", "step": 1}
    binding = pd.DataFrame(
        [
            base | {"term": "a", "prompt": "a/1", "eb_star": 0.2, "null_mean": 0.1, "excess": 0.1, "reason": None},
            base | {"term": "a", "prompt": "a/2", "eb_star": 0.4, "null_mean": 0.1, "excess": 0.3, "reason": None},
            base
            | {
                "term": "b",
                "prompt": "b/1",
                "eb_star": np.nan,
                "null_mean": np.nan,
                "excess": np.nan,
                "reason": "absent",
            },
            base
            | {"term": "c", "prompt": "c/1", "eb_star": 0.9, "null_mean": np.nan, "excess": np.nan, "reason": None},
        ]
    )
    binding["task"], binding["group"] = "recognition", "real"
    binding["position_excess"] = binding["excess"] - 0.05
    recognition = pd.DataFrame(
        [
            base | {"term": t, "choices": ["x"] * n, "correct_per_token": c, "margin_per_token": m}
            for t, n, c, m in (("a", 4, True, 1.0), ("b", 2, False, -0.5))
        ]
    )
    return binding, recognition


def test_summary_by_hand_leaves_missing_values_out_and_counts_them() -> None:
    (row,) = by_checkpoint(*_tables()).to_dict("records")
    assert row["eb_star"] == pytest.approx(0.5)
    assert row["eb_star_n"] == 3
    assert row["excess"] == pytest.approx(0.2)
    assert row["excess_n"] == 2
    assert row["position_excess"] == pytest.approx(0.15)
    assert np.isnan(row["excess_low"])  # one term only: no interval over terms
    assert (row["accuracy"], row["margin"], row["chance"]) == (0.5, 0.25, pytest.approx(0.375))
    assert excluded(_tables()[0]).to_dict("records") == [{"prompt": "b/1", "reason": "absent", "checkpoints": 1}]


def test_cluster_interval_against_the_known_standard_error() -> None:
    """Clusters of equal size: the bootstrap interval is that of the cluster means (normal theory within 5%)."""
    rng = np.random.default_rng(3)
    means = rng.normal(size=200)
    values, names = np.repeat(means, 5), np.repeat(np.arange(200), 5)
    found = cluster_mean(values, names, draws=4000)
    half = 1.96 * means.std() / np.sqrt(200)
    assert found.mean == pytest.approx(means.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)
    assert found.clusters == 200
    single = cluster_mean(values, np.arange(1000), draws=4000)
    assert single.high - single.low < 0.6 * (found.high - found.low)  # ignoring the clusters is overconfident


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(-3, 3))
def test_cluster_mean_shifts_with_its_data(values: list[float], shift: float) -> None:
    names = list(range(len(values)))
    a, b = cluster_mean(values, names, draws=50), cluster_mean(np.add(values, shift), names, draws=50)
    np.testing.assert_allclose([b.mean, b.low, b.high], np.add([a.mean, a.low, a.high], shift), atol=1e-9)


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [([], [], "at least one"), ([1.0, np.nan], [0, 1], "1 of 2 values are not finite"), ([1.0], [0, 1], "as many")],
)
def test_cluster_mean_refuses(values: list[float], clusters: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster_mean(values, clusters)
