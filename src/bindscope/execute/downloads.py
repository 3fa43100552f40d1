"""Downloads while another checkpoint is measured, and removing what this run has downloaded."""

from __future__ import annotations

import platform
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType

from bindscope.checkpoints import disk
from bindscope.checkpoints.files import CheckpointFiles, RepoFiles, check_cached, fetch
from bindscope.store import Store


def fetch_checkpoint(files: CheckpointFiles, store: Store, stop: threading.Event | None = None) -> None:
    """Download a checkpoint.

    stop: gives the download up when it is set.

    Where nothing of it was on this machine before, a file in the results folder notes that this run downloaded it.
    Raises ModelError as `checkpoints.files.fetch` does.
    """
    if (store.root / _note(files.weights)).is_file():
        check_cached(files.weights)  # the run that downloaded it may have been killed before it checked
    elif not disk.is_cached(files.weights):
        store.write_text(_note(files.weights), f"{files.weights.repo} {files.weights.commit}\n")
    for repo in (files.weights, files.tokenizer):
        fetch(repo, stop=stop)


def remove_checkpoint(files: CheckpointFiles, store: Store) -> None:
    """Remove a checkpoint from the hub's cache if this run, or an earlier one in its folder, has downloaded it.

    One that cannot be removed stays, and so does the note about it in the results folder: its results are right
    whether or not it was removed.
    """
    note = store.root / _note(files.weights)
    if note.is_file():
        with suppress(OSError):
            disk.evict(files.weights)
            note.unlink()


def _note(repo: RepoFiles) -> str:
    return f"downloads/{platform.node()}-{repo.repo.replace('/', '--')}-{repo.commit}.txt"


class Downloads:
    """A thread that downloads and removes checkpoints one at a time, so that a removal never meets a download.

    Leaving the block by an exception gives up the download that is under way.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._stop = store, threading.Event()
        self._pool = ThreadPoolExecutor(1, "download")

    def __enter__(self) -> Downloads:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._stop.set()
        self._pool.shutdown(wait=kind is None, cancel_futures=kind is not None)

    def fetch(self, files: CheckpointFiles) -> Future[None]:
        """Start `fetch_checkpoint`; the future raises what it raises."""
        return self._pool.submit(fetch_checkpoint, files, self._store, self._stop)

    def remove(self, files: CheckpointFiles) -> Future[None]:
        """Start `remove_checkpoint`."""
        return self._pool.submit(remove_checkpoint, files, self._store)
