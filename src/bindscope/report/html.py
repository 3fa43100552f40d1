"""A results folder -> report.html: one file, no request leaves it, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bindscope.report.figures import emergence, svg
from bindscope.report.tables import tables
from bindscope.stats.observations import studied
from bindscope.stats.summary import by_checkpoint, excluded, without_null
from bindscope.store import RunFile, Store

_PAGE = Environment(
    loader=PackageLoader("bindscope.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; a missing one is said to be missing."""
    if value is None or pd.isna(value):
        return "not available"
    text = f"{value:.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "\u2212")


def write(store: Store, said: pd.DataFrame | None = None) -> Path:
    """Draw the report of a results folder and return its path. Raises StoreError where the results cannot be read.

    said: the sentences of `stats.analysis`: suite, claim, text.
    """
    run = store.read_run()
    binding, recognition, generation = (store.read(name) for name in ("binding", "recognition", "generation"))
    summary = by_checkpoint(binding, recognition, generation) if not binding.empty else pd.DataFrame({"suite": []})
    binding = studied(binding)
    page = _PAGE.get_template("report.html.j2").render(
        study=run.study,
        rotated="rotation" in recognition and bool((recognition["rotation"] > 0).any()),
        version=version("bindscope"),
        suites=[
            _suite(str(name), part)
            | {"tables": list(tables(store, str(name), number)), "claims": _claims(said, str(name))}
            for name, part in summary.groupby("suite", sort=False)
        ],
        missing=[u.checkpoint.label for u in run.units if u.status != "done"],
        units=len(run.units),
        bare=without_null(binding).to_dict("records") if not binding.empty else [],
        tokens=_tokens(binding),
        failed=[
            {"name": f"{u.checkpoint.suite}, {u.checkpoint.label}", "reason": u.reason}
            for u in run.units
            if u.status == "failed"
        ],
        excluded=excluded(binding).to_dict("records") if not binding.empty else [],
        **_facts(store, run),
    )
    return store.write_text("report.html", page)


_CLAIMS = {
    "V": "V, are terms bound more than other expressions?",
    "C1-A": "C1-A, does binding go with knowing?",
    "C1-B": "C1-B, does binding come first?",
    "C2": "C2, is binding a property of the term?",
    "C3": "C3, what does an exemplar unlock?",
    "C4-A": "C4-A, does binding go with knowing late in training?",
    "C4-B": "C4-B, do the two come apart?",
    "C5": "C5, do the binding heads matter?",
    "robustness": "Robustness, does binding depend on the sentence?",
}


def _claims(said: pd.DataFrame | None, suite: str) -> list[tuple[str, str]]:
    """Question and answer for each claim that the data carry."""
    if said is None or said.empty:
        return []
    mine = said[(said["suite"] == suite) & ~said["text"].str.startswith("Not carried")]
    return [(_CLAIMS[row["claim"]], row["text"]) for row in mine.to_dict("records")]


def _suite(name: str, part: pd.DataFrame) -> dict[str, Any]:
    figures = []
    if part["step"].notna().all() and len(part) > 1:
        lines = {"eb_star": "EB* of the terms", "null": "EB* of other windows (null)"}
        figures.append(_figure(part, lines, "Binding", "EB*", "Bands are 95% intervals over terms."))
        if "accuracy" in part:
            lines = {"accuracy": "recognition accuracy", "chance": "chance"}
            figures.append(_figure(part, lines, "Recognition", "accuracy", "The band is the 95% interval over terms."))
    rows = [{"label": _label(row), "cells": [_cell(row, name) for name in _COLUMNS]} for row in part.to_dict("records")]
    return {"name": name, "answer": _answer(part), "figures": figures, "rows": rows}


_COLUMNS = ("eb_star", "null", "excess", "position_excess", "accuracy", "margin", "generation")


def _label(row: Mapping[Any, Any]) -> str:
    return str(row["revision"]) if pd.isna(row["step"]) else f"{int(row['step']):,}"


def _cell(row: Mapping[Any, Any], name: str) -> tuple[str, str]:
    """A value and its interval, each as text."""
    if name not in row or pd.isna(row[name]):
        return "not available", ""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return number(row[name]), "" if low is None or pd.isna(low) else f"[{number(low)}, {number(high)}]"


def _answer(part: pd.DataFrame) -> str:
    """What the numbers say, in words, without a claim that they do not carry."""
    last = part.iloc[-1]
    where = "" if len(part) == 1 else f"At the last checkpoint measured ({_label(last.to_dict())}) "
    text = f"{where}EB* is {number(last['eb_star'])}"
    if pd.isna(last["excess"]):
        text += "; there are too few other windows to compare it with (see below)."
    else:
        text += f", and its excess over other windows of as many tokens is {number(last['excess'])}"
        if pd.notna(last["excess_low"]):
            text += f" (95% interval over terms {number(last['excess_low'])} to {number(last['excess_high'])})"
        text += "."
    if "accuracy" in part and pd.notna(last["accuracy"]):
        text += (
            f" The right answer is chosen in {number(100 * last['accuracy'], 0)}% of the questions, chance is "
            f"{number(100 * last['chance'], 0)}%."
        )
    return f"{text} {len(part)} checkpoint{'s were' if len(part) > 1 else ' was'} measured."


def _tokens(binding: pd.DataFrame) -> str:
    """How many prompts have a term of k tokens, by suite: EB* falls with k."""
    if binding.empty:
        return ""
    first = binding[binding["k"].notna()].drop_duplicates(["suite", "prompt"]).astype({"k": int})
    return "; ".join(
        f"{suite}: " + ", ".join(f"{n} of {k} tokens" for k, n in part["k"].value_counts().sort_index().items())
        for suite, part in first.groupby("suite", sort=False)
    )


def _figure(part: pd.DataFrame, lines: dict[str, str], title: str, axis: str, caption: str) -> dict[str, Any]:
    first, last = part.iloc[0], part.iloc[-1]
    ends = "; ".join(
        f"{label} goes from {number(first[c])} at step {_label(first.to_dict())} to {number(last[c])} at "
        f"step {_label(last.to_dict())}"
        for c, label in lines.items()
    )
    return {
        "svg": Markup(svg(emergence(part, lines, title, axis))),  # drawn by us from numbers and fixed labels
        "alt": f"Line chart, {title.lower()} by training step: {ends}. The table below holds every value.",
        "caption": caption,
    }


def _facts(store: Store, run: RunFile) -> dict[str, Any]:
    done = [u for u in run.units if u.status == "done"]
    shards = [store.provenance(u.checkpoint, "binding", u.keys["binding"]) for u in done]
    facts = [("Units", f"{len(done)} of {len(run.units)} measured"), *_how(run, shards)]
    facts.append(("Seconds of measuring", f"{sum(p['seconds'] for p in shards):.0f}"))
    facts += [("Note", note) for note in dict.fromkeys(note for p in shards for note in p["notes"][1:])]
    if strangers := store.strangers():
        facts.append(("Not shown", f"{strangers} shards in the folder belong to another study or protocol"))
    rows = [
        {
            "name": f"{unit.checkpoint.suite}, {unit.checkpoint.label}",
            "commit": p["identity"]["commit"] or "local",
            "fingerprint": p["identity"]["fingerprint"][:16],
            "check": p["notes"][0].removeprefix("self-check: "),
            "weights": (unit.weights or "not known")[:16],
            "flags": "; ".join(unit.flags),
        }
        for unit, p in zip(done, shards, strict=True)
    ]
    return {"facts": facts, "checkpoints": rows}


_ORDERS = {"rotated": "rotated", "spread": "once each, gold in changing places", "given": "once each, gold as given"}


def _format(protocol: dict[str, Any]) -> str:
    if protocol["format"] is None:
        return "as in the prompt file"
    if protocol["format"] == "cloze":
        return "cloze: no options are shown"
    return f"listed, options {_ORDERS[protocol['order']]}"


def _how(run: RunFile, shards: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """How the numbers were made. Where checkpoints were made in different ways, each way is listed with its suites."""
    per: dict[str, dict[str, list[str]]] = {}
    for p in shards:
        source = f"commit {p['git_commit']}" if p["git_commit"] else "an installed release"
        facts = {
            "Format": _format(p["protocol"]),
            "BOS token": p["bos"],
            "Computed": f"{p['dtype']} on {p['device']}, {p['attention']}",
            "Versions": ", ".join(f"{k} {v}" for k, v in p["versions"].items()),
            "bindscope source": source + (", changed since" if p["git_dirty"] else ""),
        }
        for name, value in facts.items():
            per.setdefault(name, {}).setdefault(value, []).append(p["checkpoint"]["suite"])
    shown = [("Terms and prompts", ", ".join(run.study.get("terms") or []) or str(run.study.get("prompts")))]
    for name, values in per.items():
        if len(values) == 1:
            shown += [(name, value) for value in values]
        else:
            shown += [
                (f"{name}: differs", f"{value} ({len(who)} checkpoints of {', '.join(dict.fromkeys(who))})")
                for value, who in values.items()
            ]
    return shown
