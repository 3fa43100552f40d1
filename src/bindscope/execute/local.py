"""Run an experiment on this machine: the next checkpoint is downloaded while this one is measured."""

from __future__ import annotations

from concurrent.futures import Future

from rich.filesize import decimal

from bindscope.checkpoints import disk
from bindscope.execute.downloads import Downloads
from bindscope.execute.request import Request
from bindscope.execute.sweep import Options, Outcome, Sweep, Watcher
from bindscope.execute.unit import attempt, hardware
from bindscope.store import Store


def run(request: Request, store: Store, watcher: Watcher, options: Options | None = None) -> Outcome:
    """Measure every checkpoint of the experiment whose results the store does not hold.

    A checkpoint that fails is recorded with its reason and its traceback, and the run continues. An interrupted run
    loses at most the pass in progress.

    request: the experiment
    store: the results folder
    watcher: shows the progress
    options: see `Options`
    Raises StoreError where results cannot be written, RequestError as `Sweep` does.
    """
    options = options or Options()
    sweep = Sweep(
        request=request, store=store, watcher=watcher, options=options, hardware=hardware(request.experiment.dtype)
    )
    arrived: dict[int, Future[None]] = {}
    with Downloads(store) as downloads:
        for n, i in enumerate(sweep.waiting):
            for soon in sweep.waiting[n : n + 2]:
                if soon not in arrived:
                    arrived[soon] = downloads.fetch(sweep.sources(soon))
            job = sweep.job(i)
            watcher.unit(job.ref, sweep.steps(i))
            if not arrived[i].done() and (size := disk.download_size(job.sources)):
                watcher.note(f"{job.ref.suite}, {job.ref.label}: downloading {decimal(size)}")
            sweep.finish(i, attempt(job, sweep.prompts, store, watcher.progress, arrived[i].result))
            if options.evict and arrived[i].exception() is None:
                downloads.remove(job.sources)
    return sweep.outcome()
