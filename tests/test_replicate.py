"""The published numbers against the published data; and folders that a user may hold instead, each fault by name."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats
from transformers import PreTrainedTokenizerFast

from bindscope.errors import RequestError
from bindscope.replicate.numbers import means, paper
from bindscope.replicate.published import read, step_of
from bindscope.replicate.replication import Replication, replicate
from bindscope.replicate.show import show, to_csv, to_dict
from conftest import shared

#: The only figures of the paper that differ from its data: five were rounded twice, one is a difference of roundings.
DIFFER = {
    ("EB* mean", "1b step0"),
    ("EB* mean", "2.8b step30000"),
    ("EB* mean", "2.8b step90000"),
    ("EB* maximum", "1b step0"),
    ("EB* maximum", "2.8b step120000"),
    ("ablation, generation", "2.8b step143000 top change"),
}


@pytest.fixture(scope="module")
def folder() -> Path:
    return shared("published")


@pytest.fixture(scope="module")
def found(folder: Path) -> Replication:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(shared("tokenizers", "neox", "tokenizer.json")))
    return replicate(folder, tokenizer)


def value(found: Replication, quantity: str, name: str) -> float:
    rows = found.figures[(found.figures["quantity"] == quantity) & (found.figures["name"] == name)]
    assert len(rows) == 1
    return float(rows.iloc[0]["recomputed"])


def reading(found: Replication, quantity: str, size: str, source: str = "pilot", kind: str = "controlled") -> pd.Series:
    rows = found.coupling
    rows = rows[(rows["source"] == source) & (rows["size"] == size)]
    rows = rows[(rows["quantity"] == quantity) & (rows["reading"] == kind)]
    assert len(rows) == 1
    return rows.iloc[0]


def reasons(found: Replication, kind: str) -> list[str]:
    rows = found.skipped[found.skipped["kind"] == kind]
    return [f"{row['file']}: {row['reason']}" for row in rows.to_dict("records")]


# --- the published data ---


def test_every_figure_of_the_paper_is_recomputed_and_all_but_six_match(found: Replication) -> None:
    told = found.figures[found.figures["verdict"] != "not computable"]
    differ = told[told["verdict"] != "match"]
    assert differ.groupby("verdict").size().to_dict() == {"rounded twice": 5, "mismatch": 1}
    assert set(zip(differ["quantity"], differ["name"], strict=True)) == DIFFER
    assert len(told) == 159
    assert differ["reason"].str.contains("rounded").all()
    lost = found.figures[found.figures["verdict"] == "not computable"]
    assert len(lost) == 36
    assert lost["reason"].str.startswith("needs ").all()


def test_the_numbers_of_the_data_s_own_readme(folder: Path, found: Replication) -> None:
    """Read from the README beside the data, not from the package's table of figures."""
    text = (folder / "README.md").read_text()
    rhos = re.search(
        r"96 pairs: 160M ([\d.]+) \(p ([\d.]+)\), 1B ([\d.]+) \(p ([\d.]+)\), 2.8B ([\d.]+) \(p ([\d.]+)\)", text
    )
    assert rhos
    for i, size in enumerate(("160m", "1b", "2.8b")):
        for quantity, printed in (("rho", rhos[2 * i + 1]), ("p", rhos[2 * i + 2])):
            digits = len(printed.split(".")[1])
            assert f"{value(found, f'Spearman(EB*, score), {quantity}', size):.{digits}f}" == printed
    compared = 0
    for label, quantity in (("EB* mean", "EB* mean"), ("Behaviour mean", "behavior mean")):
        line = next(line for line in text.splitlines() if line.startswith(label))
        for size in ("160m", "1b", "2.8b"):
            part = line[re.search(rf"{re.escape(size)}\b", line, re.IGNORECASE).end() :].split(";")[0]  # type: ignore[union-attr]
            printed = re.findall(r"\b\d\.\d{3}\b", part)
            assert len(printed) == 8
            for step, shown in zip(paper()["steps"], printed, strict=True):
                number = value(found, quantity, f"{size} {step}")
                same = f"{number:.3f}" == shown
                assert same != ((quantity, f"{size} {step}") in DIFFER)
                assert f"{round(number, 4) + 1e-9:.3f}" == shown
                compared += 1
    assert compared == 48


@pytest.mark.parametrize(
    ("quantity", "name", "printed"),
    [
        ("zero-shot mean", "160m step15000", "0.333"),
        ("one-shot mean", "160m step15000", "0.944"),
        ("one-shot gain (pp)", "160m step15000", "61.1"),
        ("one-shot gain (%)", "160m step15000", "183"),
        ("zero-shot mean", "160m step30000", "0.667"),
        ("one-shot mean", "160m step30000", "0.944"),
        ("one-shot gain (pp)", "160m step30000", "27.8"),
        ("zero-shot mean", "1b step15000", "0.556"),
        ("one-shot mean", "1b step15000", "0.944"),
        ("one-shot gain (pp)", "1b step15000", "38.9"),
        ("ablation, recognition", "160m step120000 baseline", "0.667"),
        ("ablation, recognition", "160m step120000 top", "0.500"),
        ("ablation, recognition", "160m step120000 random mean", "0.600"),
        ("ablation, recognition", "160m step120000 bottom", "0.667"),
        ("ablation, generation", "160m step120000 baseline", "0.556"),
        ("ablation, generation", "160m step120000 top", "0.444"),
        ("ablation, generation", "160m step120000 random mean", "0.544"),
        ("ablation, generation", "160m step120000 bottom", "0.556"),
        ("ablation, combined specificity", "160m step120000", "0.100"),
        ("ablation, recognition", "2.8b step143000 baseline", "0.500"),
        ("ablation, recognition", "2.8b step143000 top", "0.833"),
        ("ablation, recognition", "2.8b step143000 random mean", "0.500"),
        ("ablation, recognition", "2.8b step143000 bottom", "0.500"),
        ("ablation, generation", "2.8b step143000 baseline", "0.833"),
        ("ablation, generation", "2.8b step143000 top", "0.778"),
        ("ablation, generation", "2.8b step143000 random mean", "0.822"),
        ("ablation, generation", "2.8b step143000 bottom", "0.833"),
    ],
)
def test_few_shot_and_ablation_to_the_printed_digits(
    found: Replication, quantity: str, name: str, printed: str
) -> None:
    digits = len(printed.partition(".")[2])
    assert f"{value(found, quantity, name):.{digits}f}" == printed


def test_the_data_hold_together_but_for_the_one_shot_texts(found: Replication) -> None:
    bad = found.checks[found.checks["verdict"] != "match"]
    assert bad["check"].tolist() == ["one-shot texts used stand in the prompt files"]
    assert bad.iloc[0]["n"] == 18
    assert bad.iloc[0]["agree"] == 0
    counts = found.checks.set_index("check")["n"]
    assert counts["EB* is the maximum over layers"] == 288
    assert counts["pilot_summary.csv: beh_avg"] == 24


def test_length_of_term_and_the_previous_token_constant(found: Replication) -> None:
    rho = found.length.set_index("size")["rho"]
    assert round(rho["160m"], 2) == -0.96
    assert round(rho["1b"], 2) == -0.98
    told = found.constants[["source", "term", "n_term_tokens"]].values.tolist()
    assert ["controls", "glib thrang", 4] in told
    assert len(told) == 3
    assert np.allclose(found.constants["eb_star"], found.constants["constant"], atol=1e-6)


def test_gold_is_option_a_so_accuracy_is_the_rate_of_choosing_a(found: Replication) -> None:
    assert (found.answers["guesser"] == 1).all()
    assert (found.answers["gold"] == "A " + found.answers["items"].astype(str)).all()
    assert np.allclose(found.answers["accuracy"], found.answers["A"] / found.answers["items"])
    whole = found.answers[found.answers["checkpoint"] == "all"].set_index("size")
    assert whole["A"].to_dict() == {"160m": 17, "1b": 30, "2.8b": 30}
    assert "cannot be told apart" in found.shows["answers"]


def test_two_prompts_have_their_span_on_wrong_tokens(found: Replication) -> None:
    assert len(found.spans) == 12
    wrong = found.spans[~found.spans["agree"].astype(bool)]
    assert wrong["prompt"].str[:24].tolist() == ["Which group benefits mos", "For keyboard navigation,"]
    assert wrong["published_text"].tolist() == ["readers|?", "links|help"]
    assert wrong["located_text"].tolist() == ["screen|readers", "skip|links"]
    assert wrong["records"].tolist() == [24, 24]
    assert reading(found, "without mis-located spans", "160m")["n"] == 80


def test_coupling_without_what_it_rests_on(found: Replication) -> None:
    plain = reading(found, "all pairs", "160m", kind="published")
    assert plain["n"] == 96
    assert plain["p"] < 0.001
    assert reading(found, "without step 0", "160m")["n"] == 84
    assert abs(reading(found, "within checkpoints", "160m")["value"]) < 0.02
    assert reading(found, "window: late", "160m")["value"] < 0
    assert reading(found, "means of term", "all sizes")["n"] == 9
    one = reading(found, "all pairs", "1b")
    assert one["low"] < one["value"] < one["high"]
    assert one["clusters"] == 3
    assert pd.isna(one["p"])
    assert found.units["terms"].dropna().eq(3).all()


def test_published_coupling_is_scipys(folder: Path, found: Replication) -> None:
    data = read(folder)
    part = data.binding[data.binding["size"] == "1b"].merge(
        data.behavior, on=["size", "checkpoint", "term", "task", "prompt_id"], suffixes=("", "_")
    )
    expected = stats.spearmanr(part["eb_star"], part["score"])
    got = reading(found, "all pairs", "1b", kind="published")
    assert got["value"] == pytest.approx(expected.statistic)
    assert got["p"] == pytest.approx(expected.pvalue)


def test_shown_at_80_columns_without_control_codes(found: Replication) -> None:
    out = io.StringIO()
    show(found, Console(file=out, width=80, highlight=False))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert text.index("MISMATCH") < text.index("Where the answer stands") < text.index("study_readme.txt")
    assert "0.145469" in text


def test_written_as_csv_and_json(found: Replication, tmp_path: Path) -> None:
    paths = to_csv(found, tmp_path / "deep" / "out")
    assert {p.stem for p in paths} >= {"figures", "checks", "coupling", "spans", "skipped", "shows"}
    assert len(pd.read_csv(tmp_path / "deep" / "out" / "figures.csv")) == len(found.figures)
    again = json.loads(json.dumps(to_dict(found), allow_nan=False))
    assert len(again["spans"]) == 12
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RequestError, match="cannot write"):
        to_csv(found, blocked)


def test_a_changed_record_is_a_mismatch(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "pilot_results" / "binding" / "160m_step60000_binding.jsonl"
    path.chmod(0o644)
    path.write_text(path.read_text().replace('"eb_star": 0.', '"eb_star": 0.1', 1))
    found = replicate(copy, None)
    differ = found.figures[found.figures["verdict"] == "mismatch"]
    assert ("EB* mean", "160m step60000") in set(zip(differ["quantity"], differ["name"], strict=True))
    held = found.checks.set_index("check")
    assert held.loc["EB* is the maximum over layers", "agree"] == 287
    assert held.loc["pilot_summary.csv: eb_star_mean", "agree"] == 23
    assert "not looked at" in found.shows["spans"].lower()


# --- folders written here ---

TERMS = ("screen reader", "skip link", "alt text")
STEPS = ("step0", "step15000", "step30000", "step60000", "step90000", "step120000", "step140000", "step143000")
Number = Callable[[int, int, int], float]


def records(
    term: int, step: int, prompt: int, eb: Number, score: Number, size: str = "160m"
) -> tuple[dict[str, Any], dict[str, Any]]:
    task = "recognition" if prompt < 2 else "generation"
    head = {
        "model": f"pythia-{size}-deduped", "checkpoint": STEPS[step], "term": TERMS[term], "task": task,
        "prompt_id": f"{task[:3]}_{prompt}", "prompt_template": f"Text {prompt} about a {TERMS[term]} here",
    }  # fmt: skip
    e, s = eb(term, step, prompt), score(term, step, prompt)
    layers = [round(e * (12 - i) / 12, 6) for i in range(12)]
    binding = {"eb_star": e, "eb_per_layer": layers, "best_layer": 0, "entropy": 1.0, "span_indices": [4, 5]}
    behavior: dict[str, Any] = {"score": s, "is_correct": s > 0.5, "text_out": ""}
    if task == "recognition":
        behavior |= {"predicted_idx": 0 if s > 0.5 else 1, "log_probs": [0.0, -1.0] if s > 0.5 else [-1.0, 0.0]}
    return head | binding | {"n_term_tokens": 2}, head | behavior


def grows(term: int, step: int, prompt: int) -> float:
    return round(0.1 + 0.08 * step + 0.01 * term + 0.003 * prompt, 6)


def alternates(term: int, step: int, prompt: int) -> float:
    return float((term + step + prompt) % 2)


def write(
    folder: Path,
    eb: Number = grows,
    score: Number = alternates,
    terms: int = 3,
    steps: tuple[int, ...] = tuple(range(8)),
) -> Path:
    for step in steps:
        both = [records(t, step, p, eb, score) for t in range(terms) for p in range(4)]
        for i, name in enumerate(("binding", "behavioral")):
            path = folder / name / f"160m_{STEPS[step]}_{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(pair[i]) + "\n" for pair in both))
    return folder


def test_a_whole_synthetic_pilot(tmp_path: Path) -> None:
    found = replicate(write(tmp_path), None)
    assert found.skipped.empty
    rows = found.figures[found.figures["name"].str.startswith("160m step")]
    assert (rows[rows["quantity"] == "EB* mean"]["verdict"] == "mismatch").all()
    assert value(found, "EB* mean", "160m step15000") == pytest.approx(0.1 + 0.08 + 0.01 + 0.0045)
    assert value(found, "behavior mean", "160m step0") == pytest.approx(0.5)
    assert found.answers.empty
    assert "prompt file" in found.shows["answers"]


def test_missing_checkpoint_is_named_and_its_figures_are_not_computed(tmp_path: Path) -> None:
    found = replicate(write(tmp_path, steps=(0, 1, 2, 4, 5, 6, 7)), None)
    assert reasons(found, "missing") == [
        "160m_step60000_binding.jsonl: no such records; figures over this checkpoint are not computable",
        "160m_step60000_behavioral.jsonl: no such records; figures over this checkpoint are not computable",
    ]
    rows = found.figures.set_index(["quantity", "name"])
    assert rows.loc[("EB* mean", "160m step60000"), "verdict"] == "not computable"
    rho = rows.loc[("Spearman(EB*, score), rho", "160m")]
    assert rho["verdict"] == "not computable"
    assert rho["reason"] == "84 observations in the data, 96 in the paper"


def test_a_lone_record_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "behavioral" / "160m_step0_behavioral.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))
    found = replicate(tmp_path, None)
    (only,) = reasons(found, "missing")
    assert only == "160m_step0: 1 prompts have no partner, first screen reader rec_0 without behavior"
    row = found.checks.set_index("check").loc["every record of binding has one of behavior"]
    assert (row["n"], row["agree"], row["verdict"]) == (96, 95, "mismatch")


def test_one_term_has_no_interval(tmp_path: Path) -> None:
    found = replicate(write(tmp_path, terms=1), None)
    row = reading(found, "all pairs", "160m")
    assert row["clusters"] == 1
    assert pd.isna(row["low"])
    assert row["reason"] == "one term: an interval needs at least two"
    assert "does not exist" in found.shows["coupling"]


@pytest.mark.parametrize(("constant", "what"), [("eb", "EB*"), ("score", "the score")])
def test_a_constant_series_has_no_correlation(tmp_path: Path, constant: str, what: str) -> None:
    found = replicate(write(tmp_path, **{constant: lambda term, step, prompt: 0.5}), None)
    row = reading(found, "all pairs", "160m", kind="published")
    assert pd.isna(row["value"])
    assert row["reason"] == f"{what} is constant (0.5 in all 96 pairs)"
    figure = found.figures.set_index(["quantity", "name"]).loc[("Spearman(EB*, score), rho", "160m")]
    assert figure["verdict"] == "not computable"
    assert figure["reason"] == row["reason"]


def test_damaged_and_unknown_files_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "binding" / "160m_step0_binding.jsonl"
    lines = path.read_text().splitlines()
    first = json.loads(lines[0]) | {"eb_star": float("nan")}
    path.write_text("\n".join([json.dumps(first), *lines[1:-1], lines[-1][:40]]))
    (tmp_path / "behavioral" / "empty.jsonl").write_text("\n")
    (tmp_path / "text.jsonl").write_text(json.dumps(first | {"eb_star": "0.5"}))
    (tmp_path / "latin.csv").write_bytes("term,é".encode("latin-1"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "half_causal.json").write_text('{"model": "x", "checkpoint": "y", "recognition"')
    (tmp_path / "near.json").write_text('{"model": "x", "checkpoint": "y", "drops": {}}')
    (tmp_path / "odd.json").write_text(
        '{"model": "x", "checkpoint": "y", "recognition": {"MIDDLE-4": {"accuracy": 0.5}}}'
    )
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "notes.txt").write_text("hello")
    found = replicate(tmp_path, None)
    damaged, unknown = "\n".join(reasons(found, "damaged")), "\n".join(reasons(found, "unknown"))
    assert "160m_step0_binding.jsonl: line 1: eb_star is nan: input should be a finite number" in damaged
    assert "160m_step0_binding.jsonl: line 12: not JSON" in damaged
    assert "empty.jsonl: the file is empty" in damaged
    assert "text.jsonl: line 1: eb_star is '0.5'" in damaged
    assert "latin.csv: cannot be read as UTF-8 text" in damaged
    assert "half_causal.json: not JSON" in damaged
    assert "odd.json: recognition has an unknown condition 'MIDDLE-4'" in damaged
    assert "other.csv: no known set of keys" in unknown
    assert "near.json: no known set of keys; nearest is Ablation, without recognition" in unknown
    assert "list.json: a list, not an object" in unknown
    assert "notes.txt: not a .jsonl, .csv, .json file" in unknown
    mean = found.figures.set_index(["quantity", "name"]).loc[("EB* mean", "160m step0")]
    assert mean["reason"] == "10 observations in the data, 12 in the paper"


def test_duplicates_count_once_and_contradictions_not_at_all(tmp_path: Path) -> None:
    write(tmp_path)
    original = tmp_path / "binding" / "160m_step0_binding.jsonl"
    lines = original.read_text().splitlines()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "again.jsonl").write_text(
        lines[0] + "\n" + json.dumps(json.loads(lines[1]) | {"entropy": 1.5}) + "\n"
    )
    data = read(tmp_path)
    at = data.binding[data.binding["checkpoint"] == "step0"]
    assert len(at) == 11
    told = [f"{item.file}: {item.reason}" for item in data.skipped if item.kind == "duplicate"]
    assert told == [
        "copy/again.jsonl: records that repeat others word for word, counted once: 1",
        "copy/again.jsonl: 2 records for pythia-160m-deduped step0 screen reader recognition rec_1 disagree "
        "(binding/160m_step0_binding.jsonl, copy/again.jsonl); none is used",
    ]


def test_another_prompt_set_does_not_mix_with_the_pilot(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("binding", "behavioral"):
        shutil.copytree(tmp_path / name, tmp_path / f"{name}_expanded")
    found = replicate(tmp_path, None)
    assert found.skipped.empty
    assert reading(found, "all pairs", "160m")["n"] == 96
    assert reading(found, "all pairs", "160m", source="expanded")["n"] == 96


def c5(**more: Any) -> dict[str, Any]:
    return {"model": "pythia-160m-deduped", "checkpoint": "step143000", **more}


def cells(**correct: int) -> dict[str, Any]:
    names = {
        "base": "BASELINE",
        "top": "TOP-4 ablated",
        "r1": "RANDOM trial 1",
        "r2": "RANDOM trial 2",
        "bot": "BOTTOM-4",
    }
    return {names[k]: {"accuracy": n / 205, "correct": n, "total": 205} for k, n in correct.items()}


def test_ablation_nested_flat_and_at_the_top_level(tmp_path: Path) -> None:
    counts = cells(base=166, top=143, r1=164, r2=160, bot=170)
    generated = {name: {"mean_score": 0.2} for name in counts}
    drops = {"top_rec_drop": 23 / 205, "mean_random_rec_drop": 4 / 205, "specificity": 0.5 * 19 / 205}
    nested = c5(recognition=counts, generation=generated, drops=drops)
    (tmp_path / "160m_c5_canonical41.json").write_text(json.dumps(nested))
    flat = {"baseline_rec": 0.9902, "top_ablated_rec": 0.9805, "rand_ablated_rec": 0.9746, "bot_ablated_rec": 0.9951}
    (tmp_path / "olmo_c5_canonical41.json").write_text(
        json.dumps({"model": "olmo-1b", "checkpoint": "step143k", "n_prompts": 205, "specificity": -0.0059} | flat)
    )
    top = {"model": "pythia-1b-deduped", "checkpoint": "step143000"} | cells(base=164, top=133, r1=157, bot=149)
    (tmp_path / "1b_c5_canonical41.json").write_text(json.dumps(top))
    found = replicate(tmp_path, None)
    rows = found.figures.set_index(["quantity", "name"])["verdict"]
    what = "ablation of 41 terms, recognition"
    assert rows[(what, "160m step143000 baseline")] == "match"
    assert rows[(what, "160m step143000 top")] == "match"
    assert rows[(what, "160m step143000 random mean")] in ("mismatch", "rounded twice")
    assert rows[(what, "1b step143000 specificity")] == "match"
    assert rows[(what, "olmo-1b step143k specificity")] == "match"
    assert rows[(what, "olmo-1b step143k random mean")] in ("mismatch", "rounded twice")
    held = found.checks.set_index("check").loc["ablation: stored drops and specificity"]
    assert (held["n"], held["agree"]) == (4, 4)
    units = found.units.set_index("statistic")
    assert units.loc["160m step143000: ablation -11.2 pp", "p"] == pytest.approx(1 / 3)
    assert pd.isna(units.loc["olmo-1b step143k: ablation -1.0 pp", "p"])


def test_term_table_lead_and_decoupling(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        f"term {t},{size},{step},{rng.random():.6f},{rng.random():.4f}"
        for t in range(9) for size in ("160m", "1b", "2.8b") for step in STEPS for _ in range(2)
    ]  # fmt: skip
    (tmp_path / "expanded_summary.csv").write_text("term,model,checkpoint,eb_star,beh_avg\n" + "\n".join(rows))
    lead = [f"pythia-1b,term {i},{0.5 if i < 30 else -0.5},0.1,0,0" for i in range(41)] + ["pythia-1b,flat,nan,,0,0"]
    (tmp_path / "any_name.csv").write_text(
        "model,term,r_forward,r_backward,lead_diff,lead_indicator\n" + "\n".join(lead)
    )
    late = ["pythia-160m,a,0.4,-0.1,1", "pythia-160m,b,0.4,0.188,0", "pythia-160m,c,0.4,0.044,1"]
    (tmp_path / "within_term_decoupling_x.csv").write_text(
        "model,term,rho_early,rho_late,decouple_strict\n" + "\n".join(late)
    )
    found = replicate(tmp_path, None)
    assert found.skipped.empty
    figures = found.figures.set_index(["quantity", "name"])
    assert figures.loc[("term table, steps 0-15k: rho", "all sizes"), "n"] == 108
    assert figures.loc[("term table, steps 120-143k: p", "all sizes"), "n"] == 162
    assert figures.loc[("share of terms that EB* leads (%)", "1b"), "verdict"] == "match"
    assert figures.loc[("terms that EB* leads: binomial p", "1b"), "verdict"] == "match"
    assert figures.loc[("mean rho_late over terms", "160m"), "verdict"] == "match"
    strict = found.checks.set_index("check").loc["strict decoupling is rho_early > 0, rho_late <= 0"]
    assert (strict["n"], strict["agree"]) == (3, 2)
    row = reading(found, "without step 0", "all sizes", source="term table")
    assert row["clusters"] == 9
    assert row["low"] < row["value"] < row["high"]


def test_scores_under_either_name(tmp_path: Path) -> None:
    _, behavior = records(0, 0, 0, grows, alternates)
    other = {k: v for k, v in behavior.items() if k not in ("score", "text_out")} | {"behavioral_score": 0.25}
    (tmp_path / "b.jsonl").write_text(json.dumps(other | {"generated_text": "so"}))
    assert read(tmp_path).behavior[["score", "text_out"]].values.tolist() == [[0.25, "so"]]


def test_lead_columns_under_either_name(tmp_path: Path) -> None:
    (tmp_path / "within_term_lead.csv").write_text("term,r_lead,r_lag\na,0.5,0.1\n")
    data = read(tmp_path)
    assert data.lead[["term", "r_lead", "r_lag"]].values.tolist() == [["a", 0.5, 0.1]]


def test_spans_of_other_models_are_not_compared(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    binding, _ = records(0, 0, 0, grows, alternates)
    lines = [binding, binding | {"model": "olmo-1b"}, binding | {"prompt_id": "x", "prompt_template": "no such thing"}]
    lines.append(binding | {"prompt_id": "y", "span_indices": [90, 91]})
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = replicate(tmp_path, words)
    assert len(found.spans) == 4
    told = found.spans["reason"].fillna("").tolist()
    assert "not known for this model" in " ".join(told)
    assert any("does not occur" in reason for reason in told)
    assert any("past the end" in reason for reason in told)
    assert found.spans["agree"].map(lambda agree: agree is None).sum() == 2


@pytest.mark.parametrize("name", ["pilot_summary.csv", "controls.csv", "prompts.jsonl", "tokens.csv"])
def test_one_kind_of_file_alone(tmp_path: Path, name: str) -> None:
    text = {
        "pilot_summary.csv": "model,checkpoint,rec_acc,gen_mean,beh_avg,"
        "eb_star_mean,eb_star_max,best_layer_mode,n_prompts\n"
        "pythia-160m-deduped,step0,0.1,0.1,0.1,0.1,0.2,3,12\n",
        "controls.csv": "model,checkpoint,term,control_group,n_term_tokens,eb_star\n"
        "m,step0,a b,g,2,0.5\nm,step0,c d,g,x,0.4\n",
        "prompts.jsonl": '{"term": "a b", "task": "generation", "template": "t", "prompt_id": "p"}\n',
        "tokens.csv": 'model_size,term,n_tokens,token_ids\n160m,a b,3,"[1, 2]"\n',
    }[name]
    (tmp_path / name).write_text(text)
    found = replicate(tmp_path, None)
    out = io.StringIO()
    show(found, Console(file=out, width=80))
    assert (found.figures["verdict"] == "not computable").all()
    if name == "controls.csv":
        (only,) = reasons(found, "damaged")
        assert only.startswith("controls.csv: line 3: n_term_tokens is 'x': input should be a valid integer")
        assert found.length.iloc[0]["reason"] == "too few pairs: 1"
    if name == "tokens.csv":
        assert "token table" in out.getvalue()
        assert (found.checks["verdict"] == "mismatch").sum() == 1
    if name == "pilot_summary.csv":
        assert (found.checks["verdict"] == "mismatch").any()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_nothing_to_read_is_a_wrong_request(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "data")
    with pytest.raises(RequestError, match=r"not a folder|is a result file"):
        replicate(tmp_path / "data", None)


def test_means_leave_out_what_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, steps=(0,))
    shutil.rmtree(tmp_path / "behavioral")
    row = means(read(tmp_path)).iloc[0]
    assert row["eb_star_mean_n"] == 12
    assert pd.isna(row["beh_avg"])


def test_no_model_library_is_loaded() -> None:
    code = "import sys, bindscope.replicate.show; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "step"), [("step15000", 15000), ("step15k", 15000), ("checkpoint-400000", 400000), ("final", None)]
)
def test_steps(name: str, step: int | None) -> None:
    assert step_of(name) == step
