"""Recognition questions as tasks of lm-evaluation-harness: YAML and Parquet for each form of them, and a group of all.

The fields of a task name columns (`doc_to_text: template`), so that no text passes through a template engine. The
delimiter is the one space that `measures.recognition` puts before a choice, so that both programs score the same
tokens. PyYAML writes the tasks, because lm-eval reads them as YAML 1.1.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import yaml

from bindscope.errors import RequestError
from bindscope.experiment import Experiment
from bindscope.export.columns import table
from bindscope.prompts.build import build
from bindscope.records import Format, Order, Prompt

#: acc is the score raw, acc_bytes the score per_byte; acc_norm divides by characters, the same where all are ASCII.
METRICS = ("acc", "acc_norm", "acc_bytes")


def write_tasks(experiment: Experiment, folder: Path) -> list[Path]:
    """Write the tasks of an experiment and their group, and give the files.

    Raises RequestError where it asks no recognition questions.
    """
    group = "bindscope_" + re.sub(r"[^\w.-]+", "-", experiment.name, flags=re.ASCII)
    tables = {f"{group}_{form}": table(prompts, "recognition") for form, prompts in questions(experiment).items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, asked in tables.items():
        data, task = folder / f"{name}.parquet", folder / f"{name}.yaml"
        pq.write_table(asked, data)
        _yaml(task, _task(name, data, experiment.name))
        files += [task, data]
    whole = folder / f"{group}.yaml"
    _yaml(whole, {"group": group, "task": list(tables)})
    return [whole, *files]


def questions(experiment: Experiment) -> dict[str, tuple[Prompt, ...]]:
    """The questions in each form: listed in each order of the choices, and cloze; those of a prompt file as they are.

    Raises RequestError where there are none.
    """
    if experiment.prompts is None:
        terms = experiment.selected()
        forms = {f"listed_{order}": build(terms, "listed", order) for order in get_args(Order)}
        forms["cloze"] = build(terms, "cloze")
    else:
        read = experiment.build_prompts()
        forms = {form: tuple(p for p in read if p.format == form) for form in get_args(Format)}
    asked = {form: tuple(p for p in prompts if p.task == "recognition") for form, prompts in forms.items()}
    present = {form: prompts for form, prompts in asked.items() if prompts}
    if not present:
        raise RequestError(f"{experiment.name} asks no recognition questions, so lm-eval would have nothing to score")
    return present


def _task(name: str, data: Path, experiment: str) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},  # lm-eval looks from where it is started
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "template",
        "doc_to_choice": "choices",
        "doc_to_target": "answer_idx",
        "target_delimiter": " ",
        "num_fewshot": 0,
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in METRICS],
        "metadata": {"version": 1.0, "study": experiment, "bindscope": version("bindscope")},
    }


def _yaml(path: Path, content: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
