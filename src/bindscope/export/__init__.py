"""Prompts and results in the forms that other programs read; one file of this package for each form."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bindscope import experiment as experiments
from bindscope.errors import RequestError, StoreError
from bindscope.export import dataset, lm_eval, results
from bindscope.store import Store

Target = Literal["lm-eval", "dataset", "parquet"]


def export(source: str, to: Target, out: Path) -> list[Path]:
    """Write the prompts of an experiment or the results of a run into a folder, and give the files.

    source: a built-in experiment or a .yaml file; for "parquet", the results folder of a run.
    to: "lm-eval" (tasks of lm-evaluation-harness), "dataset" (a Hugging Face dataset) or "parquet" (tables of results).
    out: a new or empty folder.

    Raises RequestError for a source that does not exist or has nothing to write, and for a folder that is not empty or
    cannot be written.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RequestError(f"{out} is not an empty folder; name a new one, so that no file of it is overwritten")
        if to == "parquet":
            return results.write_tables(Store(source, create=False), out)
        experiment = experiments.load(source)
        return lm_eval.write_tasks(experiment, out) if to == "lm-eval" else dataset.write_dataset(experiment, out)
    except OSError as error:
        raise RequestError(f"cannot write {error.filename or out}: {error.strerror or error}") from error
    except StoreError as error:
        raise RequestError(str(error)) from error
