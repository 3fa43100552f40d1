"""The results of a run as one Parquet file for each table, for DuckDB, pandas or any other reader of Parquet.

A shard in the store does not name its checkpoint, its types follow from its values, and its folder may hold shards of
other runs. In these files every row names its checkpoint, types are declared, and only results of the run are included.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bindscope.errors import StoreError
from bindscope.records import CheckpointRef
from bindscope.store import TABLES, Store

_LISTS = {str(t): pa.list_(pa.field("item", t)) for t in (pa.string(), pa.int64(), pa.float64())}
_COLUMNS: dict[pa.DataType, str] = {
    pa.string(): """
        suite revision prompt question term group task kind reason sinkless_reason null_reason position_null_reason
        format shot exemplar_term text mode ranking set""",
    pa.int64(): """
        step n_tokens prefix k occurrences best_layer best_head null_n position_null_n start layer head rotation gold
        predicted_per_token predicted_raw predicted_per_byte predicted_pmi seed new_tokens draw""",
    pa.bool_(): """
        best_head_is_pts carrier correct_per_token correct_raw correct_per_byte correct_pmi ended decoded_alone""",
    pa.float64(): """
        eb_star entropy eb_star_mass adjacent_bsi first_bsi sink_mass bsi_sinkless uniform_baseline eb_star_value
        null_mean excess percentile mass_null_mean mass_excess mass_percentile position_null_mean position_excess
        position_percentile bsi_pts_r previous_token_score margin margin_per_token margin_raw margin_per_byte margin_pmi
        temperature score neutral_loss""",
    _LISTS["string"]: "tokens span_strings choices matched contradicted copied heads",
    _LISTS["int64"]: "span top_heads choice_tokens choice_bytes",
    _LISTS["double"]: "eb_per_layer bsi mass sink value_bsi null_bsi logprob unconditional",
    pa.list_(pa.field("item", _LISTS["double"])): "top_rows",
}
#: The type of every stored column, whichever table it is in.
TYPES: dict[str, pa.DataType] = {name: kind for kind, names in _COLUMNS.items() for name in names.split()}
#: The columns of `provenance.parquet`: how each shard was made.
PROVENANCE = pa.schema(
    [(name, pa.string()) for name in ("suite", "revision")]
    + [("step", pa.int64()), ("tokens", pa.int64())]
    + [
        (name, pa.string())
        for name in (
            "measure",
            "key",
            "repo",
            "commit",
            "fingerprint",
            "weights",
            "dtype",
            "device",
            "bos",
            "attention",
            "started",
            "git_commit",
            "protocol",
            "versions",
        )
    ]
    + [("git_dirty", pa.bool_()), ("seconds", pa.float64()), ("flags", _LISTS["string"]), ("notes", _LISTS["string"])]
)


def write_tables(store: Store, folder: Path) -> list[Path]:
    """Write `TABLE.parquet` for each table of a run, and `provenance.parquet` with a row for each checkpoint and table.

    Raises StoreError for a run without a finished checkpoint, and for a shard that is missing or damaged.
    """
    shards: dict[str, list[pa.Table]] = {}
    for name in TABLES:
        for ref, shard in store.shards(name):
            shards.setdefault(name, []).append(_typed(_with_checkpoint(shard, ref), name))
    if not shards:
        raise StoreError(f"no checkpoint of {store.root} is measured yet; run `bindscope run` with this folder again")
    tables = {name: pa.concat_tables(parts, promote_options="default") for name, parts in shards.items()}
    tables["provenance"] = pa.Table.from_pylist(_provenance(store), PROVENANCE)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.parquet" for name in tables]
    for path, table in zip(files, tables.values(), strict=True):
        pq.write_table(table, path, compression="zstd")
    return files


def _with_checkpoint(shard: pa.Table, ref: CheckpointRef) -> pa.Table:
    for i, (name, value) in enumerate(ref.columns.items()):
        shard = shard.add_column(i, name, pa.array([value] * shard.num_rows, TYPES[name]))
    return shard


def _typed(shard: pa.Table, name: str) -> pa.Table:
    if odd := [column for column in shard.column_names if column not in TYPES]:
        raise StoreError(f"the table {name} has a column {odd[0]!r} of unknown type: another version wrote it")
    return shard.cast(pa.schema([(column, TYPES[column]) for column in shard.column_names]))


def _provenance(store: Store) -> list[dict[str, Any]]:
    rows = []
    for unit in store.read_run().units:
        for measure, key in unit.keys.items() if unit.status == "done" else ():
            made = store.provenance(unit.checkpoint, measure, key)
            row = unit.checkpoint.columns | made | made["identity"]
            row |= {"tokens": unit.checkpoint.tokens, "measure": measure, "key": key, "weights": unit.weights}
            row |= {name: json.dumps(made[name], sort_keys=True) for name in ("protocol", "versions")}
            rows.append(row | {"flags": list(unit.flags)})
    return rows
