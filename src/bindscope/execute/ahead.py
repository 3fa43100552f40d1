"""Downloads while something else is measured, and the removal of what this run has downloaded."""

from __future__ import annotations

import platform
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType

from bindscope.checkpoints import disk
from bindscope.checkpoints.files import Source, Sources, check, fetch
from bindscope.store import Store


def bring(sources: Sources, store: Store, stop: threading.Event | None = None) -> None:
    """Download a checkpoint. Of one that is new on this machine, the run folder notes that it is this run's own."""
    if (store.root / _mark(sources.weights)).is_file():
        check(sources.weights)  # a run that was killed may not have come to it
    elif not disk.present(sources.weights):
        store.write_text(_mark(sources.weights), f"{sources.weights.repo} {sources.weights.commit}\n")
    for source in (sources.weights, sources.tokenizer):
        fetch(source, stop=stop)


def remove(sources: Sources, store: Store) -> None:
    """Take a checkpoint out of the hub's cache if this run, or an earlier one in its folder, has downloaded it.

    One that cannot be removed stays, and its name stays in the run folder: its results are no worse for it.
    """
    mark = store.root / _mark(sources.weights)
    if mark.is_file():
        with suppress(OSError):
            disk.evict(sources.weights)
            mark.unlink()


def _mark(source: Source) -> str:
    return f"downloads/{platform.node()}-{source.repo.replace('/', '--')}-{source.commit}.txt"


class Ahead:
    """One checkpoint at a time, in the order asked for, in one thread: a removal never meets a download.

    Leaving the block by an exception gives up the download in work.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._stop = store, threading.Event()
        self._pool = ThreadPoolExecutor(1, "download")

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._stop.set()
        self._pool.shutdown(wait=kind is None, cancel_futures=kind is not None)

    def bring(self, sources: Sources) -> Future[None]:
        """Raises, from the future, what `fetch` raises."""
        return self._pool.submit(bring, sources, self._store, self._stop)

    def remove(self, sources: Sources) -> Future[None]:
        return self._pool.submit(remove, sources, self._store)
