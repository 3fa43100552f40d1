"""Which files make up a checkpoint, and their identity, known before anything is downloaded or loaded.

The fingerprint is a SHA-256 over the names and content hashes of the weight, config and tokenizer files. The hub
publishes those hashes, so a revision is identified without a download; in the hub's cache they are the names of the
blobs; in a local folder the files are read. One request a repository gives commit, hashes and sizes, which is why
downloads are planned from it and not by `snapshot_download(dry_run=True)`: that asks for every file once more, and
does not see that two revisions share a file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils.tqdm import tqdm

from bindscope.errors import ModelError
from bindscope.records import CheckpointRef, Identity, digest

#: The root of the HTTP library's errors (httpx or httpx2, by huggingface_hub's version); they are no OSErrors.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_TOKENIZER = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
)
_WEIGHTS = (("*.safetensors", "*.safetensors.index.json"), ("pytorch_model*.bin", "pytorch_model*.bin.index.json"))


@dataclass(frozen=True)
class RepoFiles:
    """The files of one repository or folder that are used.

    repo: hub repository, or path of a local folder.
    commit: the resolved commit; None for a local folder.
    hashes: name of each file that is used -> content hash (hub: SHA-256, or git's SHA-1 for small files).
    folder: where they are on this machine, if that is known without asking the hub's cache.
    revision: branch, tag or commit as it was asked for.
    from_cache: the hub gave no answer, and this is what its cache holds.
    unread: weights in a format that is not read, beside those that are; the hash is "" where it is not known.
    sizes: bytes of a file, where the hub gives them.
    """

    repo: str
    commit: str | None
    hashes: dict[str, str]
    folder: Path | None
    revision: str | None = None
    from_cache: bool = False
    unread: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def local_folder(self, names: Iterable[str]) -> Path | None:
        """The folder on this machine, in the hub's cache or elsewhere, that holds all of these files; None if none."""
        if self.folder is not None:
            return self.folder
        paths = [try_to_load_from_cache(self.repo, name, revision=self.commit) for name in names]
        return Path(str(paths[0])).parent if paths and all(isinstance(path, str) for path in paths) else None

    def missing(self) -> list[str]:
        """Names of the files that `fetch` would download."""
        return [name for name in self.hashes if self.local_folder([name]) is None]


class DownloadStopped(ModelError):
    """A download was given up because the run ended."""


class HubNotAsked(ModelError):
    """A checkpoint is not in the hub's cache, and the hub was not to be asked."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Weights and tokenizer of a checkpoint, identified but not necessarily downloaded.

    weights: the repository or folder with weights and config.
    tokenizer: that of the tokenizer; the same object where the tokenizer is beside the weights.
    identity: what every result is stored under.
    """

    weights: RepoFiles
    tokenizer: RepoFiles
    identity: Identity

    @property
    def notes(self) -> tuple[str, ...]:
        """A warning for each repository that the hub was not asked for: a branch may have moved on since."""
        repos = [self.weights] if self.tokenizer is self.weights else [self.weights, self.tokenizer]
        return tuple(
            f"the hub could not be asked for {repo.repo}: commit {repo.commit} is the one in the cache"
            for repo in repos
            if repo.from_cache
        )


def identify(ref: CheckpointRef, code: bool = False, offline: bool = False) -> CheckpointFiles:
    """Resolve a checkpoint to commits and file hashes; nothing is downloaded.

    code: include the Python files of the repository, for a model that runs code of its own.
    offline: ask the hub's cache only.

    Raises ModelError for a repository, revision or folder that does not exist, cannot be reached, or lacks config,
    weights or tokenizer.
    """
    weights = _repo_files(ref.repo, ref.revision, _Wanted(gguf=ref.gguf, code=code), offline)
    if ref.tokenizer is None and ref.gguf is None and not _tokenizer_files(weights.hashes):
        raise ModelError(
            f"{ref.repo} holds no tokenizer files; save the tokenizer beside the weights, or in the folder "
            "above checkpoint-N"
        )
    tokenizer = weights
    if ref.tokenizer is not None:
        tokenizer = _repo_files(ref.tokenizer, None, _Wanted(weights=False), offline)
    fingerprint = digest(weights.hashes, tokenizer.hashes)
    name = ref.repo if weights.folder is None or weights.commit else f"folder:{ref.suite}"
    return CheckpointFiles(weights, tokenizer, Identity(name, weights.commit, fingerprint))


def fetch(repo: RepoFiles, names: Iterable[str] | None = None, stop: threading.Event | None = None) -> Path:
    """The folder with these files; what the hub's cache lacks is downloaded and compared with the hub's hash.

    names: some of the files; all of them if None.
    stop: gives the download up when it is set; with it no progress bars are shown.

    Raises ModelError when a download fails or arrives damaged, DownloadStopped when it was given up.
    """
    if repo.folder is not None:
        if not repo.folder.is_dir():
            raise ModelError(
                f"there is no folder {repo.folder} on {socket.gethostname()}; every worker has to see this path"
            )
        return repo.folder
    wanted = list(names or repo.hashes)
    missing = [name for name in wanted if repo.local_folder([name]) is None]
    folder = repo.local_folder(wanted)
    try:
        if missing or folder is None:
            bars = None if stop is None else _stoppable_bars(stop)
            folder = Path(snapshot_download(repo.repo, revision=repo.commit, allow_patterns=wanted, tqdm_class=bars))
        for name in missing:
            _check_content(repo, folder / name, (repo.hashes | repo.unread)[name])
        _remember_branch(repo)
    except GatedRepoError as error:
        raise ModelError(f"{repo.repo} is gated: accept its terms on the hub, then `hf auth login`") from error
    except (HTTP_ERROR, OSError) as error:
        raise ModelError(
            f"downloading {repo.repo} at {repo.commit} failed: {_one_line(error.__cause__ or error)}; files that have "
            "arrived are kept, run again to go on"
        ) from error
    return folder


def check_cached(repo: RepoFiles) -> None:
    """Compare the files that are in the hub's cache with the hub's hashes.

    Raises ModelError for one that differs, which is removed.
    """
    for name, expected in repo.hashes.items():
        if repo.folder is None and (folder := repo.local_folder([name])) is not None:
            _check_content(repo, folder / name, expected)


def _stoppable_bars(stop: threading.Event) -> type[tqdm]:
    """Progress bars that show nothing and raise once `stop` is set: the hub's client offers no other way to end."""

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise DownloadStopped("the download was given up")

    return Silent


def _check_content(repo: RepoFiles, path: Path, expected: str) -> None:
    """Compare a file in the hub's cache with the hash that the hub published for it (SHA-256, or git's SHA-1).

    The client compares sizes only. Its `verify_repo_checksums` needs the hub once more, hashes every file of the
    snapshot whatever was downloaded, and leaves the damaged file in the cache.
    """
    blob = path.resolve()
    size = blob.stat().st_size
    with blob.open("rb") as file:
        actual = hashlib.file_digest(
            file, hashlib.sha256 if len(expected) == 64 else lambda: hashlib.sha1(b"blob %d\0" % size)
        ).hexdigest()
    if actual != expected:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ModelError(f"{path.name} of {repo.repo} at {repo.commit} arrived damaged and was removed: run again")


def _remember_branch(repo: RepoFiles) -> None:
    """Have the hub's client note which commit the branch is, as a download by branch does, for when the hub is away.

    A branch that cannot be noted is no reason to fail: its files are here, under their commit.
    """
    if repo.from_cache or repo.revision == repo.commit:
        return
    with suppress(RevisionResolutionError):
        if HfApi().resolve_revision(repo.repo, revision=repo.revision, local_files_only=True).resolved == repo.commit:
            return
    with suppress(RevisionResolutionError, HTTP_ERROR):
        HfApi().resolve_revision(repo.repo, revision=repo.revision)


@dataclass(frozen=True)
class _Wanted:
    """Which files of a repository are used: weights with config and tokenizer, or the tokenizer alone; Python code."""

    weights: bool = True
    code: bool = False
    gguf: str | None = None


def _repo_files(repo: str, revision: str | None, wanted: _Wanted, offline: bool) -> RepoFiles:
    folder = Path(repo).expanduser().absolute()  # a worker may run in another directory
    if folder.is_dir():
        return _folder_files(repo, folder, revision, wanted)
    where = f"{repo} at {revision}" if revision else repo
    if ".." in (revision or "").split("/"):  # the hub's cache has files named after revisions
        raise ModelError(f"{revision!r} is not a revision of {repo}; give a branch, tag or commit")
    if offline:
        return _cached(repo, revision, wanted, where, None)
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision!r} on {constants.ENDPOINT}; {_branches(repo)}") from error
    except GatedRepoError as error:
        raise ModelError(f"{repo} is gated: accept its terms on the hub, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"no model {repo!r} on {constants.ENDPOINT} (or it is private: `hf auth login`)") from error
    except HFValidationError as error:
        raise ModelError(f"{repo!r} is not a valid repository name: {_one_line(error)}") from error
    except (HTTP_ERROR, OSError) as error:
        return _cached(repo, revision, wanted, where, error)
    if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)):
        raise ModelError(f"{constants.ENDPOINT} gives {str(info.sha)[:60]!r} as the commit of {where}, which is none")
    files = info.siblings or []
    hashes = {file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id) for file in files}
    return RepoFiles(
        repo=repo,
        commit=info.sha,
        hashes={name: hashes[name] for name in _choose(hashes, wanted, where)},
        folder=None,
        revision=revision,
        unread={name: hashes[name] for name in weight_files(hashes)[1]} if wanted.weights else {},
        sizes={file.rfilename: file.size for file in files if file.size is not None},
    )


def _folder_files(repo: str, folder: Path, revision: str | None, wanted: _Wanted) -> RepoFiles:
    if revision is not None:
        raise ModelError(f"{repo} is a local folder and has no revision {revision!r}; leave the revision out")
    names = [path.name for path in folder.iterdir() if path.is_file()]
    used = [wanted.gguf] if wanted.gguf else _choose(names, wanted, repo)
    return RepoFiles(
        repo=repo,
        commit=None,
        hashes={name: _sha256(folder / name) for name in used},
        folder=folder,
        unread=dict.fromkeys(weight_files(names)[1], "") if wanted.weights else {},
    )


def _cached(repo: str, revision: str | None, wanted: _Wanted, where: str, cause: Exception | None) -> RepoFiles:
    """The same answer from the hub's cache. cause: why the hub gave none; None where it was not to be asked."""
    for kind in _WEIGHTS if wanted.weights else ((),):
        patterns = list(_TOKENIZER)
        if wanted.weights:
            patterns = ["config.json", *kind, *_TOKENIZER, *(["*.py"] if wanted.code else [])]
        try:  # raises where one of these files is not in the cache
            folder = Path(
                snapshot_download(
                    repo, revision=revision, local_files_only=True, allow_patterns=patterns, ignore_patterns=["*/*"]
                )
            )
        except (OSError, HFValidationError):
            break
        names = [path.name for path in folder.iterdir() if path.is_file()]
        if not wanted.weights or any(fnmatch.fnmatch(name, pattern) for name in names for pattern in kind):
            used = _choose(names, wanted, where)
            return RepoFiles(
                repo=repo,
                commit=folder.name,
                hashes={name: (folder / name).resolve().name for name in used},
                folder=folder,
                revision=revision,
                from_cache=True,
            )
    cache = f"it is not in the cache {constants.HF_HUB_CACHE}"
    if cause is None:
        raise HubNotAsked(f"{where}: the hub is not to be asked, and {cache}")
    raise ModelError(f"cannot reach {constants.ENDPOINT} for {where}, and {cache}: {_one_line(cause)}") from cause


def _choose(names: Iterable[str], wanted: _Wanted, where: str) -> list[str]:
    """The files that are used: config, tokenizer, code if asked for, one kind of weights, safetensors before .bin."""
    present = sorted(name for name in names if "/" not in name)
    tokenizer = _tokenizer_files(present)
    if not wanted.weights:
        if not tokenizer:
            raise ModelError(f"{where} holds no tokenizer files")
        # The config is among them: it decides which class reads the tokenizer.
        return [*[name for name in present if name == "config.json"], *tokenizer]
    if "adapter_config.json" in present:  # with peft installed transformers would load it, without peft not
        raise ModelError(
            f"{where} holds a PEFT adapter (adapter_config.json), whose weights are no part of the model's; merge it "
            "into the model (merge_and_unload), save that, and measure the saved folder"
        )
    if "config.json" not in present:
        raise ModelError(f"{where} holds no config.json, so it is not a model that transformers can load")
    weights, _ = weight_files(present)
    if not weights:
        raise ModelError(f"{where} holds no weights (*.safetensors or pytorch_model*.bin)")
    return ["config.json", *weights, *tokenizer, *[name for name in present if wanted.code and name.endswith(".py")]]


def weight_files(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Weight files that are read (safetensors where there are some), and those in the other format beside them."""
    present = sorted(name for name in names if "/" not in name)
    kinds = [[n for n in present if any(fnmatch.fnmatch(n, pattern) for pattern in kind)] for kind in _WEIGHTS]
    read, *rest = [kind for kind in kinds if kind] or [[]]
    return read, [name for kind in rest for name in kind]


def _tokenizer_files(names: Iterable[str]) -> list[str]:
    return [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in _TOKENIZER)]


def _branches(repo: str) -> str:
    try:
        names = [ref.name for ref in HfApi().list_repo_refs(repo).branches]
    except (HTTP_ERROR, OSError):
        return "its branches could not be listed"
    shown = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
    return f"its branches: {shown}"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
