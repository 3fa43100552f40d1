"""Which files make up a checkpoint, and their identity: known before anything is downloaded or loaded.

The fingerprint is a SHA-256 over the names and content hashes of the weight, config and tokenizer files. The hub
publishes those hashes, so a revision is identified without a download; in the hub's cache they are the names of the
blobs; in a local folder the files are read.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

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

    sizes: bytes of a file, where the hub says.
    """

    repo: str
    commit: str | None
    files: dict[str, str]
    folder: Path | None
    revision: str | None = None
    from_cache: bool = False
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


def identify(ref: CheckpointRef) -> Sources:
    """Resolve a checkpoint to commits and file hashes. Raises ModelError for what does not exist or is unreachable."""
    weights = _source(ref, ref.repo, ref.revision, weights=True)
    if ref.tokenizer is None and ref.gguf is None and not _tokenizer_files(weights.files):
        raise ModelError(
            f"{ref.repo} holds no tokenizer files; save the tokenizer beside the weights, or in the folder "
            "above checkpoint-N"
        )
    tokenizer = weights if ref.tokenizer is None else _source(ref, ref.tokenizer, None, weights=False)
    print_ = digest(weights.files, tokenizer.files)
    name = ref.repo if weights.folder is None or weights.commit else f"folder:{ref.suite}"
    return Sources(weights, tokenizer, Identity(name, weights.commit, print_))


def fetch(source: Source, files: Iterable[str] | None = None) -> Path:
    """The folder with the source's files, or some of them; downloads what the hub's cache lacks.

    Raises ModelError when that fails.
    """
    if source.folder is not None:
        return source.folder
    try:
        names = list(files or source.files)
        absent = [n for n in names if not try_to_load_from_cache(source.repo, n, revision=source.commit)]
        folder = Path(snapshot_download(source.repo, revision=source.commit, allow_patterns=names))
        for name in absent:
            _verify(source, folder / name, source.files[name])
        _remember(source)
        return folder
    except GatedRepoError as error:
        raise ModelError(f"{source.repo} is gated: accept its terms on the hub, then `hf auth login`") from error
    except (HTTP_ERROR, OSError) as error:
        raise ModelError(
            f"downloading {source.repo} at {source.commit} failed: {_line(error)}; what has arrived is "
            "kept, run again to go on"
        ) from error


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


def _source(ref: CheckpointRef, repo: str, revision: str | None, weights: bool) -> Source:
    folder = Path(repo).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(f"{repo} is a local folder and has no revision {revision!r}; leave the revision out")
        files = [ref.gguf] if ref.gguf else _choose((p.name for p in folder.iterdir() if p.is_file()), weights, repo)
        return Source(repo, None, {name: _sha256(folder / name) for name in files}, folder)
    where = f"{repo} at {revision}" if revision else repo
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        hashes = {s.rfilename: s.lfs.sha256 if s.lfs else str(s.blob_id) for s in info.siblings or []}
        used = {name: hashes[name] for name in _choose(hashes, weights, where)}
        sizes = {s.rfilename: s.size for s in info.siblings or [] if s.size is not None}
        return Source(repo, info.sha, used, None, revision, sizes=sizes)
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision!r} on {constants.ENDPOINT}; {_branches(repo)}") from error
    except GatedRepoError as error:
        raise ModelError(f"{repo} is gated: accept its terms on the hub, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"no model {repo!r} on {constants.ENDPOINT} (or it is private: `hf auth login`)") from error
    except HFValidationError as error:
        raise ModelError(f"{repo!r} is not a valid repository name: {_line(error)}") from error
    except (HTTP_ERROR, OSError) as error:
        return _cached(repo, revision, weights, where, error)


def _cached(repo: str, revision: str | None, weights: bool, where: str, cause: Exception) -> Source:
    """The same answer from the hub's cache, when the hub cannot be reached."""
    for kind in _WEIGHTS if weights else ((),):
        wanted = ["config.json", *kind, *_TOKENIZER] if weights else list(_TOKENIZER)
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
            files = _choose(names, weights, where)
            return Source(repo, folder.name, {n: (folder / n).resolve().name for n in files}, folder, revision, True)
    raise ModelError(
        f"cannot reach {constants.ENDPOINT} for {where}, and it is not in the cache "
        f"{constants.HF_HUB_CACHE}: {_line(cause)}"
    ) from cause


def _choose(names: Iterable[str], weights: bool, where: str) -> list[str]:
    """The files that are used: config, tokenizer, and one kind of weights, safetensors before .bin."""
    present = sorted(n for n in names if "/" not in n)
    chosen = _tokenizer_files(present)
    if not weights:
        if not chosen:
            raise ModelError(f"{where} holds no tokenizer files")
        return [*[n for n in present if n == "config.json"], *chosen]  # the config steers which class reads them
    if "config.json" not in present:
        raise ModelError(f"{where} holds no config.json, so it is not a model that transformers can load")
    for patterns in _WEIGHTS:
        if found := [n for n in present if any(fnmatch.fnmatch(n, pattern) for pattern in patterns)]:
            return ["config.json", *found, *chosen]
    raise ModelError(f"{where} holds no weights (*.safetensors or pytorch_model*.bin)")


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
