"""The tables of a report, in the order in which it shows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from bindscope.report.material import Material
from bindscope.report.table import Table
from bindscope.report.text import chance, line, number, place, span
from bindscope.stats.analysis import PAIRS

_QUANTITIES = {
    "eb_star": "EB*",
    "null": "Window null",
    "excess": "Excess",
    "position_excess": "Excess at like positions",
    "accuracy": "Accuracy",
    "margin": "Margin",
    "generation": "Generation",
}
_SHOTS = {
    "zero": "none",
    "exemplar": "the term's own",
    "paraphrased": "paraphrased, without keywords",
    "mismatched": "another term's",
}


def tables(found: Material) -> list[Table]:
    """Every table that the run carries."""
    makers = (checkpoints, pairs, statistics, controls, positions, scores, few_shot, edits, sampling, tokens)
    made = [table for maker in makers for table in maker(found) if table.rows]
    return made if len(found.suites) > 1 else [_alone(table) for table in made]


def _alone(table: Table) -> Table:
    """The table without its column of suites, where there is one suite and something else names the rows."""
    if "Suite" not in table.head or table.keys < 2:
        return table
    at = list(table.head).index("Suite")
    rows = [[cell for i, cell in enumerate(row) if i != at] for row in table.rows]
    return replace(table, head=[h for h in table.head if h != "Suite"], rows=rows, keys=table.keys - 1)


def _value(row: Mapping[Any, Any], name: str, digits: int = 3) -> str:
    if name not in row or pd.isna(row[name]):
        return str(row.get("reason") or "") if name == "difference" else number(None)
    return f"{number(row[name], digits)} {span(row.get(f'{name}_low'), row.get(f'{name}_high'), digits)}".strip()


def checkpoints(found: Material) -> Iterator[Table]:
    """Means by checkpoint."""
    shown = {c: label for c, label in _QUANTITIES.items() if c in found.summary and found.summary[c].notna().any()}
    yield Table(
        "checkpoints",
        "",
        "Every checkpoint",
        "Means over prompts; in brackets the 95% interval over terms (whole terms are redrawn). Excess is EB* minus "
        "the mean EB* of windows of as many tokens elsewhere in the same prompts; at like positions, of those that "
        "start about as far into the text. Margin is in nats per token. Generation is the rubric score of the greedy "
        "continuation, 0 to 1.",
        ["Suite", "Step", *shown.values()],
        [[line(str(r["suite"])), place(r), *(_value(r, c) for c in shown)] for r in found.summary.to_dict("records")],
        found.summary,
        keys=2,
    )


def _said(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["value"]):
        return f"not available: {row['reason']}"
    return " ".join(filter(None, (number(row["value"], 2), span(row["low"], row["high"], 2), chance(row["p"]))))


def pairs(found: Material) -> Iterator[Table]:
    """The two readings of each claim side by side, a row per suite."""
    results = found.results()
    for claim, quantities in PAIRS.items():
        rows, kept = [], []
        for suite in dict.fromkeys(results["suite"]):
            cells = []
            for quantity, reading in zip(quantities, ("published", "controlled"), strict=True):
                part = results[(results["suite"] == suite) & (results["claim"] == claim)]
                part = part[(part["quantity"] == quantity) & (part["reading"] == reading)]
                cells.append(_said(part.iloc[0].to_dict()) if len(part) else number(None))
                kept.append(part)
            rows.append([line(str(suite)), *cells])
        if not rows or all(c.startswith("not available") for row in rows for c in row[1:]):
            continue
        same = quantities[0] == quantities[1]
        heads = [f"{reading}: {q}" for reading, q in zip(("As published", "Controlled"), quantities, strict=True)]
        yield Table(
            f"pair-{claim}",
            claim,
            f"{claim[0].upper()}{claim[1:]}: published and controlled",
            f"Both are of: {quantities[0]}." if same else "",
            ["Suite", *(["As published", "Controlled"] if same else heads)],
            rows,
            pd.concat(kept),
        )


def statistics(found: Material) -> Iterator[Table]:
    """Every statistic of a claim."""
    table = found.results()
    for claim, part in table.groupby("claim", sort=False):
        rows = [
            [
                line(str(r["suite"])),
                str(r["quantity"]),
                r["reading"],
                number(r["value"]),
                span(r["low"], r["high"]),
                chance(r["p"]),
                chance(r["q"]).replace("p", "q"),
                f"{r['n']} \u00d7 {r['unit']}",
                str(r["method"]),
                line(str(r["reason"] or "")),
            ]
            for r in part.to_dict("records")
        ]
        yield Table(
            f"claim-{claim}",
            str(claim),
            f"Every statistic of {claim}",
            "q is p adjusted within suite and reading (Benjamini and Hochberg). Intervals are 95% unless the method "
            "says otherwise.",
            ["Suite", "Quantity", "Reading", "Value", "Interval", "p", "q", "n", "Method", "Remark"],
            rows,
            part,
            keys=2,
        )


def controls(found: Material) -> Iterator[Table]:
    """Terms and controls at equal token counts."""
    frame = found.groups
    if frame.empty or set(frame["group"]) <= {"real"}:
        return
    rows = [
        [
            line(str(r["suite"])),
            f"{line(str(r['group']))}, {r['k']} tokens",
            "" if r["group"] == "real" else _value(r, "difference"),
            str(r["terms"]),
            _value(r, "eb_star"),
            number(r["eb_star_mass"]),
            _value(r, "excess"),
        ]
        for r in frame.sort_values(["suite", "k"], kind="stable").to_dict("records")
    ]
    yield Table(
        "controls",
        "V",
        "Terms and controls in the same sentences",
        "Of the last checkpoint. The third column compares at equal token counts within each sentence; brackets: 95% "
        "interval.",
        ["Suite", "Group", "EB* of terms less group", "Expressions", "EB*", "EB*_mass", "Excess"],
        rows,
        frame,
        keys=2,
    )


def positions(found: Material) -> Iterator[Table]:
    """Accuracy by the place of the right answer."""
    frame = found.more("positions")
    if frame.empty:
        return
    yield Table(
        "positions",
        "",
        "Accuracy by the place of the right answer",
        f"Of the last checkpoint. Without a preference each place is chosen in {number(1 / frame['places'].iloc[0])} "
        "of the questions.",
        ["Suite", "Place", "Questions with gold there", "Accuracy", "How often the place is chosen"],
        [
            [line(str(r["suite"])), r["position"], str(r["n"]), number(r["accuracy"]), number(r["chosen"])]
            for r in frame.to_dict("records")
        ],
        frame,
        keys=2,
    )


def scores(found: Material) -> Iterator[Table]:
    """Accuracy under every score."""
    frame = found.more("scores")
    if frame.empty:
        return
    yield Table(
        "scores",
        "",
        "Accuracy under four scores of a choice",
        "Of the last checkpoint. PMI takes off what a choice has after a neutral premise. Brackets: 95% interval over "
        "terms.",
        ["Suite", "Format", "Score", "Accuracy", "Margin"],
        [
            [
                line(str(r["suite"])),
                r["format"],
                r["score"].replace("_", " "),
                f"{number(r['accuracy'])} {span(r['low'], r['high'])}".strip(),
                number(r["margin"]),
            ]
            for r in frame.to_dict("records")
        ],
        frame,
        keys=3,
    )


def few_shot(found: Material) -> Iterator[Table]:
    """Scores and gains by kind of exemplar."""
    frame = found.shots
    if frame.empty:
        return
    own = frame[frame["exemplar"] == "exemplar"]
    copied = f"{int(own['copied'].sum())} of {int(own['matched'].sum())}" if len(own) else "none"
    yield Table(
        "few-shot",
        "C3",
        "Generation behind an exemplar",
        f"Of the last checkpoint. Keywords behind the term's own exemplar that stand in the exemplar: {copied}.",
        ["Suite", "Exemplar in front", "Rubric score", "Gain"],
        [
            [
                line(str(r["suite"])),
                _SHOTS[r["exemplar"]],
                _value(r, "score"),
                "" if r["exemplar"] == "zero" else _value(r, "gain"),
            ]
            for r in frame.to_dict("records")
        ],
        frame,
        keys=2,
    )


def edits(found: Material) -> Iterator[Table]:
    """What taking heads out does."""
    frame = found.more("ablation")
    if frame.empty:
        return
    rows = [
        [
            line(str(r["suite"])),
            f"{r['k']} heads by {r['ranking']}, {r['mode']}, {r['outcome']}",
            number(r["baseline"]),
            number(r["top"]),
            number(r["random"]),
            number(r["bottom"]),
            f"{number(r['specificity'])} {span(r['low'], r['high'])}".strip(),
            number(r["p"]),
            number(r["loss_top"]),
            number(r["loss_random"]),
            r["verdict"],
        ]
        for r in frame.to_dict("records")
    ]
    yield Table(
        "heads-taken-out",
        "C5",
        "Heads taken out",
        f"Of the last checkpoint, against {int(frame['random_sets'].max())} random sets of as many heads. Loss: nats, "
        "on neutral text.",
        [
            "Suite",
            "Edit and outcome",
            "Whole",
            "Top",
            "Random",
            "Bottom",
            "Specificity",
            "p",
            "Loss, top",
            "Loss, random",
            "Verdict",
        ],
        rows,
        frame,
        keys=2,
    )


def sampling(found: Material) -> Iterator[Table]:
    """Spread of sampled answers."""
    frame = found.more("variability")
    if frame.empty:
        return
    means = frame.groupby(["suite", "temperature"], sort=False)[["mean", "sd", "texts"]].mean().reset_index()
    yield Table(
        "sampling",
        "",
        "Sampling",
        "Of the last checkpoint. Spread: standard deviation over seeds of a prompt's score, mean over prompts.",
        ["Suite", "Temperature", "Rubric score", "Spread", "Different texts"],
        [
            [line(str(r["suite"])), str(r["temperature"]), number(r["mean"]), number(r["sd"]), number(r["texts"])]
            for r in means.to_dict("records")
        ],
        means,
        keys=2,
    )


def tokens(found: Material) -> Iterator[Table]:
    """How each suite's tokenizer cuts the terms."""
    frame = found.cuts
    if frame.empty:
        return
    rows = [
        [
            line(str(r["term"])),
            line(str(r["suite"])),
            number(r["k"], 0),
            " | ".join(line(t).strip() if t.strip() else "\u00b7" for t in r["tokens"]),
            str(r["forms"]),
            f"{r['prompts'] - r['left_out']} of {r['prompts']}",
            line(r["reasons"]),
        ]
        for r in frame.sort_values(["term"], kind="stable").to_dict("records")
    ]
    yield Table(
        "tokens",
        "",
        "How the terms are cut into tokens",
        "The cut most often met in the prompts. EB* falls with k by itself, so terms of different k are not compared.",
        ["Term", "Suite", "k", "Tokens", "Different cuts", "Prompts with a span", "Why not all"],
        rows,
        frame.assign(tokens=frame["tokens"].map(" | ".join)),
        keys=2,
    )
