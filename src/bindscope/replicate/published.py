"""Reads a folder of the reference study's result files into tables.

A file, or a record in it, that gives no rows is listed with a reason: "unknown" (no known set of keys), "damaged" (a
record that cannot be read), "duplicate" (a record that occurs twice). Where two records of one key disagree, both are
left out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from pydantic import BaseModel, ValidationError

from bindscope.errors import RequestError
from bindscope.replicate.rows import (
    KINDS,
    Ablation,
    Accuracy,
    Behavior,
    Binding,
    Control,
    Decoupling,
    FewShot,
    FlatAblation,
    Lead,
    Prompt,
    Row,
    Summary,
    TermPair,
    Tokenization,
)

Kind = Literal["unknown", "damaged", "duplicate", "missing"]
_KEY = ["model", "checkpoint", "term", "task", "prompt_id"]
_COLUMNS: dict[str, list[str]] = {
    "few_shot": [
        "file",
        "model",
        "size",
        "checkpoint",
        "shots",
        "term",
        "prompt_id",
        "template",
        "score",
        "text_out",
        "items",
    ],
    "few_shot_stored": ["file", "model", "size", "checkpoint", "zero", "one", "pp", "relative"],
    "ablation": ["file", "layout", "model", "size", "checkpoint", "task", "condition", "trial", "value", "correct"],
    "ablation_stored": ["file", "model", "size", "checkpoint", "name", "value"],
}
_COLUMNS["ablation"] += ["total", "items"]


class Skipped(NamedTuple):
    """A file, or a part of one, that gives no rows.

    file: its path in the folder
    kind: unknown, damaged, duplicate or missing
    reason: why
    """

    file: str
    kind: Kind
    reason: str


@dataclass(frozen=True)
class Published:
    """The tables of a folder; a table whose files are absent is empty.

    Their column size is the name of the model without "pythia-" and "-deduped". The column set is the prompt set: X for
    the folders binding_X and behavioral_X, otherwise "pilot".

    binding, behavior: records of each prompt and checkpoint
    prompts: the prompts
    summary: pilot_summary.csv
    terms: EB* and behavior of each term and checkpoint
    lead, decoupling: correlations of each term
    controls: EB* of control terms
    tokenization: token ids of each term
    few_shot, few_shot_stored: scores of each prompt, and the stored means
    ablation, ablation_stored: outcomes of each condition, and the stored drops
    skipped: files and records that gave no rows
    """

    binding: pd.DataFrame
    behavior: pd.DataFrame
    prompts: pd.DataFrame
    summary: pd.DataFrame
    terms: pd.DataFrame
    lead: pd.DataFrame
    decoupling: pd.DataFrame
    controls: pd.DataFrame
    tokenization: pd.DataFrame
    few_shot: pd.DataFrame
    few_shot_stored: pd.DataFrame
    ablation: pd.DataFrame
    ablation_stored: pd.DataFrame
    skipped: tuple[Skipped, ...]


class _Damaged(Exception):
    pass


def read(folder: Path) -> Published:
    """Read all files of a folder. Raises RequestError where it is not a folder or holds no known record."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder; give the folder of the reference study's result files")
    records: dict[type[Row], list[tuple[str, Row]]] = {kind: [] for kinds in KINDS.values() for kind in kinds}
    skipped: list[Skipped] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = str(path.relative_to(folder))
        try:
            for kind, row in _file(path, name, skipped):
                records[kind].append((name, row))
        except _Damaged as error:
            skipped.append(Skipped(name, "damaged", str(error)))
        except (OSError, UnicodeDecodeError) as error:
            skipped.append(Skipped(name, "damaged", f"cannot be read as UTF-8 text: {error}"))
    if not any(records.values()):
        raise RequestError(
            f"none of {len(skipped)} files in {folder} is a result file of the reference study; give the folder that "
            "holds them"
        )
    few, few_stored = _few_shot(records[FewShot])
    cells, stored = _ablation([*records[Ablation], *records[FlatAblation]], skipped)
    return Published(
        binding=_once(_frame(Binding, records), _KEY, skipped),
        behavior=_once(_frame(Behavior, records), _KEY, skipped),
        prompts=_frame(Prompt, records),
        summary=_once(_frame(Summary, records), ["model", "checkpoint"], skipped),
        terms=_frame(TermPair, records),
        lead=_once(_frame(Lead, records), ["file", "model", "term"], skipped),
        decoupling=_once(_frame(Decoupling, records), ["file", "model", "term"], skipped),
        controls=_once(_frame(Control, records), ["model", "checkpoint", "term", "control_group"], skipped),
        tokenization=_frame(Tokenization, records),
        few_shot=_once(few, ["model", "checkpoint", "items", "shots", "term", "prompt_id", "template"], skipped),
        few_shot_stored=few_stored,
        ablation=_once(cells, ["model", "checkpoint", "items", "task", "condition", "trial"], skipped),
        ablation_stored=stored,
        skipped=tuple(skipped),
    )


def _file(path: Path, name: str, skipped: list[Skipped]) -> Iterator[tuple[type[Row], Row]]:
    """The records of a file. A damaged line is listed in `skipped`; the other lines are read."""
    kinds = KINDS.get(path.suffix)
    if kinds is None:
        skipped.append(Skipped(name, "unknown", f"not a {', '.join(KINDS)} file"))
        return
    records = list(_records(path, name, skipped))
    if not records:
        if not any(item.file == name for item in skipped):
            raise _Damaged("the file is empty")
        return
    keys = set(records[0][1])
    fitting = [kind for kind in kinds if not kind.missing(keys)]
    if not fitting:
        near = min(kinds, key=lambda kind: len(kind.missing(keys)) / len(kind.model_fields))
        skipped.append(
            Skipped(
                name,
                "unknown",
                f"no known set of keys; nearest is {near.__name__}, without {_some(near.missing(keys))}",
            )
        )
        return
    for where, record in records:
        try:
            # Numbers in CSV cells are text; in other files text instead of a number is damage.
            yield fitting[0], fitting[0].model_validate(record, strict=path.suffix != ".csv")
        except ValidationError as error:
            skipped.append(Skipped(name, "damaged", f"{where}{_first(error)}"))


def _records(path: Path, name: str, skipped: list[Skipped]) -> Iterator[tuple[str, dict[str, Any]]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        for number, cells in enumerate(csv.DictReader(text.splitlines()), 2):
            yield f"line {number}: ", {k: v for k, v in cells.items() if k is not None and v is not None}
        return
    pieces = text.splitlines() if path.suffix == ".jsonl" else [text] * bool(text.strip())
    for number, piece in enumerate(pieces, 1):
        where = f"line {number}: " if path.suffix == ".jsonl" else ""
        if not piece.strip():
            continue
        try:
            record = json.loads(piece)
        except json.JSONDecodeError as error:
            skipped.append(Skipped(name, "damaged", f"{where}not JSON ({error.msg} at character {error.pos})"))
            continue
        if isinstance(record, dict):
            yield where, _lifted(record) if path.suffix == ".json" else record
        else:
            skipped.append(Skipped(name, "unknown", f"{where}a {type(record).__name__}, not an object"))


def _lifted(record: dict[str, Any]) -> dict[str, Any]:
    """The record with conditions at the top level, each with its accuracy, moved under the task recognition."""
    cells = {k: v for k, v in record.items() if isinstance(v, dict) and "accuracy" in v and _condition(k)}
    return record if not cells or "recognition" in record else record | {"recognition": cells}


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    seen = repr(fault["input"])[:40] if fault["type"] != "missing" else "absent"
    return f"{'.'.join(map(str, fault['loc']))} is {seen}: {fault['msg'].lower()}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _frame(kind: type[Row], records: dict[type[Row], list[tuple[str, Row]]]) -> pd.DataFrame:
    rows = [{"file": file, **row.model_dump()} for file, row in records[kind]]
    frame = pd.DataFrame(rows, columns=["file", *kind.model_fields])
    return _labeled(frame) if "model" in frame else frame


def _labeled(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the columns size, step and set."""
    frame = frame.assign(size=frame["model"].map(_size, na_action="ignore"))
    if "checkpoint" in frame:
        frame["step"] = frame["checkpoint"].map(step_of)
    if "prompt_template" in frame:
        frame["set"] = frame["file"].map(_set)
    return frame


def _size(model: str) -> str:
    return re.sub(r"^pythia-|-deduped$", "", model)


def step_of(checkpoint: str) -> int | None:
    """The step in names such as step15000, step15k or checkpoint-15000; None where there is none."""
    match = re.fullmatch(r"(?:step|checkpoint-|stage1-step-)(\d+)(k?)", checkpoint)
    return int(match[1]) * (1000 if match[2] else 1) if match else None


def _set(file: str) -> str:
    match = re.match(r"(?:binding|behavioral)_(.+)$", Path(file).parent.name)
    return match[1] if match else "pilot"


def _once(frame: pd.DataFrame, key: list[str], skipped: list[Skipped]) -> pd.DataFrame:
    """The table with equal copies of a record counted once, and without records of one key that disagree."""
    key = [*key, "set"] if "set" in frame else key
    if frame.empty or not frame.duplicated(key).any():
        return frame
    contents = frame.drop(columns="file").map(repr).agg("|".join, axis=1)
    # dropna=False keeps records whose key has missing values (a table without its model).
    groups = frame.assign(_contents=contents).groupby(key, dropna=False, sort=False)
    several = groups["_contents"].transform("nunique") > 1
    for file, count in frame[frame.duplicated(key) & ~several].groupby("file").size().items():
        skipped.append(
            Skipped(str(file), "duplicate", f"records that repeat others word for word, counted once: {count}")
        )
    for values, part in frame[several].groupby(key, dropna=False, sort=False):
        files = sorted(set(part["file"]))
        what = " ".join(str(v) for v, k in zip(values, key, strict=True) if k not in ("file", "set"))
        skipped.append(
            Skipped(files[-1], "duplicate", f"{len(part)} records for {what} disagree ({_some(files)}); none is used")
        )
    return frame[~several].drop_duplicates(key).reset_index(drop=True)


def _few_shot(records: Sequence[tuple[str, BaseModel]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows: list[list[Any]] = []
    stored: list[list[Any]] = []
    for file, item in records:
        assert isinstance(item, FewShot)
        head = [file, item.model, _size(item.model), item.checkpoint]
        stored.append(
            [*head, item.zero_shot_mean, item.few_shot_mean, item.improvement_pp, item.improvement_relative_pct]
        )
        for shots, details in ((0, item.zero_shot_details), (1, item.few_shot_details)):
            rows += [
                [*head, shots, d.term, d.prompt_id, d.template, d.score, d.text_out, len(details)] for d in details
            ]
    return (pd.DataFrame(rows, columns=_COLUMNS["few_shot"]), pd.DataFrame(stored, columns=_COLUMNS["few_shot_stored"]))


def _ablation(records: Sequence[tuple[str, BaseModel]], skipped: list[Skipped]) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows: list[list[Any]] = []
    stored: list[list[Any]] = []
    for file, item in records:
        assert isinstance(item, Ablation | FlatAblation)
        head = [
            file,
            "nested" if isinstance(item, Ablation) else "flat",
            item.model,
            _size(item.model),
            item.checkpoint,
        ]
        try:
            cells = list(_nested(item) if isinstance(item, Ablation) else _flat(item))
            items = next((cell[-1] for cell in cells if cell[-1] is not None), None)
            rows += [[*head, *cell, items] for cell in cells]
        except _Damaged as error:
            skipped.append(Skipped(file, "damaged", str(error)))
            continue
        values = item.drops if isinstance(item, Ablation) else {"specificity": item.specificity}
        stored += [[file, *head[2:], name, value] for name, value in values.items() if value is not None]
    return (pd.DataFrame(rows, columns=_COLUMNS["ablation"]), pd.DataFrame(stored, columns=_COLUMNS["ablation_stored"]))


def _nested(item: Ablation) -> Iterator[list[Any]]:
    for task, cells in (("recognition", item.recognition), ("generation", item.generation)):
        for name, cell in cells.items():
            condition = _condition(name)
            if condition is None:
                raise _Damaged(f"{task} has an unknown condition {name!r}")
            trial = re.search(r"trial\D*(\d+)", name, re.IGNORECASE)
            number = int(trial[1]) if trial else None
            if isinstance(cell, Accuracy):
                yield [task, condition, number, cell.accuracy, cell.correct, cell.total]
            else:
                yield [task, condition, number, cell.mean_score, None, None]


def _flat(item: FlatAblation) -> Iterator[list[Any]]:
    cells = {
        "baseline": item.baseline_rec,
        "top": item.top_ablated_rec,
        "random": item.rand_ablated_rec,
        "bottom": item.bot_ablated_rec,
    }
    for condition, value in cells.items():
        yield ["recognition", condition, None, value, None, item.n_prompts]


def _condition(name: str) -> str | None:
    words = {"baseline": "baseline", "top": "top", "random": "random", "bottom": "bottom", "bot": "bottom"}
    return next((known for word, known in words.items() if re.match(rf"{word}\b", name.strip(), re.IGNORECASE)), None)
