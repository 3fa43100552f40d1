"""What bindscope has, in the form that other programs read: prompts for lm-evaluation-harness and datasets, results for
DuckDB and pandas. A file per target."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bindscope import experiment as experiments
from bindscope.errors import RequestError, StoreError
from bindscope.export import dataset, lm_eval, results
from bindscope.store import Store

Target = Literal["lm-eval", "dataset", "parquet"]


def export(source: str, to: Target, out: Path) -> list[Path]:
    """Write the prompts of a study, or for "parquet" the results of a folder, into a new or empty folder.

    Raises RequestError for a study or folder that does not exist or holds nothing to write, and for a place that is
    taken or cannot be written.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise RequestError(f"{out} is not an empty folder; name a new one, so that no file of it is overwritten")
        if to == "parquet":
            return results.write(Store(source, create=False), out)
        experiment = experiments.load(source)
        return lm_eval.write(experiment, out) if to == "lm-eval" else dataset.write(experiment, out)
    except OSError as error:
        raise RequestError(f"cannot write {error.filename or out}: {error.strerror or error}") from error
    except StoreError as error:
        raise RequestError(str(error)) from error
