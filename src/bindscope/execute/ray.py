"""Run an experiment on a Ray cluster: one task for each checkpoint. Only this module imports Ray."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from bindscope.errors import MeasureError, RequestError, StoreError
from bindscope.execute.downloads import fetch_checkpoint, remove_checkpoint
from bindscope.execute.request import Request
from bindscope.execute.sweep import Options, Outcome, Sweep, Watcher
from bindscope.execute.unit import Job, Result, attempt, hardware
from bindscope.records import Prompt
from bindscope.schema import PROMPTS
from bindscope.store import Store

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; unset, Ray prints a warning

try:
    import ray
except ImportError as missing:
    raise RequestError("--ray needs the package ray: pip install 'bindscope[ray]'") from missing

#: The address that starts a cluster on this machine instead of joining one.
LOCAL = "local"
#: How often Ray repeats a checkpoint after its worker or machine was lost.
_RETRIES = 3
#: Seconds to wait for an answer of a cluster.
_TIMEOUT = 10


@dataclass(frozen=True)
class _Place:
    """Where a worker puts results: into the run folder where it sees the folder, else back to the driver.

    root: the run folder
    mark: name of a file in it, by which a worker recognizes the folder
    threads: threads of torch in a worker
    evict: whether a worker removes a checkpoint after measuring it
    """

    root: Path
    mark: str
    threads: int
    evict: bool


@dataclass(frozen=True)
class _WorkerResult:
    """What a worker returns.

    result: the result of the job
    shards: path in the run folder -> content, where the worker does not see the folder
    """

    result: Result
    shards: dict[str, bytes]


def run(
    request: Request, store: Store, watcher: Watcher, options: Options | None = None, address: str = LOCAL
) -> Outcome:
    """Measure the checkpoints of an experiment side by side on the workers of a cluster; see `local.run`.

    A checkpoint gets a GPU if the cluster has any, else as many cores as torch has threads here, so that its numbers
    are those of a local run. Where a worker is lost, another worker measures its checkpoint.

    request, store, watcher, options: see `local.run`
    address: address of the cluster, or `LOCAL`
    Raises RequestError where there is no cluster at `address`, and the errors of `local.run`.
    """
    options = replace(options or Options(), here=address == LOCAL)
    mark = f".ray-{uuid4().hex}"
    with _cluster(address):
        needs, threads = _needs()
        sweep = Sweep(
            request=request,
            store=store,
            watcher=watcher,
            options=options,
            hardware=ray.get(ray.remote(hardware).options(**needs).remote(request.experiment.dtype)),
        )
        place, prompts = _Place(store.root.resolve(), mark, threads, options.evict), ray.put(sweep.prompts)
        task = ray.remote(_unit).options(max_retries=_RETRIES, **needs)
        store.write_text(mark, "")
        try:
            pending = {task.remote(sweep.job(i), prompts, place): i for i in sweep.waiting}
            while pending:
                (ready,), _ = ray.wait(list(pending), num_returns=1)
                _take(sweep, store, pending.pop(ready), ready)
        finally:
            (store.root / mark).unlink(missing_ok=True)
        return sweep.outcome()


def _take(sweep: Sweep, store: Store, i: int, ready: Any) -> None:
    """Pass one result to the sweep. An error of the cluster fails the unit; a StoreError ends the run."""
    try:
        received: _WorkerResult = ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, StoreError):
            raise StoreError(str(error.cause)) from error
        received = _lost(error)
    except ray.exceptions.RayError as error:
        received = _lost(error)
    for name, content in received.shards.items():
        store.write_bytes(name, content)
    sweep.watcher.unit(sweep.job(i).ref, sweep.steps(i))
    sweep.finish(i, received.result)


def _lost(error: Exception) -> _WorkerResult:
    reason = " ".join(str(error).split())[:300]
    trace = "".join(traceback.format_exception(error))
    failed = Result(None, MeasureError(f"its worker was lost ({type(error).__name__}: {reason})"), trace)
    return _WorkerResult(failed, {})


def _unit(job: Job, prompts: tuple[Prompt, ...], place: _Place) -> _WorkerResult:
    """Measure one checkpoint on this worker: the task that Ray runs."""
    torch.set_num_threads(place.threads)
    if (place.root / place.mark).is_file():
        return _WorkerResult(_attempt(job, prompts, Store(place.root), place.evict), {})
    with tempfile.TemporaryDirectory(prefix="bindscope-") as folder:
        store = Store(folder)
        result = _attempt(job, prompts, store, place.evict)
        shards = {p.relative_to(store.root).as_posix(): p.read_bytes() for p in store.root.rglob("*.parquet")}
        return _WorkerResult(result, shards)


def _attempt(job: Job, prompts: tuple[Prompt, ...], store: Store, evict: bool) -> Result:
    """Measure the tables of a job that are missing; a worker that was lost may have stored some of them."""
    left = {name: key for name, key in job.keys.items() if store.fault(job.ref, name, key) is not None}
    measures = tuple(m for m in job.measures if PROMPTS.name in left or any(t.name in left for t in m.tables))
    missing = replace(job, keys=left, measures=measures)
    result = attempt(missing, prompts, store, arrive=lambda: fetch_checkpoint(job.sources, store))
    if evict:
        remove_checkpoint(job.sources, store)
    return result


def _needs() -> tuple[dict[str, float], int]:
    """The resources that Ray reserves for a task, and its number of threads."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("GPU") for node in nodes):
        return {"num_cpus": 1, "num_gpus": 1}, 1
    threads = min(torch.get_num_threads(), int(max(node.get("CPU", 0) for node in nodes)))
    if threads < 1:
        raise RequestError("the Ray cluster offers no cores; start its nodes with --num-cpus")
    return {"num_cpus": threads}, threads


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    options = {} if address != LOCAL else {"include_dashboard": False}
    _check_reach(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RequestError(f"there is no Ray cluster at {address}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reach(address: str) -> None:
    """Raises RequestError where no machine answers at the address, since Ray would wait a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise RequestError(f"there is no Ray cluster at {address}: {error}") from error
