"""Compares a folder of the reference study's result files with its paper, and recomputes its claims with controls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bindscope.replicate import artifacts
from bindscope.replicate.checks import checks
from bindscope.replicate.controlled import coupling, coupling_shows
from bindscope.replicate.numbers import figures, paper
from bindscope.replicate.published import Published, Skipped, read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Replication:
    """The tables of a replication.

    figures: the numbers of the paper and the recomputed ones, see `numbers.figures`
    checks: consistency of the data, see `checks.checks`
    coupling: the correlation of binding and behavior with controls, see `controlled.coupling`
    length, constants: EB* and the length of terms, see `artifacts.length` and `artifacts.constants`
    answers: positions of the right and the predicted option, see `artifacts.answers`
    spans: published spans and the tokens of the term, see `artifacts.spans`
    units: records and independent units of each statistic, see `artifacts.units`
    skipped: files, records and checkpoints that gave no rows
    shows: table -> what it shows, in one or two sentences
    """

    figures: pd.DataFrame
    checks: pd.DataFrame
    coupling: pd.DataFrame
    length: pd.DataFrame
    constants: pd.DataFrame
    answers: pd.DataFrame
    spans: pd.DataFrame
    units: pd.DataFrame
    skipped: pd.DataFrame
    shows: dict[str, str]


def replicate(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> Replication:
    """Read a folder of result files and compute all tables.

    folder: the folder
    tokenizer: the tokenizer of the Pythia models, to compare published spans with the tokens of the term; None to leave
        `spans` empty
    Raises RequestError where the folder holds no result file of the reference study.
    """
    data = read(folder)
    spans = artifacts.spans(data, tokenizer)
    wrong = spans[spans["agree"].map(lambda agree: agree is False)]
    tables = {
        "coupling": coupling(data, wrong),
        "length": artifacts.length(data),
        "constants": artifacts.constants(data),
        "answers": artifacts.answers(data),
        "spans": spans,
        "units": artifacts.units(data),
    }
    skipped = pd.DataFrame([*data.skipped, *_missing(data)], columns=["file", "kind", "reason"])
    shows = {
        "coupling": coupling_shows(tables["coupling"]),
        "length": _length_shows(tables["length"], tables["constants"]),
        "answers": _answers_show(tables["answers"]),
        "spans": _spans_show(spans, tokenizer is not None),
        "units": _units_show(tables["units"]),
    }
    return Replication(figures(data), checks(data), **tables, skipped=skipped, shows=shows)


def _missing(data: Published) -> list[Skipped]:
    """Checkpoints of the pilot without a file, and prompts with only one of the two records."""
    out = []
    have = {
        what: {(str(row["size"]), str(row["checkpoint"])) for row in frame[frame["set"] == "pilot"].to_dict("records")}
        for what, frame in (("binding", data.binding), ("behavioral", data.behavior))
    }
    # Sizes without any file were not part of the download; sizes with some files should have all of them.
    for size in sorted({size for known in have.values() for size, _ in known} & set(paper()["heads"])):
        for step in paper()["steps"]:
            for what, known in have.items():
                if (size, step) not in known:
                    reason = "no such records; figures over this checkpoint are not computable"
                    out.append(Skipped(f"{size}_{step}_{what}.jsonl", "missing", reason))
    key = ["set", "size", "checkpoint", "term", "task", "prompt_id", "prompt_template"]
    left, right = data.binding[key].assign(binding=True), data.behavior[key].assign(behavior=True)
    if len(left) and len(right):
        both = left.merge(right, on=key, how="outer")
        lone = both[both["binding"].isna() | both["behavior"].isna()]
        for _, part in lone.groupby(["set", "size", "checkpoint"]):
            row = part.iloc[0]
            place = (str(row["size"]), str(row["checkpoint"]))
            if row["set"] != "pilot" or all(place in known for known in have.values()):
                absent = "behavior" if pd.isna(row["behavior"]) else "binding"
                reason = f"{len(part)} prompts have no partner, first {row['term']} {row['prompt_id']} without {absent}"
                out.append(Skipped("_".join(place), "missing", reason))
    return out


def _length_shows(length: pd.DataFrame, constants: pd.DataFrame) -> str:
    if length.empty:
        return "No control terms in the folder."
    sentences = []
    for row in length.to_dict("records"):
        if row["rho"] is None or pd.isna(row["rho"]):
            sentences.append(f"{row['size']}: not computable, {row['reason']}.")
            continue
        sentences.append(
            f"{row['size']} {row['checkpoint']}: EB* of {row['terms']} control terms falls with their token count, rho "
            f"{row['rho']:+.2f}."
            if row["rho"] < 0
            else f"{row['size']} {row['checkpoint']}: rho {row['rho']:+.2f}."
        )
        if not pd.isna(row["two_token"]) and not pd.isna(row["real_two_token"]):
            sentences.append(
                f"Those of two tokens average {row['two_token']:.2f}, real terms of two tokens "
                f"{row['real_two_token']:.2f}."
            )
    sentences.append(
        f"{len(constants)} published values equal 2/k (1 - 1/H) to six digits, which is what one head that looks at "
        "the previous token gives any term of k tokens. Groups of different lengths cannot be compared by EB*."
    )
    return " ".join(sentences)


def _answers_show(answers: pd.DataFrame) -> str:
    if answers.empty:
        return "No recognition records with predictions and a prompt file with answers."
    whole = answers[answers["checkpoint"] == "all"]
    if (whole["guesser"] < 1).any():
        return (
            "Always choosing A scores "
            + ", ".join(f"{row['guesser']:.2f} in {row['set']} {row['size']}" for row in whole.to_dict("records"))
            + "."
        )
    rates = ", ".join(f"{row['accuracy']:.2f} ({row['set']} {row['size']})" for row in whole.to_dict("records"))
    return (
        "The answer is option A in every item: always choosing A scores 1.00, and accuracy is the same number as the "
        f"rate of choosing A, {rates}. Knowing the term and preferring option A cannot be told apart."
    )


def _spans_show(spans: pd.DataFrame, asked: bool) -> str:
    if not asked:
        return "Not looked at: give the tokenizer of the models (--tokenizer) to see which tokens the spans stand on."
    compared = spans[spans["agree"].notna()]
    wrong = compared[compared["agree"].map(lambda agree: agree is False)]
    rest = len(spans) - len(compared)
    sentence = (
        f"{len(wrong)} of {len(compared)} prompts have their span on other tokens than the term's, which is "
        f"{int(wrong['records'].sum())} of {int(compared['records'].sum())} EB* values."
    )
    return sentence + (f" {rest} prompts could not be compared." if rest else "")


def _units_show(units: pd.DataFrame) -> str:
    if units.empty:
        return "No statistic to count units for."
    terms = units["terms"].dropna()
    several = f"{int(terms.min())} terms" if len(terms) and terms.min() == terms.max() else "a few terms"
    return (
        f"The n of a published statistic counts records; the units that can vary on their own are {several} and one "
        "training run a size. A p that takes every record as independent says more than the data can."
    )
