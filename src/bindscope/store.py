"""Results on disk: one Parquet shard per checkpoint and measure, found by key and never by name.

The key covers everything that changes a number: repository, resolved commit, fingerprint of the files, dtype, device
kind, measure, prompts and protocol, schema version. A shard carries its key, its provenance and a checksum over all of
its bytes in the Parquet metadata.
Writing is temp file, fsync, os.replace: a shard is whole or absent. `run.json` lists the units of the run and what
became of each, so that results of an older protocol in the same folder are never mixed in.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bindscope.errors import RequestError, StoreError
from bindscope.records import SCHEMA_VERSION, CheckpointRef, Identity, Measurement, Prompt, Protocol, Provenance, digest

#: Every table that a run can hold.
TABLES = (
    "binding", "windows", "heads", "recognition", "generation", "few_shot", "variability", "ablation", "ablation_sets",
)  # fmt: skip
#: Where a shard keeps its key, provenance and seal; and where those of earlier versions keep theirs, without a seal.
_META, _UNSEALED = b"bindscope-sealed", b"bindscope"
_BLANK = "0" * 64
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{32}\.tmp")
_FAULTS = (OSError, pa.ArrowException, ValueError, KeyError)


def result_key(
    identity: Identity, dtype: str, device: str, measure: str, prompts: Sequence[Prompt], protocol: Protocol
) -> str:
    """SHA-256 (hex) over everything that changes a result."""
    return digest(identity, dtype, device, measure, list(prompts), protocol, SCHEMA_VERSION)


@dataclass(frozen=True)
class Unit:
    """One checkpoint of a run and what became of it. keys: measure -> result key; traceback: a file of the folder, of a
    unit that failed; weights: their fingerprint; flags: what a reader must know about them."""

    checkpoint: CheckpointRef
    status: Literal["pending", "done", "failed"]
    keys: dict[str, str]
    reason: str | None = None
    traceback: str | None = None
    weights: str | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunFile:
    """`run.json`: the study as asked, and its units in order."""

    experiment: dict[str, Any]
    units: tuple[Unit, ...]


class Store:
    """A results folder. Creating one makes the folder; raises StoreError where it cannot be written."""

    def __init__(self, root: Path | str, create: bool = True) -> None:
        self.root = root = Path(root)
        try:
            if create:
                (root / "shards").mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=root):
                    pass
        except OSError as error:
            raise StoreError(f"cannot write to the folder {root}: {error.strerror or error}") from error
        if not (root / "shards").is_dir():
            raise StoreError(f"{root} is not a results folder: it has no shards/; make one with `bindscope run`")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing. Raises RequestError where another process does."""
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RequestError(
                    f"another run is writing to {self.root}; wait for it or take another folder"
                ) from error
            places = (self.root.glob("*"), self.root.glob("*/*"), (self.root / "shards").rglob("*"))
            for torn in filter(lambda path: _TEMPORARY.fullmatch(path.name), chain(*places)):
                torn.unlink(missing_ok=True)  # of a run that was killed while it wrote
            yield

    def path(self, ref: CheckpointRef, measure: str, key: str) -> Path:
        """Where the shard lives. The name helps people; the key inside the file decides."""
        return self.root / "shards" / _slug(ref.suite) / _slug(ref.place) / f"{measure}-{key[:16]}.parquet"

    def fault(self, ref: CheckpointRef, measure: str, key: str) -> str | None:
        """Why the shard cannot be used: None if it is there and whole, "" if it is absent, else what is wrong."""
        shard = self._shard(ref, measure, key)
        return shard if isinstance(shard, str) else None

    def _shard(self, ref: CheckpointRef, measure: str, key: str) -> pa.Table | str:
        """The whole, checked shard, or what `fault` says of it."""
        path = self.path(ref, measure, key)
        if not path.exists():
            return ""
        try:
            content = path.read_bytes()
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            table, meta = file.read(), _about(file.metadata)
            found, schema = meta["key"], meta["schema"]
            if _META in file.metadata.metadata and not _whole(content, meta["sha256"]):
                raise ValueError("its bytes are not those that were written")
        except _FAULTS as error:
            return f"{path} is torn or not a shard ({' '.join(str(error).split())[:120]}): measured again"
        if schema != SCHEMA_VERSION:
            return f"{path} is of schema {schema}, this version reads {SCHEMA_VERSION}: run `bindscope run` again"
        return table if found == key else f"{path} holds another result (key {found[:16]}): measured again"

    def write(self, ref: CheckpointRef, key: str, result: Measurement, provenance: Provenance) -> Path:
        """Write one shard atomically. Raises StoreError (full disk, no permission); nothing half-written remains."""
        table = pa.table({name: pa.array(values) for name, values in result.columns.items()})
        meta = {"key": key, "measure": result.measure, "schema": SCHEMA_VERSION, "provenance": asdict(provenance)}
        file = pa.BufferOutputStream()
        with pq.ParquetWriter(file, table.schema, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({_META: json.dumps(meta | {"sha256": _BLANK}, ensure_ascii=False).encode()})
        content = file.getvalue().to_pybytes()
        seal = hashlib.sha256(content).hexdigest()
        path = self.path(ref, result.measure, key)
        _atomic(path, lambda temp: temp.write_bytes(seal.encode().join(content.rsplit(_BLANK.encode(), 1))))
        return path

    def parts(self, ref: CheckpointRef, key: str) -> Parts:
        """Where blocks of an unfinished measurement are kept until its shard is written."""
        return Parts(self.path(ref, "parts", key).with_suffix(""))

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file into the folder, whole or not at all. Raises StoreError."""
        return self.write_bytes(name, text.encode("utf-8", "replace"))

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write a file into the folder, whole or not at all. Raises StoreError."""
        _atomic(self.root / name, lambda temp: temp.write_bytes(content))
        return self.root / name

    def note(self, ref: CheckpointRef, folder: str) -> str:
        """The name of a text file about a checkpoint."""
        return f"{folder}/{_slug(ref.suite)}-{_slug(ref.place)}.txt"

    def write_run(self, run: RunFile) -> None:
        """Record the study and the state of its units."""
        self.write_text("run.json", json.dumps(asdict(run), ensure_ascii=False, indent=1))

    def read_run(self) -> RunFile:
        """The recorded run. Raises StoreError where there is none or it is damaged."""
        path = self.root / "run.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            units = tuple(
                Unit(CheckpointRef(**u.pop("checkpoint")), **u | {"flags": tuple(u.get("flags", ()))})
                for u in raw["units"]
            )
            return RunFile(raw["experiment"], units)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"cannot read {path}: {error}; run `bindscope run` with this folder again") from error

    def read(self, measure: str) -> pd.DataFrame:
        """All rows of one table over the run's finished units, with the columns suite, revision and step in front;
        empty for a table that the study did not ask for.

        Raises StoreError for a shard that is missing or damaged.
        """
        frames = []
        for ref, shard in self.shards(measure):
            frame = shard.to_pandas()
            for i, (name, value) in enumerate(ref.columns.items()):
                frame.insert(i, name, value)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def shards(self, measure: str) -> Iterator[tuple[CheckpointRef, pa.Table]]:
        """One table's shard of every finished unit that has it, in the run's order.

        Raises StoreError for a shard that is missing or damaged.
        """
        if measure not in TABLES:
            raise StoreError(f"there is no table {measure!r}; tables: {', '.join(TABLES)}")
        for unit in self.read_run().units:
            if unit.status != "done" or measure not in unit.keys:
                continue
            ref, key = unit.checkpoint, unit.keys[measure]
            shard = self._shard(ref, measure, key)
            if isinstance(shard, str):
                raise StoreError(shard or f"{self.path(ref, measure, key)} is missing; run `bindscope run` again")
            yield ref, shard

    def provenance(self, ref: CheckpointRef, measure: str, key: str) -> dict[str, Any]:
        """How a shard came to be."""
        return dict(_about(pq.read_metadata(self.path(ref, measure, key)))["provenance"])

    def commits(self) -> dict[tuple[str, str | None], dict[str, str]]:
        """Which commits the revisions of hub repositories were when shards of this folder were made: (repository,
        revision) -> commit -> fingerprint of its files. Shards that cannot be read say nothing."""
        found: dict[tuple[str, str | None], dict[str, str]] = {}
        for path in (self.root / "shards").rglob("*.parquet"):
            try:
                made = _about(pq.read_metadata(path))["provenance"]
                ref, identity = made["checkpoint"], made["identity"]
                if identity["commit"] is not None:
                    place = found.setdefault((ref["repo"], ref["revision"]), {})
                    place[identity["commit"]] = identity["fingerprint"]
            except _FAULTS:
                continue
        return found

    def strangers(self) -> int:
        """Shards in the folder that the recorded run does not use (an older protocol, a longer study)."""
        mine = {self.path(u.checkpoint, m, k) for u in self.read_run().units for m, k in u.keys.items()}
        return len(set((self.root / "shards").rglob("*.parquet")) - mine)


class Parts:
    """A folder of JSON files, each written whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> list[dict[str, Any]] | None:
        """The rows of a block; None where it is absent or damaged, so that it is measured again."""
        try:
            rows = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return rows if isinstance(rows, list) else None

    def put(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Keep a block. Raises StoreError."""
        text = json.dumps(rows, ensure_ascii=False).encode()
        _atomic(self.folder / f"{name}.json", lambda temp: temp.write_bytes(text))

    def clear(self) -> None:
        """Take the blocks away."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _whole(content: bytes, seal: str) -> bool:
    """Whether the file is, to the byte, as it was sealed: SHA-256 over itself with zeros in the place of the sum."""
    parts = content.rsplit(seal.encode(), 1)
    return hashlib.sha256(_BLANK.encode().join(parts)).hexdigest() == seal


def _about(file: pq.FileMetaData) -> dict[str, Any]:
    stored = file.metadata or {}
    meta = json.loads(stored[_META] if _META in stored else stored[_UNSEALED])
    if not isinstance(meta, dict):
        raise ValueError("no bindscope metadata")
    return meta


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def _atomic(path: Path, write: Any) -> None:
    temp = path.with_name(f".{path.name[:80]}.{uuid4().hex}.tmp")  # writers may sit on several machines
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temp)
            with temp.open("rb+") as file:
                os.fsync(file.fileno())
            temp.replace(path)
        finally:
            temp.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; what was measured before is kept, "
            "run again when there is room"
        ) from error
