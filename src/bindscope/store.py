"""Results on disk: one Parquet file (a shard) for each checkpoint and table, identified by its key.

The key covers everything that changes a number: repository, resolved commit, fingerprint of the files, dtype, device
kind, measure, prompts and protocol, schema version. The Parquet metadata of a shard hold its key, its provenance, the
meaning of its columns and a checksum over all of its bytes. A shard is written to a temporary file, which is synced and
then renamed, so a shard is either complete or absent. `run.json` lists the checkpoints of the run with their keys, so
results of another protocol in the same folder are not mixed in.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from bindscope.errors import RequestError, SchemaError, StoreError
from bindscope.records import SCHEMA_VERSION, CheckpointRef, Identity, Prompt, Protocol, Provenance, digest
from bindscope.schema import JOINED, PER_PROMPT, PROMPTS, Measurement, Table, joined, table_of

#: The key of the Parquet metadata that hold a shard's key, provenance, columns and checksum.
_META = b"bindscope"
_BLANK = "0" * 64
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{32}\.tmp")
_FAULTS = (OSError, pa.ArrowException, ValueError, KeyError, TypeError, SchemaError)


def result_key(
    identity: Identity, dtype: str, device: str, measure: str, prompts: Sequence[Prompt], protocol: Protocol
) -> str:
    """The key of a result: SHA-256 (hex) over everything that changes it.

    identity: content of weights and tokenizer
    dtype, device: what the model runs in and on
    measure: identity of the measure
    prompts: the prompts on which the measure depends
    protocol: the settings on which the measure depends
    """
    return digest(identity, dtype, device, measure, list(prompts), protocol, SCHEMA_VERSION)


@dataclass(frozen=True)
class Unit:
    """One checkpoint of a run and its state.

    checkpoint: the checkpoint
    status: pending, done or failed
    keys: table -> result key
    reason: why the checkpoint failed, else None
    traceback: name of the file in the folder that holds the traceback, None where nothing failed
    weights: fingerprint of the weights, None where it is not known
    flags: warnings about the weights
    lacking: measure -> why it has no results for this checkpoint
    """

    checkpoint: CheckpointRef
    status: Literal["pending", "done", "failed"]
    keys: dict[str, str]
    reason: str | None = None
    traceback: str | None = None
    weights: str | None = None
    flags: tuple[str, ...] = ()
    lacking: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFile:
    """The content of `run.json`.

    experiment: the fields of the experiment
    units: its checkpoints, in order
    notes: messages about the whole run
    """

    experiment: dict[str, Any]
    units: tuple[Unit, ...]
    notes: tuple[str, ...] = ()


class Store:
    """A results folder."""

    def __init__(self, root: Path | str, create: bool = True) -> None:
        """Open a results folder.

        root: the folder
        create: whether to create the folder where it does not exist
        Raises StoreError where the folder cannot be written or, with create False, is not a results folder.
        """
        self.root = root = Path(root)
        try:
            if create:
                (root / "shards").mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=root):
                    pass
        except OSError as error:
            raise StoreError(f"cannot write to the folder {root}: {error.strerror or error}") from error
        if not (root / "shards").is_dir():
            raise StoreError(
                f"{root} is not a results folder: it has no folder shards/; create one with `bindscope run`"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Within this block no other process writes to the folder. Raises RequestError where another one does."""
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RequestError(f"another run is writing to {self.root}; wait for it or take another folder") from error
        try:
            places = (self.root.glob("*"), self.root.glob("*/*"), (self.root / "shards").rglob("*"))
            for partial in filter(lambda path: _TEMPORARY.fullmatch(path.name), chain(*places)):
                partial.unlink(missing_ok=True)  # left by a run that was killed during writing
            yield
        finally:
            lock.release()

    def path(self, ref: CheckpointRef, table: str, key: str) -> Path:
        """The path of a shard. It holds only the first digits of the key; the whole key is inside the file."""
        return self.root / "shards" / _slug(ref.suite) / _slug(ref.place) / f"{table}-{key[:16]}.parquet"

    def fault(self, ref: CheckpointRef, measure: str, key: str) -> str | None:
        """Why a shard cannot be used: None if it is complete, "" if it is absent, else a message."""
        shard = self._shard(ref, measure, key)
        return shard if isinstance(shard, str) else None

    def _shard(self, ref: CheckpointRef, name: str, key: str) -> Measurement | str:
        """The checked shard, or what `fault` returns for it."""
        path = self.path(ref, name, key)
        if not path.exists():
            return ""
        try:
            content = path.read_bytes()
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            rows, meta = file.read(), _about(file.metadata)
            if not _whole(content, meta["sha256"]):
                raise ValueError("its checksum does not match its bytes")
            if meta["schema"] != SCHEMA_VERSION:
                old = f"{path} is of schema {meta['schema']}, this version reads {SCHEMA_VERSION}"
                return f"{old}: run `bindscope run` again"
            table = table_of(meta["table"])
        except _FAULTS as error:
            return f"{path} is damaged or not a shard ({' '.join(str(error).split())[:120]}): measured again"
        if meta["key"] != key:
            return f"{path} holds another result (key {meta['key'][:16]}): measured again"
        return Measurement(table, rows)

    def write(self, ref: CheckpointRef, key: str, result: Measurement, provenance: Provenance) -> Path:
        """Write one shard in one step, so that it is never incomplete, and return its path.

        ref: the checkpoint
        key: the key of the result
        result: the table
        provenance: how it was computed
        Raises StoreError where it cannot be written (full disk, no permission).
        """
        meta = {"key": key, "schema": SCHEMA_VERSION, "table": result.table.plain(), "provenance": asdict(provenance)}
        file = pa.BufferOutputStream()
        with pq.ParquetWriter(file, result.rows.schema, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(result.rows)
            writer.add_key_value_metadata({_META: json.dumps(meta | {"sha256": _BLANK}, ensure_ascii=False).encode()})
        content = file.getvalue().to_pybytes()
        checksum = hashlib.sha256(content).hexdigest()
        path = self.path(ref, result.name, key)
        _atomic(path, lambda temp: temp.write_bytes(checksum.encode().join(content.rsplit(_BLANK.encode(), 1))))
        return path

    def parts(self, ref: CheckpointRef, key: str) -> Parts:
        """The store of finished parts of a measurement, which is used until its shard is written."""
        return Parts(self.path(ref, "parts", key).with_suffix(""))

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file into the folder in one step. Raises StoreError where it cannot be written."""
        return self.write_bytes(name, text.encode("utf-8", "replace"))

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file into the folder in one step. Raises StoreError where it cannot be written."""
        _atomic(self.root / name, lambda temp: temp.write_bytes(content))
        return self.root / name

    def note(self, ref: CheckpointRef, folder: str) -> str:
        """The path, inside the results folder, of a text file about a checkpoint.

        folder: the subfolder, such as "failures"
        """
        return f"{folder}/{_slug(ref.suite)}-{_slug(ref.place)}.txt"

    def write_run(self, run: RunFile) -> None:
        """Write `run.json`: the experiment and the state of its checkpoints. Raises StoreError."""
        self.write_text("run.json", json.dumps(asdict(run), ensure_ascii=False, indent=1))

    def read_run(self) -> RunFile:
        """The content of `run.json`. Raises StoreError where the file is absent or damaged."""
        path = self.root / "run.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            units = tuple(
                Unit(CheckpointRef(**u.pop("checkpoint")), **u | {"flags": tuple(u.get("flags", ()))})
                for u in raw["units"]
            )
            return RunFile(raw["experiment"], units, tuple(raw.get("notes", ())))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"cannot read {path}: {error}; run `bindscope run` with this folder again") from error

    def tables(self) -> tuple[Table, ...]:
        """The tables of the run's finished checkpoints, as their shards declare them.

        Raises StoreError where the results cannot be read.
        """
        by_name: dict[str, Table] = {}
        for unit in self.read_run().units:
            for name, key in unit.keys.items() if unit.status == "done" else ():
                if name not in by_name:
                    by_name[name] = table_of(self._meta(unit.checkpoint, name, key)["table"])
        return tuple(by_name.values())

    def read(self, name: str) -> pd.DataFrame:
        """The rows of one table over all finished checkpoints of the run, after the columns suite, revision and step.

        The result is empty for a table that the experiment does not measure. In "binding" the null columns of EB* keep
        their names; those of other measures begin with the name of the measure (mass_excess).

        name: a table of `tables`, or "binding" for a row per prompt with the columns of every span measure
        Raises StoreError for a shard that is missing or damaged.
        """
        if name == JOINED:
            return self._joined()
        frames = []
        for ref, shard in self.shards(name):
            frame = shard.frame()
            for i, (column, value) in enumerate(ref.columns.items()):
                frame.insert(i, column, value)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _joined(self) -> pd.DataFrame:
        """The table of prompts with the columns of every table that has a row per prompt, in the same order."""
        parts = ((table, self.read(table.name)) for table in self.tables() if table.row == PER_PROMPT)
        return joined(self.read(PROMPTS.name), parts)

    def shards(self, name: str) -> Iterator[tuple[CheckpointRef, Measurement]]:
        """Yield the shard of one table for every finished checkpoint that has it, in the order of the run.

        Raises StoreError for a shard that is missing or damaged.
        """
        for unit in self.read_run().units:
            if unit.status != "done" or name not in unit.keys:
                continue
            ref, key = unit.checkpoint, unit.keys[name]
            shard = self._shard(ref, name, key)
            if isinstance(shard, str):
                raise StoreError(shard or _missing(self.path(ref, name, key)))
            yield ref, shard

    def _meta(self, ref: CheckpointRef, name: str, key: str) -> dict[str, Any]:
        path = self.path(ref, name, key)
        if not path.exists():
            raise StoreError(_missing(path))
        try:
            return _about(pq.read_metadata(path))
        except _FAULTS as error:
            raise StoreError(
                f"cannot read {path}: {' '.join(str(error).split())[:120]}; run `bindscope run` again"
            ) from error

    def provenance(self, ref: CheckpointRef, name: str, key: str) -> dict[str, Any]:
        """The provenance of a shard. Raises StoreError where it cannot be read."""
        return dict(self._meta(ref, name, key)["provenance"])

    def commits(self) -> dict[tuple[str, str | None], dict[str, str]]:
        """The commits to which hub revisions pointed when the shards of this folder were computed.

        The result maps (repository, revision) -> commit -> fingerprint of the files. It leaves out damaged shards.
        """
        commits: dict[tuple[str, str | None], dict[str, str]] = {}
        for path in (self.root / "shards").rglob("*.parquet"):
            try:
                origin = _about(pq.read_metadata(path))["provenance"]
                ref, identity = origin["checkpoint"], origin["identity"]
                if identity["commit"] is not None:
                    fingerprints = commits.setdefault((ref["repo"], ref["revision"]), {})
                    fingerprints[identity["commit"]] = identity["fingerprint"]
            except _FAULTS:
                continue
        return commits

    def unused(self) -> int:
        """The number of shards that the run does not use (of another protocol, of a longer experiment)."""
        used = {self.path(u.checkpoint, m, k) for u in self.read_run().units for m, k in u.keys.items()}
        return len(set((self.root / "shards").rglob("*.parquet")) - used)


class Parts:
    """Finished parts of a measurement: a folder of JSON files, each written in one step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> list[dict[str, Any]] | None:
        """The rows of a part; None where it is absent or damaged, so that it is measured again."""
        try:
            rows = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return rows if isinstance(rows, list) else None

    def put(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Store a part. Raises StoreError where it cannot be written."""
        text = json.dumps(rows, ensure_ascii=False).encode()
        _atomic(self.folder / f"{name}.json", lambda temp: temp.write_bytes(text))

    def clear(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _whole(content: bytes, checksum: str) -> bool:
    """Whether a file has its checksum: SHA-256 over its bytes with zeros in the place of the checksum."""
    parts = content.rsplit(checksum.encode(), 1)
    return hashlib.sha256(_BLANK.encode().join(parts)).hexdigest() == checksum


def _missing(path: Path) -> str:
    return f"{path} is missing; run `bindscope run` again"


def _about(file: pq.FileMetaData) -> dict[str, Any]:
    stored = file.metadata or {}
    meta = json.loads(stored[_META])
    if not isinstance(meta, dict):
        raise ValueError("no bindscope metadata")
    return meta


def _slug(text: str) -> str:
    """The text as a file name, which cannot lead out of its folder."""
    name = re.sub(r"[^\w.-]+", "-", text)
    return name if name.strip(".") else "-" * max(1, len(name))


def _atomic(path: Path, write: Any) -> None:
    temp = path.with_name(f".{path.name[:80]}.{uuid4().hex}.tmp")  # several machines may write at the same time
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temp)
            with temp.open("rb+") as file:
                os.fsync(file.fileno())
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)
        if os.name != "nt":  # Windows cannot open a folder
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; earlier results are kept, run again when the folder can "
            "be written"
        ) from error
