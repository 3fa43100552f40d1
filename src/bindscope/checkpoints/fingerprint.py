"""Which weights a checkpoint holds, whatever its config, tokenizer, sharding or file format are.

There are two fingerprints: one over the content hashes of the weight files, which the hub publishes before anything is
downloaded, and one over the tensors themselves (name, dtype, shape, bytes, in the order of names), once they are on
this machine. The checkpoints of a suite are compared by both: a step with the weights of another one is flagged, with
the evidence. `weight_flags` is the one place where this is decided.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch
from safetensors import safe_open
from torch import Tensor

from bindscope.checkpoints.disk import cache_dir
from bindscope.checkpoints.files import RepoFiles, fetch, identify, weight_files
from bindscope.checkpoints.loading import loading
from bindscope.errors import ModelError
from bindscope.records import CheckpointRef, digest

#: Tensors that old checkpoints store although they are computed from the config.
BUFFERS = (".attention.bias", ".attn.bias", ".masked_bias", ".rotary_emb.inv_freq", ".position_ids")
#: Output projections, which .bin files store and safetensors leave out where they are the input embedding.
_TIED_PROJECTIONS = ("lm_head.weight", "embed_out.weight")
#: (repository, revision) -> commit -> fingerprint of all files, as earlier runs in a results folder have seen them.
EarlierCommits = Mapping[tuple[str, str | None], Mapping[str, str]]


@dataclass(frozen=True)
class Fingerprint:
    """What is known of the weights of one checkpoint; all hashes are SHA-256 in hex.

    ref: the checkpoint.
    commit: the resolved commit; None for a local folder.
    content: over all files of the checkpoint, config and tokenizer included.
    files: over the content of the weight files.
    tensors: over the tensors; None until they are on this machine, and for a GGUF file.
    bin_files: over the .bin files beside safetensors; None where there are none or the hub gives no hashes.
    """

    ref: CheckpointRef
    commit: str | None
    content: str
    files: str
    tensors: str | None = None
    bin_files: str | None = None

    @property
    def weights(self) -> str:
        """The fingerprint of the tensors where it is known, else that of the weight files."""
        return self.tensors or self.files

    @property
    def name(self) -> str:
        """The revision, or the name of the folder."""
        return self.ref.revision or (Path(self.ref.repo).name if self.commit is None else "main")


@dataclass(frozen=True)
class Flag:
    """A warning that the results of these checkpoints carry.

    refs: the checkpoints it is about.
    text: what is wrong, with the evidence.
    """

    refs: tuple[CheckpointRef, ...]
    text: str


class TensorId(NamedTuple):
    """What identifies one tensor: dtype, shape and the SHA-256 of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape))} {self.sha256[:8]}"


def fingerprint(ref: CheckpointRef, repo: RepoFiles, content: str, compute: bool = False) -> Fingerprint:
    """What is known of the weights of a checkpoint.

    repo: its weight files.
    content: the fingerprint of all of its files.
    compute: read the tensors if they are on this machine; otherwise only what was kept of an earlier reading is used.

    Raises ModelError for weights that cannot be read.
    """
    names = _without_index([ref.gguf] if ref.gguf else weight_files(repo.hashes)[0])
    files = digest(sorted(repo.hashes[name] for name in names))
    bins = sorted(repo.unread[name] for name in _without_index(repo.unread))
    tensors = None
    if not ref.gguf:
        tensors = _kept(files) or (_computed(repo, names, files) if compute else None)
    return Fingerprint(
        ref=ref,
        commit=repo.commit,
        content=content,
        files=files,
        tensors=tensors,
        bin_files=digest(bins) if bins and all(bins) else None,
    )


def weight_flags(
    prints: Sequence[Fingerprint],
    earlier: EarlierCommits | None = None,
    on_disk: Iterable[tuple[CheckpointRef, RepoFiles]] = (),
) -> list[Flag]:
    """Every warning about the weights of these checkpoints.

    prints: the checkpoints, in training order.
    earlier: the commits of earlier runs; a revision that was another commit then is flagged.
    on_disk: checkpoints whose safetensors and .bin files are compared where both are on this machine.

    Flagged are a checkpoint with the weights of another one of its suite, one with the .bin files of another one, a
    revision that has moved, and two formats that differ. Raises ModelError for safetensors that cannot be read.
    """
    flags = [flag for _, suite in groupby(prints, lambda p: p.ref.suite) for flag in _equal_weights(list(suite))]
    flags += _moved(prints, earlier or {})
    return flags + [flag for ref, repo in on_disk for flag in _formats(ref, repo)]


def flags_of(mine: Fingerprint, suite: Sequence[Fingerprint]) -> list[Flag]:
    """The flags of one checkpoint whose tensors have become known, beside the others of its suite."""
    known = [mine if other.ref == mine.ref else other for other in suite]
    return [flag for flag in weight_flags(known) if mine.ref in flag.refs]


def _equal_weights(suite: list[Fingerprint]) -> Iterator[Flag]:
    last = suite[-1]
    for i, this in enumerate(suite):
        label, before = f"{this.ref.suite}: {this.name}", suite[:i]
        equal = next(((other, why) for other in before if (why := _same(other, this))), None)
        if this is not last and (why := _same(this, last)):
            yield Flag((this.ref, last.ref), f"{label} holds the weights of the final checkpoint, {last.name} ({why})")
        elif equal and not _same(this, last):
            yield Flag((equal[0].ref, this.ref), f"{label} holds the same weights as {equal[0].name} ({equal[1]})")
        same_bins = [o for o in before if this.bin_files and o.bin_files == this.bin_files and not _same(o, this)]
        if same_bins:
            other, bins = same_bins[0], str(this.bin_files)[:12]
            text = f"{label} and {other.name} have the same .bin files ({bins}) but other safetensors"
            yield Flag((other.ref, this.ref), f"{text}; the safetensors are read")


def _same(a: Fingerprint, b: Fingerprint) -> str | None:
    """The evidence that two checkpoints hold the same weights; None where they do not."""
    if a.files == b.files:
        return f"their weight files are equal, SHA-256 {a.files[:12]}"
    if a.tensors is not None and a.tensors == b.tensors:
        return f"their files differ but all tensors are equal, SHA-256 {a.tensors[:12]}"
    return None


def _moved(prints: Iterable[Fingerprint], earlier: EarlierCommits) -> Iterator[Flag]:
    for new in prints:
        for commit, content in earlier.get((new.ref.repo, new.ref.revision), {}).items():
            if new.commit is not None and commit != new.commit:
                what = "the same files" if content == new.content else "other files"
                text = f"{new.ref.suite}: {new.name} was commit {commit[:12]} in an earlier run in this folder and is"
                yield Flag((new.ref,), f"{text} {new.commit[:12]} now, with {what}")


def _formats(ref: CheckpointRef, repo: RepoFiles) -> Iterator[Flag]:
    """What differs between safetensors and .bin files that are side by side on this machine."""
    names, bins = _without_index(weight_files(repo.hashes)[0]), _without_index(repo.unread)
    folder = repo.local_folder([*names, *bins]) if bins else None
    if folder is None:
        return
    label, read = f"{ref.suite}: {ref.revision or folder.name}", _tensors(folder, names)
    try:
        unread = _tensors(folder, bins)
    except ModelError as error:
        yield Flag((ref,), f"{label}: {error}; {names[0]} beside it is read")
        return
    if odd := sorted(name for name in read.keys() | unread.keys() if read.get(name) != unread.get(name)):
        first = f"{read.get(odd[0], 'absent')} and {unread.get(odd[0], 'absent')}"
        text = f"{label}: {names[0]} and {bins[0]} hold different weights ({len(odd)} tensors, first {odd[0]}: {first})"
        yield Flag((ref,), f"{text}; the safetensors are read")


def _without_index(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.endswith(".index.json")]


def _kept(files: str) -> str | None:
    """The fingerprint of the tensors in weight files of this fingerprint, as an earlier reading left it."""
    path = cache_dir() / "fingerprints" / files
    text = path.read_text().strip() if path.is_file() else ""
    return text if len(text) == 64 else None


def _computed(repo: RepoFiles, names: Sequence[str], files: str) -> str | None:
    folder = repo.local_folder(names)
    if folder is None:
        return None
    tensors = digest(_tensors(folder, names))
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        path = cache_dir() / "fingerprints" / files
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f".{uuid4().hex}")
        temp.write_text(tensors)
        temp.replace(path)
    return tensors


def _tensors(folder: Path, names: Sequence[str]) -> dict[str, TensorId]:
    """Name -> identity of every tensor in these files.

    Left out are tensors that are computed from the config, and an output projection that is a copy of another tensor.
    Raises ModelError for a file that cannot be read.
    """
    tensors = {}
    for name in names:
        with loading(f"{folder / name} cannot be read"):
            for key, tensor in _read(folder / name):
                if not key.endswith(BUFFERS):
                    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    tensors[key] = TensorId(dtype, tuple(tensor.shape), hashlib.sha256(data).hexdigest())
    kept = [value for key, value in tensors.items() if key not in _TIED_PROJECTIONS]
    return {key: value for key, value in tensors.items() if key not in _TIED_PROJECTIONS or value not in kept}


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  not a mapping
                yield key, file.get_tensor(key)
    else:
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)).items()


@dataclass(frozen=True)
class VerifiedSuite:
    """What `verify` finds about the checkpoints of a suite.

    prints: the fingerprint of each checkpoint that could be identified.
    faults: the others, each with the reason.
    flags: warnings about their weights.
    """

    prints: tuple[Fingerprint, ...]
    faults: tuple[tuple[CheckpointRef, str], ...]
    flags: tuple[Flag, ...]


def verify(refs: Sequence[CheckpointRef], download: bool = False) -> VerifiedSuite:
    """Fingerprint every checkpoint: by the hub's hashes, and by tensors where the files are on this machine.

    download: bring them to this machine first, in both formats where there are two.
    """
    prints, faults, flags = [], [], []
    for ref in refs:
        try:
            files = identify(ref)
            if download:
                fetch(files.weights, [*files.weights.hashes, *files.weights.unread])
            prints.append(fingerprint(ref, files.weights, files.identity.fingerprint, compute=True))
            flags += weight_flags([], on_disk=[(ref, files.weights)])
        except ModelError as error:
            faults.append((ref, str(error)))
    return VerifiedSuite(tuple(prints), tuple(faults), (*weight_flags(prints), *flags))
