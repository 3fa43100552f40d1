"""The results of a run as one Parquet file for each table, for DuckDB, pandas or any other reader of Parquet.

A shard leaves out which checkpoint it is of, and its folder may hold shards of other runs. Here every row names its
checkpoint, and only the run's own results are in. What a column means stands in the metadata of its field, and the
whole data dictionary in the metadata of the file, under "bindscope".
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bindscope.errors import StoreError
from bindscope.schema import CHECKPOINT, Column, Table
from bindscope.store import Store

#: How each shard came to be.
PROVENANCE = Table(
    "provenance",
    "a checkpoint and table",
    (
        *CHECKPOINT,
        Column("tokens", "integer", "seen in training by then", unit="tokens", missing="not known"),
        Column("table", "text", "the table"),
        Column("key", "text", "key of the result: everything that changes a number in it"),
        Column("repo", "text", "hub repository or folder of the weights"),
        Column("commit", "text", "commit that the revision was", missing="a local folder has none"),
        Column("fingerprint", "text", "hash over the bytes of weights, config and tokenizer"),
        Column("weights", "text", "hash over the tensors", missing="not computed"),
        Column("dtype", "text", "what was computed in"),
        Column("device", "text", "kind of device: cpu, cuda, mps"),
        Column("bos", "text", "what stands in front of each text: default, on, off"),
        Column("attention", "text", "how attention was read, and whether continuations were packed"),
        Column("started", "text", "ISO 8601, UTC"),
        Column("seconds", "number", "wall time of its pass", unit="seconds", range=(0, None)),
        Column("git_commit", "text", "commit of the bindscope that measured", missing="an installed release"),
        Column("git_dirty", "yes/no", "whether its files differed from that commit", missing="an installed release"),
        Column("protocol", "text", "every choice that changes a number, as JSON"),
        Column("versions", "text", "versions of what computed, as JSON"),
        Column("flags", "list of text", "what must be known of the weights"),
        Column("notes", "list of text", "what was noted while it was measured"),
    ),
)


def write_tables(store: Store, folder: Path) -> list[Path]:
    """Write `TABLE.parquet` for each table of a run, and `provenance.parquet` with a row for each checkpoint and table.

    Raises StoreError for a run without a finished checkpoint, and for a shard that is missing or damaged.
    """
    tables = store.tables()
    if not tables:
        raise StoreError(f"no checkpoint of {store.root} is measured yet; run `bindscope run` with this folder again")
    folder.mkdir(parents=True, exist_ok=True)
    files = [_export(table, _rows(store, table), folder) for table in map(with_checkpoint, tables)]
    origins = _provenance(store)
    columns = {column.name: [row[column.name] for row in origins] for column in PROVENANCE.columns}
    return [*files, _export(PROVENANCE, PROVENANCE.arrow(columns), folder)]


def with_checkpoint(table: Table) -> Table:
    """The table as it is exported: the columns of the checkpoint in front."""
    return replace(table, columns=(*CHECKPOINT, *table.columns))


def _rows(store: Store, table: Table) -> pa.Table:
    """All rows of a table, typed as it declares."""
    parts = []
    for ref, shard in store.shards(table.name):
        place = [pa.array([value] * shard.rows.num_rows, table[name].field.type) for name, value in ref.columns.items()]
        parts.append(pa.table([*place, *shard.rows.columns], schema=table.schema))
    return pa.concat_tables(parts)


def _export(table: Table, rows: pa.Table, folder: Path) -> Path:
    path = folder / f"{table.name}.parquet"
    about = json.dumps(table.plain(), ensure_ascii=False).encode()
    pq.write_table(rows.replace_schema_metadata({b"bindscope": about}), path, compression="zstd")
    return path


def _provenance(store: Store) -> list[dict[str, Any]]:
    rows = []
    for unit in store.read_run().units:
        for table, key in unit.keys.items() if unit.status == "done" else ():
            origin = store.provenance(unit.checkpoint, table, key)
            row = unit.checkpoint.columns | origin | origin["identity"]
            row |= {"tokens": unit.checkpoint.tokens, "table": table, "key": key, "weights": unit.weights}
            row |= {name: json.dumps(origin[name], sort_keys=True) for name in ("protocol", "versions")}
            rows.append(row | {"flags": list(unit.flags)})
    return rows
