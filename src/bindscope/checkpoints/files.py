"""Which files make up a checkpoint, and their identity: known before anything is downloaded or loaded.

The fingerprint is a SHA-256 over the names and content hashes of the weight, config and tokenizer files. The hub
publishes those hashes, so a revision is identified without a download; in the hub's cache they are the names of the
blobs; in a local folder the files are read.
"""

from __future__ import annotations

import fnmatch
import hashlib
import socket
import threading
from collections.abc import Iterable
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
)
from huggingface_hub.file_download import repo_folder_name
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
class Source:
    """One repository or folder, with the files that are used of it (name -> content hash).

    others: weights in a format that is not read, beside those that are; the hash is "" where nobody publishes it.
    sizes: bytes of a file, where the hub says.
    """

    repo: str
    commit: str | None
    files: dict[str, str]
    folder: Path | None
    revision: str | None = None
    from_cache: bool = False
    others: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def folder_of(self, names: Iterable[str]) -> Path | None:
        """The folder on this machine that holds all of these files, in the hub's cache or elsewhere; None if none."""
        if self.folder is not None:
            return self.folder
        found = [try_to_load_from_cache(self.repo, name, revision=self.commit) for name in names]
        return Path(str(found[0])).parent if found and all(isinstance(f, str) for f in found) else None

    def absent(self) -> list[str]:
        """Files that `fetch` would download."""
        return [n for n in self.files if self.folder_of([n]) is None]


class Stopped(ModelError):
    """A download was given up because the run ended."""


@dataclass(frozen=True)
class Sources:
    """Weights and tokenizer of a checkpoint, identified but not necessarily downloaded."""

    weights: Source
    tokenizer: Source
    identity: Identity

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know: a branch may have moved on since it was cached."""
        return tuple(
            f"the hub could not be asked for {s.repo}: commit {s.commit} is the one in the cache"
            for s in ([self.weights] if self.tokenizer is self.weights else [self.weights, self.tokenizer])
            if s.from_cache
        )


def identify(ref: CheckpointRef, code: bool = False) -> Sources:
    """Resolve a checkpoint to commits and file hashes. Raises ModelError for what does not exist or is unreachable.

    code: take the Python files of the repository too, for a model that runs code of its own.
    """
    weights = _source(ref, ref.repo, ref.revision, weights=True, code=code)
    if ref.tokenizer is None and ref.gguf is None and not _tokenizer_files(weights.files):
        raise ModelError(
            f"{ref.repo} holds no tokenizer files; save the tokenizer beside the weights, or in the folder "
            "above checkpoint-N"
        )
    tokenizer = weights if ref.tokenizer is None else _source(ref, ref.tokenizer, None, weights=False)
    print_ = digest(weights.files, tokenizer.files)
    name = ref.repo if weights.folder is None or weights.commit else f"folder:{ref.suite}"
    return Sources(weights, tokenizer, Identity(name, weights.commit, print_))


def fetch(source: Source, files: Iterable[str] | None = None, stop: threading.Event | None = None) -> Path:
    """The folder with the source's files, or some of them; downloads what the hub's cache lacks.

    stop: gives the download up when it is set, and shows no progress bars. Raises ModelError when a download fails.
    """
    if source.folder is not None:
        if not source.folder.is_dir():
            raise ModelError(
                f"there is no folder {source.folder} on {socket.gethostname()}; put it where all can see it"
            )
        return source.folder
    try:
        names = list(files or source.files)
        absent = [n for n in names if source.folder_of([n]) is None]
        bars, folder = None if stop is None else _silent(stop), source.folder_of(names)
        if absent or folder is None:
            folder = Path(snapshot_download(source.repo, revision=source.commit, allow_patterns=names, tqdm_class=bars))
        for name in absent:
            _verify(source, folder / name, (source.files | source.others)[name])
        _remember(source)
        return folder
    except GatedRepoError as error:
        raise ModelError(f"{source.repo} is gated: accept its terms on the hub, then `hf auth login`") from error
    except (HTTP_ERROR, OSError) as error:
        raise ModelError(
            f"downloading {source.repo} at {source.commit} failed: {_line(error.__cause__ or error)}; what has "
            "arrived is kept, run again to go on"
        ) from error


def check(source: Source) -> None:
    """Compare its files in the hub's cache with the hub's hashes. Raises ModelError, and removes what differs."""
    for name, expected in source.files.items():
        if source.folder is None and (folder := source.folder_of([name])) is not None:
            _verify(source, folder / name, expected)


def _silent(stop: threading.Event) -> type[tqdm]:
    """Progress bars that show nothing, and end the download once `stop` is set: the client has no other way."""

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise Stopped("the download was given up")

    return Silent


def _verify(source: Source, path: Path, expected: str) -> None:
    """Compare a file that has just arrived with the hub's hash (sha256, or git's sha1): the client does not."""
    blob = path.resolve()
    size = blob.stat().st_size
    with blob.open("rb") as file:
        found = hashlib.file_digest(
            file, hashlib.sha256 if len(expected) == 64 else lambda: hashlib.sha1(b"blob %d\0" % size)
        ).hexdigest()
    if found != expected:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ModelError(f"{path.name} of {source.repo} at {source.commit} arrived damaged and was removed: run again")


def _remember(source: Source) -> None:
    """Note in the hub's cache which commit the revision is, as a download by branch would: for when the hub is away."""
    if source.commit is None or source.revision == source.commit:
        return
    refs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source.repo, repo_type="model") / "refs"
    ref = refs / (source.revision or constants.DEFAULT_REVISION)
    if not ref.is_file() or ref.read_text() != source.commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(source.commit)


def _source(ref: CheckpointRef, repo: str, revision: str | None, weights: bool, code: bool = False) -> Source:
    folder = Path(repo).expanduser().absolute()  # a worker may run elsewhere
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"{repo} is a local folder and has no revision {revision!r}; leave the revision out")
        names = [p.name for p in folder.iterdir() if p.is_file()]
        files = [ref.gguf] if ref.gguf else _choose(names, weights, repo, code)
        hashes = {name: _sha256(folder / name) for name in files}
        return Source(repo, None, hashes, folder, others=dict.fromkeys(weight_files(names)[1], "") if weights else {})
    where = f"{repo} at {revision}" if revision else repo
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        hashes = {s.rfilename: s.lfs.sha256 if s.lfs else str(s.blob_id) for s in info.siblings or []}
        used = {name: hashes[name] for name in _choose(hashes, weights, where, code)}
        others = {name: hashes[name] for name in weight_files(hashes)[1]} if weights else {}
        sizes = {s.rfilename: s.size for s in info.siblings or [] if s.size is not None}
        return Source(repo, info.sha, used, None, revision, others=others, sizes=sizes)
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision!r} on {constants.ENDPOINT}; {_branches(repo)}") from error
    except GatedRepoError as error:
        raise ModelError(f"{repo} is gated: accept its terms on the hub, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"no model {repo!r} on {constants.ENDPOINT} (or it is private: `hf auth login`)") from error
    except HFValidationError as error:
        raise ModelError(f"{repo!r} is not a valid repository name: {_line(error)}") from error
    except (HTTP_ERROR, OSError) as error:
        return _cached(repo, revision, (weights, code), where, error)


def _cached(repo: str, revision: str | None, what: tuple[bool, bool], where: str, cause: Exception) -> Source:
    """The same answer from the hub's cache, when the hub cannot be reached. what: weights or tokenizer, and code."""
    weights, code = what
    for kind in _WEIGHTS if weights else ((),):
        wanted = ["config.json", *kind, *_TOKENIZER, *(["*.py"] if code else [])] if weights else list(_TOKENIZER)
        try:  # complete, as to these files, or an error
            folder = Path(
                snapshot_download(
                    repo, revision=revision, local_files_only=True, allow_patterns=wanted, ignore_patterns=["*/*"]
                )
            )
        except OSError:
            break
        names = [p.name for p in folder.iterdir() if p.is_file()]
        if not weights or any(fnmatch.fnmatch(n, pattern) for n in names for pattern in kind):
            files = _choose(names, weights, where, code)
            return Source(repo, folder.name, {n: (folder / n).resolve().name for n in files}, folder, revision, True)
    raise ModelError(
        f"cannot reach {constants.ENDPOINT} for {where}, and it is not in the cache "
        f"{constants.HF_HUB_CACHE}: {_line(cause)}"
    ) from cause


def _choose(names: Iterable[str], weights: bool, where: str, code: bool) -> list[str]:
    """The files that are used: config, tokenizer, code if asked for, one kind of weights, safetensors before .bin."""
    present = sorted(n for n in names if "/" not in n)
    chosen = _tokenizer_files(present)
    if not weights:
        if not chosen:
            raise ModelError(f"{where} holds no tokenizer files")
        return [*[n for n in present if n == "config.json"], *chosen]  # the config steers which class reads them
    if "config.json" not in present:
        raise ModelError(f"{where} holds no config.json, so it is not a model that transformers can load")
    found, _ = weight_files(present)
    if not found:
        raise ModelError(f"{where} holds no weights (*.safetensors or pytorch_model*.bin)")
    return ["config.json", *found, *chosen, *[n for n in present if code and n.endswith(".py")]]


def weight_files(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Weights that are read, safetensors where there are some, and those in the other format beside them."""
    present = sorted(n for n in names if "/" not in n)
    kinds = [[n for n in present if any(fnmatch.fnmatch(n, pattern) for pattern in kind)] for kind in _WEIGHTS]
    found = [kind for kind in kinds if kind] or [[]]
    return found[0], [name for kind in found[1:] for name in kind]


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
        raise ModelError(f"cannot read {path}: {error}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
