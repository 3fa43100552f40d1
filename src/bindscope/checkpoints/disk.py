"""Disk space: bindscope's own cache, what is in the hub's cache, room for downloads, and removing a checkpoint."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, CacheNotFound, constants, scan_cache_dir
from rich.filesize import decimal

from bindscope.checkpoints.files import CheckpointFiles, RepoFiles
from bindscope.errors import RequestError


def cache_dir() -> Path:
    """Where converted models and fingerprints are kept: $BINDSCOPE_CACHE, else the user's cache folder."""
    if own := os.environ.get("BINDSCOPE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bindscope"


def cached_contents() -> set[tuple[str, str]]:
    """Every file in the hub's cache, as (model repository, content hash); revisions share files of equal content."""
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return set()
    return {
        (repo.repo_id, file.blob_path.name)
        for repo in repos
        if repo.repo_type == "model"
        for revision in repo.revisions
        for file in revision.files
    }


def download_size(files: CheckpointFiles) -> int:
    """Bytes still to be downloaded for a checkpoint; a lower bound where the hub does not give every size."""
    both = (files.weights, files.tokenizer)
    missing = {(repo.repo, name, repo.sizes.get(name, 0)) for repo in both for name in repo.missing()}
    return sum(size for _, _, size in missing)


def check_room(sizes: Sequence[int], evict: bool) -> None:
    """Raise RequestError where downloads of these sizes (bytes) do not fit into the hub's cache.

    evict: each checkpoint is removed after it was measured, so that two at most are there at a time: the one that is
    measured and the next one.
    """
    largest_pair = max([a + b for a, b in pairwise(sizes)] or sizes, default=0)
    need, cache = largest_pair if evict else sum(sizes), Path(constants.HF_HUB_CACHE)
    home = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(home).free
    if need <= free:
        return
    room = f"the checkpoints to download take {decimal(need)}, and the hub's cache {cache} has room for {decimal(free)}"
    if not evict and largest_pair <= free:
        raise RequestError(
            f"{room}; --evict removes each checkpoint after it was measured and needs {decimal(largest_pair)}"
        )
    raise RequestError(f"{room}; set HF_HUB_CACHE to a larger disk")


def is_cached(repo: RepoFiles) -> bool:
    """Whether any of these files is on this machine."""
    return repo.folder is not None or len(repo.missing()) < len(repo.hashes)


def evict(repo: RepoFiles) -> bool:
    """Remove a commit from the hub's cache, and tell whether it was removed.

    Files that other revisions share stay, and so does a commit that holds files which bindscope did not download.
    """
    cache = scan_cache_dir()
    for cached in cache.repos:
        if cached.repo_type != "model" or cached.repo_id != repo.repo:
            continue
        for revision in cached.revisions:
            if revision.commit_hash == repo.commit:
                if _names(revision) - {*repo.hashes, *repo.unread}:
                    return False
                # `delete_revisions` plans to delete the whole repository where this is its only revision, and
                # another program may be downloading into it: only what belongs to this revision is deleted.
                strategy = replace(cache, repos=frozenset({cached})).delete_revisions(revision.commit_hash)
                replace(
                    strategy,
                    repos=frozenset(),
                    snapshots=frozenset({revision.snapshot_path}),
                    blobs=_unshared(cached, revision),
                    refs=frozenset(cached.repo_path / "refs" / ref for ref in revision.refs),
                ).execute()
                return True
    return False


def _names(revision: CachedRevisionInfo) -> set[str]:
    root = revision.snapshot_path
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


def _unshared(repo: CachedRepoInfo, revision: CachedRevisionInfo) -> frozenset[Path]:
    """The contents that no other revision of the repository has."""
    shared = {file.blob_path for other in repo.revisions if other is not revision for file in other.files}
    return frozenset(file.blob_path for file in revision.files) - shared
