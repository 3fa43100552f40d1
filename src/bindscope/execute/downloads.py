"""Downloads checkpoints while another one is measured, and removes those that this run has downloaded."""

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

    Where no file of it was on this machine, a note in the results folder records that this run downloaded it.

    files: the files of the checkpoint and of its tokenizer
    store: the results folder
    stop: setting this event cancels the download
    Raises ModelError as `checkpoints.files.fetch` does.
    """
    if (store.root / _note(files.weights)).is_file():
        check_cached(files.weights)  # the run that downloaded the files may have ended before it checked them
    elif not disk.is_cached(files.weights):
        store.write_text(_note(files.weights), f"{files.weights.repo} {files.weights.commit}\n")
    for repo in (files.weights, files.tokenizer):
        fetch(repo, stop=stop)


def remove_checkpoint(files: CheckpointFiles, store: Store) -> None:
    """Remove a checkpoint from the hub's cache if this run, or an earlier run in the same folder, downloaded it.

    Where the files cannot be removed, they and their note stay. This is not an error, since no result depends on it.

    files: the files of the checkpoint
    store: the results folder
    """
    note = store.root / _note(files.weights)
    if note.is_file():
        with suppress(OSError):
            disk.evict(files.weights)
            note.unlink()


def _note(repo: RepoFiles) -> str:
    return f"downloads/{platform.node()}-{repo.repo.replace('/', '--')}-{repo.commit}.txt"


class Downloads:
    """A thread that downloads and removes checkpoints one at a time, so that a removal never runs during a download.

    Use it as a context manager. An exception inside the block cancels the download in progress.
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
        """Start `fetch_checkpoint`; the future raises its errors."""
        return self._pool.submit(fetch_checkpoint, files, self._store, self._stop)

    def remove(self, files: CheckpointFiles) -> Future[None]:
        """Start `remove_checkpoint`."""
        return self._pool.submit(remove_checkpoint, files, self._store)
