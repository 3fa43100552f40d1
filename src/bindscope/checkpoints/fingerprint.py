"""Which weights a checkpoint holds, whatever its config, tokenizer, sharding or file format say.

Two fingerprints: over the content hashes of the weight files, which the hub publishes before anything is downloaded,
and over the tensors themselves (name, dtype, shape, bytes, in the order of names), once they are on this machine. The
checkpoints of a suite are compared by both: a step that holds the weights of another is flagged, with the evidence.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import safe_open
from torch import Tensor

from bindscope.checkpoints.files import Source, fetch, identify, weight_files
from bindscope.checkpoints.load import BUFFERS, cache_dir
from bindscope.checkpoints.tokenizer import loading
from bindscope.errors import ModelError
from bindscope.records import CheckpointRef, digest

#: Output projections, which .bin files store and safetensors leave out where they are the input embedding.
_COPIES = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class Fingerprint:
    """files: over the content of the weight files; tensors: None until they are on this machine (and of a GGUF file);
    other: over the .bin files beside safetensors, where the hub publishes their hashes."""

    ref: CheckpointRef
    commit: str | None
    content: str
    files: str
    tensors: str | None = None
    other: str | None = None

    @property
    def weights(self) -> str:
        return self.tensors or self.files

    @property
    def name(self) -> str:
        """The revision, as a person would call it."""
        return self.ref.revision or (Path(self.ref.repo).name if self.commit is None else "main")


@dataclass(frozen=True)
class Flag:
    """Something that a reader of the results must know about these checkpoints."""

    refs: tuple[CheckpointRef, ...]
    text: str


def fingerprint(ref: CheckpointRef, source: Source, content: str, compute: bool = False) -> Fingerprint:
    """What is known of the weights of a checkpoint. content: the fingerprint of all of its files; compute: read the
    tensors if they are on this machine, else use what was kept of an earlier reading."""
    names = _data([ref.gguf] if ref.gguf else weight_files(source.files)[0])
    files = digest(sorted(source.files[name] for name in names))
    others = sorted(source.others[name] for name in _data(source.others))
    tensors = None if ref.gguf else _kept(files) or (_computed(source, names, files) if compute else None)
    return Fingerprint(ref, source.commit, content, files, tensors, digest(others) if all(others) and others else None)


def formats(ref: CheckpointRef, source: Source) -> list[Flag]:
    """What differs between safetensors and .bin files that lie side by side on this machine. Raises ModelError for
    safetensors that cannot be read."""
    names, others = _data(weight_files(source.files)[0]), _data(source.others)
    folder = source.folder_of([*names, *others]) if others else None
    if folder is None:
        return []
    label, one = f"{ref.suite}: {ref.revision or folder.name}", _tensors(folder, names)
    try:
        two = _tensors(folder, others)
    except ModelError as error:
        return [Flag((ref,), f"{label}: {error}; {names[0]} beside it is read")]
    if not (odd := sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))):
        return []
    a, b = (_told(part.get(odd[0])) for part in (one, two))
    text = f"{label}: {names[0]} and {others[0]} hold different weights ({len(odd)} tensors, first {odd[0]}: "
    return [Flag((ref,), f"{text}{a} against {b}); the safetensors are read")]


def flags(prints: Sequence[Fingerprint]) -> list[Flag]:
    """Checkpoints, in training order, that hold the weights of another one of their suite, or its .bin files."""
    return [flag for _, suite in groupby(prints, lambda p: p.ref.suite) for flag in _flags(list(suite))]


def _flags(suite: list[Fingerprint]) -> Iterator[Flag]:
    last = suite[-1]
    for i, one in enumerate(suite):
        label = f"{one.ref.suite}: {one.name}"
        twin = next(((t, why) for t in suite[:i] if (why := _same(t, one))), None)
        if one is not last and (why := _same(one, last)):
            yield Flag((one.ref, last.ref), f"{label} holds the weights of the final checkpoint, {last.name} ({why})")
        elif twin and not _same(one, last):
            yield Flag((twin[0].ref, one.ref), f"{label} holds the same weights as {twin[0].name} ({twin[1]})")
        blob = next((t for t in suite[:i] if one.other and t.other == one.other and not _same(t, one)), None)
        if blob:
            text = f"{label} and {blob.name} have the same .bin files ({str(one.other)[:12]}) but other safetensors"
            yield Flag((blob.ref, one.ref), f"{text}; the safetensors are read")


def _same(a: Fingerprint, b: Fingerprint) -> str | None:
    """The evidence that two checkpoints hold the same weights."""
    if a.files == b.files:
        return f"their weight files are equal, SHA-256 {a.files[:12]}"
    if a.tensors is not None and a.tensors == b.tensors:
        return f"their files differ but all tensors are equal, SHA-256 {a.tensors[:12]}"
    return None


def moved(prints: Iterable[Fingerprint], earlier: Mapping[tuple[str, str | None], Mapping[str, str]]) -> list[Flag]:
    """Revisions that were another commit in an earlier run. earlier: (repository, revision) -> commit -> fingerprint of
    all files."""
    out = []
    for new in prints:
        for commit, content in earlier.get((new.ref.repo, new.ref.revision), {}).items():
            if new.commit is not None and commit != new.commit:
                what = "the same files" if content == new.content else "other files"
                text = f"{new.ref.suite}: {new.name} was commit {commit[:12]} in an earlier run in this folder and is"
                out.append(Flag((new.ref,), f"{text} {new.commit[:12]} now, with {what}"))
    return out


def _data(names: Iterable[str]) -> list[str]:
    return [name for name in names if not name.endswith(".index.json")]


def _kept(files: str) -> str | None:
    path = cache_dir() / "fingerprints" / files
    found = path.read_text().strip() if path.is_file() else ""
    return found if len(found) == 64 else None


def _computed(source: Source, names: Sequence[str], files: str) -> str | None:
    folder = source.folder_of(names)
    if folder is None:
        return None
    found = digest(_tensors(folder, names))
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        path = cache_dir() / "fingerprints" / files
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f".{uuid4().hex}")
        temp.write_text(found)
        temp.replace(path)
    return found


def _tensors(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, list[int], str]]:
    """Name -> dtype, shape, SHA-256 of the bytes; without tensors that are computed from the config, and without an
    output projection that is a copy of another tensor. Raises ModelError for a file that cannot be read."""
    found = {}
    for name in names:
        with loading(f"{folder / name} cannot be read"):
            for key, tensor in _read(folder / name):
                if not key.endswith(BUFFERS):
                    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
                    dtype = str(tensor.dtype).removeprefix("torch.")
                    found[key] = (dtype, list(tensor.shape), hashlib.sha256(data).hexdigest())
    kept = [value for key, value in found.items() if key not in _COPIES]
    return {key: value for key, value in found.items() if key not in _COPIES or value not in kept}


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  not a mapping
                yield key, file.get_tensor(key)
    else:
        yield from torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)).items()


def _told(value: tuple[str, list[int], str] | None) -> str:
    return "absent" if value is None else f"{value[0]} {'x'.join(map(str, value[1]))} {value[2][:8]}"


@dataclass(frozen=True)
class Verified:
    """A suite's checkpoints, what is known of their weights (or why nothing is), and what must be said of them."""

    prints: tuple[Fingerprint, ...]
    faults: tuple[tuple[CheckpointRef, str], ...]
    flags: tuple[Flag, ...]


def verify(refs: Sequence[CheckpointRef], download: bool = False) -> Verified:
    """Fingerprint every checkpoint: by the hub's hashes, and by tensors where the files are on this machine.

    download: bring them to this machine first, in both formats where there are two.
    """
    prints, faults, found = [], [], []
    for ref in refs:
        try:
            sources = identify(ref)
            if download:
                fetch(sources.weights, [*sources.weights.files, *sources.weights.others])
            prints.append(fingerprint(ref, sources.weights, sources.identity.fingerprint, compute=True))
            found += formats(ref, sources.weights)
        except ModelError as error:
            faults.append((ref, str(error)))
    return Verified(tuple(prints), tuple(faults), (*flags(prints), *found))
