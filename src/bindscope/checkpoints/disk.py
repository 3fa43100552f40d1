"""Room for downloads: what a sweep needs, and taking a checkpoint out of the hub's cache when it has been measured."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir

from bindscope.checkpoints.files import Source, Sources
from bindscope.errors import RequestError


def size(sources: Sources) -> int:
    """Bytes still to be downloaded for a checkpoint: at least so many, where the hub does not give every size."""
    absent = {(s.repo, name, s.sizes.get(name, 0)) for s in (sources.weights, sources.tokenizer) for name in s.absent()}
    return sum(n for _, _, n in absent)


def check_room(sizes: Sequence[int], evict: bool) -> None:
    """Raises RequestError where downloads of these sizes, one after the other, do not fit into the hub's cache.

    With `evict` two checkpoints at most lie there at a time, the one in work and the next.
    """
    least = max([a + b for a, b in pairwise(sizes)] or sizes, default=0)
    need, cache = least if evict else sum(sizes), Path(constants.HF_HUB_CACHE)
    home = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(home).free
    if need <= free:
        return
    there = f"and the hub's cache {cache} has room for {told(free)}"
    if not evict and least <= free:
        remedy = f"--evict removes each checkpoint after it was measured and needs {told(least)}"
        raise RequestError(f"the checkpoints to download take {told(need)}, {there}; {remedy}")
    raise RequestError(f"the checkpoints to download take {told(need)}, {there}; set HF_HUB_CACHE to a larger disk")


def told(size: int) -> str:
    """Bytes for people."""
    units = ("B", "kB", "MB", "GB", "TB")
    step = next((i for i in range(len(units) - 1) if size < 1000 ** (i + 1)), len(units) - 1)
    return f"{size / 1000**step:.{min(step, 1)}f} {units[step]}"


def present(source: Source) -> bool:
    """Whether the hub's cache holds anything at all of this commit."""
    return source.folder is not None or len(source.absent()) < len(source.files)


def evict(source: Source) -> bool:
    """Take a commit out of the hub's cache: what other revisions share with it stays, and so does a commit of which
    the cache holds files that are none of ours. Returns whether it was removed."""
    cache = scan_cache_dir()
    for repo in cache.repos:
        for found in repo.revisions:
            if repo.repo_type == "model" and repo.repo_id == source.repo and found.commit_hash == source.commit:
                ours = {*source.files, *source.others}
                if {path.relative_to(found.snapshot_path).as_posix() for path in found.snapshot_path.rglob("*")} - ours:
                    return False
                kept = {file.blob_path for other in repo.revisions if other is not found for file in other.files}
                mine = frozenset(file.blob_path for file in found.files) - kept
                names = frozenset(repo.repo_path / "refs" / ref for ref in found.refs)
                plan = replace(cache, repos=frozenset({repo})).delete_revisions(found.commit_hash)
                # Never the whole repository, in which another program may be downloading.
                replace(
                    plan, repos=frozenset(), snapshots=frozenset({found.snapshot_path}), blobs=mine, refs=names
                ).execute()
                return True
    return False
