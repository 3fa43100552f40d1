"""A program as a process: it loads a model, runs the requested jobs, and reports the time that each took.

    PYTHON CONTESTANT.py --model FOLDER --work FILE.json

One JSON object a line. Once the model is loaded: {"ready": true, "versions": {...}, "jobs": [...], "rss_mb": ...}.
Then for each line of standard input, {"job": NAME, "out": FILE.npz or null, "threads": N}, the answer
{"seconds": ..., "cpu_seconds": ..., "peak_mb": ..., "extra_mb": ...} or {"error": "..."}; the end of the input ends the
process. cpu_seconds are those of all threads: on a machine that does other things too they say more. peak_mb is the
highest resident memory during the job, extra_mb that less what was resident before; weights are mapped from their file,
so the first job that touches them is charged for them. Arrays are written to `out` outside the measured part. Whatever
else a library prints goes to standard error. Nothing but NumPy and torch is needed, so this file runs in the
environment of every peer.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library that reads it
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
from work import Work

#: Runs once and returns named arrays.
Job = Callable[[], Mapping[str, np.ndarray]]


def serve(load: Callable[[Path, Work], Mapping[str, Job]], *packages: str) -> None:
    """Answer requests until the input ends. load: model folder and work -> jobs by name; packages: whose versions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # also what compiled code prints
    torch.set_grad_enabled(False)

    def say(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        jobs = load(arguments.model.absolute(), Work.read(arguments.work))
    except Exception as error:
        say(error=_in_words(error))
        sys.exit(1)
    versions = {name: version(name) for name in ("torch", "numpy", *packages)} | {"python": platform.python_version()}
    say(ready=True, versions=versions, jobs=list(jobs), rss_mb=_memory("VmRSS"))
    for line in sys.stdin:
        try:
            say(**_run(jobs, **json.loads(line)))
        except Exception as error:
            say(error=_in_words(error))


def _run(jobs: Mapping[str, Job], job: str, out: str | None, threads: int) -> dict[str, float]:
    """One job, measured."""
    if job not in jobs:
        raise ValueError(f"there is no job {job!r}; ask for one of {', '.join(jobs)}")
    torch.set_num_threads(threads)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the job before has freed would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    before = _memory("VmRSS")
    start, busy = time.perf_counter(), time.process_time()
    arrays = jobs[job]()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = _memory("VmHWM")
    if out:
        np.savez(out, **arrays)
    return {"seconds": seconds, "cpu_seconds": busy, "peak_mb": peak, "extra_mb": peak - before}


def _memory(field: str) -> float:
    """A line of /proc/self/status, in MB of a million bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {field}; memory can be measured on Linux only")


def _in_words(error: Exception) -> str:
    traceback.print_exc()
    return f"{type(error).__name__}: {error}"
