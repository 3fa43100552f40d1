"""The prompts of an experiment as a Hugging Face dataset: a table for each task, and a card that describes them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from bindscope.experiment import Experiment
from bindscope.export.columns import COLUMNS, table
from bindscope.records import Task

#: What a row of each table is.
_ROWS: dict[Task, str] = {
    "recognition": "a question",
    "generation": "an opening",
    "carrier": "an expression in a sentence",
}


def write_dataset(experiment: Experiment, folder: Path) -> list[Path]:
    """Write `data/TASK.parquet` for each task of the experiment, and README.md; give the files."""
    prompts = experiment.build_prompts()
    tables = {task: rows for task in COLUMNS if (rows := table(prompts, task)).num_rows}
    files = [folder / "data" / f"{task}.parquet" for task in tables]
    (folder / "data").mkdir(parents=True)
    for path, rows in zip(files, tables.values(), strict=True):
        pq.write_table(rows, path)
    card = folder / "README.md"
    front = yaml.safe_dump(_front(experiment, tables), sort_keys=False, allow_unicode=True)
    card.write_text(f"---\n{front}---\n\n{_text(experiment, tables)}", encoding="utf-8")
    return [card, *files]


def _front(experiment: Experiment, tables: dict[Task, pa.Table]) -> dict[str, Any]:
    """The front matter that `datasets` and the hub read. Licence and language are known for the shipped texts only."""
    known = {"license": "mit", "language": ["en"]} if _shipped(experiment) else {}
    return known | {
        "pretty_name": f"bindscope prompts: {experiment.name}",
        "configs": [
            {"config_name": task, "data_files": [{"split": "test", "path": f"data/{task}.parquet"}]} for task in tables
        ],
        "dataset_info": [
            {"config_name": task, "features": [_feature(field) for field in rows.schema]}
            for task, rows in tables.items()
        ],
    }


def _shipped(experiment: Experiment) -> bool:
    """Whether every text comes with bindscope."""
    return experiment.prompts is None and not any(
        n.endswith((".yaml", ".yml")) for n in (*experiment.terms, *experiment.controls)
    )


def _feature(field: pa.Field) -> dict[str, Any]:
    """A column in the form of the card's front matter."""
    if pa.types.is_struct(field.type):
        return {"name": field.name, "struct": [_feature(part) for part in field.type]}
    if pa.types.is_list(field.type):
        return {"name": field.name, "list": str(field.type.value_type)}
    return {"name": field.name, "dtype": str(field.type)}


def _text(experiment: Experiment, tables: dict[Task, pa.Table]) -> str:
    about = f"{experiment.about}\n\n" if experiment.about else ""
    rights = "" if _shipped(experiment) else "Some texts are not bindscope's: their authors state the licence. "
    return (
        f"# {experiment.name}\n\n{about}Prompts of a bindscope experiment, "
        f"written by bindscope {version('bindscope')}. {rights}"
        "A row is a prompt; written as a line of JSON it is one of an experiment's `prompts:`.\n"
        + "".join(_section(task, rows.num_rows) for task, rows in tables.items())
    )


def _section(task: Task, rows: int) -> str:
    head = "| column | type | description |\n|---|---|---|\n"
    lines = [f"| `{c.name}` | {str(c.type).replace('item: ', '')} | {c.description} |\n" for c in COLUMNS[task]]
    return f"\n## {task}\n\n{rows} rows, each {_ROWS[task]}.\n\n{head}{''.join(lines)}"
