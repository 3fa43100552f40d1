"""Declares the stored tables and the meaning of each column.

A `Column` declares its name, type, unit, range, meaning and source. A measure declares the columns of its table in its
own file; this module declares the columns that tables share (checkpoint, prompt, window null). The same declarations
check the values that are stored and give the export, docs/tables.md and the data dictionary in each Parquet file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from bindscope.errors import SchemaError

Type = Literal[
    "text",
    "integer",
    "number",
    "yes/no",
    "list of text",
    "list of integers",
    "list of numbers",
    "list of lists of numbers",
]


def _items(of: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", of))


ARROW: dict[str, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "yes/no": pa.bool_(),
    "list of text": _items(pa.string()),
    "list of integers": _items(pa.int64()),
    "list of numbers": _items(pa.float64()),
    "list of lists of numbers": _items(_items(pa.float64())),
}

#: The values of a column.
Cells = Sequence[Any] | NDArray[Any]

#: Values may exceed their range by this much, since sums of float32 attention weights are rounded.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Column:
    """One column of a table.

    name: lower case, words joined by underscores
    type: see `Type`
    description: what a value means, in one line
    unit: "nats", "tokens", "share of attention"; "" where there is none
    range: smallest and largest value, None where there is no bound
    source: where the definition comes from
    missing: "" if every row has a value; else the column that gives the reason for a missing value ("reason", or
        several as in "null_reason or reason"), or the reason itself where it is always the same
    shape: shape of a list, in words: "layers", "layers x heads"
    Raises SchemaError for a name or type that is not allowed.
    """

    name: str
    type: Type
    description: str
    unit: str = ""
    range: tuple[float | None, float | None] = (None, None)
    source: str = ""
    missing: str = ""
    shape: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise SchemaError(
                f"the name of a column is {self.name!r}; use lower case letters, digits and underscores only"
            )
        if self.type not in ARROW:
            raise SchemaError(f"the column {self.name} has the type {self.type!r}; use one of: {', '.join(ARROW)}")

    @property
    def reasons(self) -> list[str]:
        """The columns that give the reason for a missing value; none where `missing` is the reason in words."""
        names = self.missing.split(" or ")
        return names if all(name.isidentifier() for name in names) else []

    @property
    def field(self) -> pa.Field:
        """The column as an Arrow field, with its meaning in the metadata."""
        low, high = self.range
        words = {
            "description": self.description,
            "unit": self.unit,
            "range": "" if self.range == (None, None) else json.dumps([low, high]),
            "source": self.source,
            "missing": self.missing,
            "shape": self.shape,
        }
        return pa.field(self.name, ARROW[self.type], metadata={k: v for k, v in words.items() if v})


@dataclass(frozen=True)
class Table:
    """One table.

    name: its name
    row: what a row is, in words
    columns: its columns, in order
    measure: name of the measure that fills it
    title: name of its leading value in figures and tables
    value: the column of that value, "" where there is none
    by_layer: the column with the leading value of every layer, "" where there is none
    Raises SchemaError for columns of the same name and for a leading value that is not a column.
    """

    name: str
    row: str
    columns: tuple[Column, ...]
    measure: str = ""
    title: str = ""
    value: str = ""
    by_layer: str = ""
    _by_name: dict[str, Column] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for column in self.columns:
            if column.name in self._by_name:
                raise SchemaError(f"the table {self.name} has two columns of the name {column.name!r}; rename one")
            self._by_name[column.name] = column
        for name in filter(None, (self.value, self.by_layer)):
            if name not in self._by_name:
                raise SchemaError(
                    f"the table {self.name} has the leading value {name!r}, which is not one of its columns; declare it"
                )

    def __getitem__(self, name: str) -> Column:
        return self._by_name[name]

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the columns."""
        return pa.schema([column.field for column in self.columns])

    def plain(self) -> dict[str, Any]:
        """The table as plain values for JSON, which each Parquet file holds in its metadata; see `table_of`."""
        rest = {name: getattr(self, name) for name in ("name", "row", "measure", "title", "value", "by_layer")}
        return rest | {"columns": [asdict(column) for column in self.columns]}

    def arrow(self, columns: Mapping[str, Cells]) -> pa.Table:
        """The values as a checked Arrow table; NaN becomes a missing value.

        columns: column -> values
        Raises SchemaError for columns that are missing or not declared, lengths that differ, a value of another type or
        outside its range, and a missing value without a reason.
        """
        if lacking := [c.name for c in self.columns if c.name not in columns]:
            raise SchemaError(f"{self.name}: the column {lacking[0]!r} is declared but has no values")
        if extra := [name for name in columns if name not in self._by_name]:
            raise SchemaError(f"{self.name}: the column {extra[0]!r} has values but is not declared")
        if len({len(columns[c.name]) for c in self.columns}) > 1:
            lengths = ", ".join(f"{c.name} {len(columns[c.name])}" for c in self.columns)
            raise SchemaError(f"{self.name}: the columns differ in length: {lengths}")
        arrays = {c.name: self._array(c, columns[c.name]) for c in self.columns}
        for c in self.columns:
            self._check_missing(c, arrays)
        return pa.table([arrays[c.name] for c in self.columns], schema=self.schema)

    def _array(self, column: Column, values: Cells) -> pa.Array:
        kind = ARROW[column.type]
        if column.type == "list of numbers" and any(v is not None and np.isnan(v).any() for v in values):
            raise SchemaError(f"{self.name}.{column.name} holds a list in which some numbers are NaN")
        try:
            if isinstance(values, np.ndarray):
                array = pa.array(values, kind, from_pandas=True)
            elif column.type == "number":
                array = pa.array([None if v is None or math.isnan(v) else float(v) for v in values], kind)
            else:
                array = pa.array(values, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            reason = " ".join(str(error).split())[:160]
            raise SchemaError(f"{self.name}.{column.name} is declared as {column.type}: {reason}") from error
        self._check_range(column, array)
        return array

    def _check_range(self, column: Column, array: pa.Array) -> None:
        low, high = column.range
        flat = array
        while pa.types.is_list(flat.type):
            flat = flat.flatten()
        if (low is None and high is None) or len(flat) == flat.null_count:
            return
        numbers = flat.drop_null().to_numpy(zero_copy_only=False)
        numbers = numbers[numbers == numbers]
        for bound, wrong in ((low, numbers < (low or 0) - _ROUNDING), (high, numbers > (high or 0) + _ROUNDING)):
            if bound is not None and wrong.any():
                raise SchemaError(
                    f"{self.name}.{column.name} holds {numbers[wrong][0]:g}, outside of its range from {low} to {high}"
                )

    def _check_missing(self, column: Column, arrays: Mapping[str, pa.Array]) -> None:
        if not arrays[column.name].null_count:
            return
        if not column.missing:
            raise SchemaError(f"{self.name}.{column.name} is missing in a row, and no reason is given")
        reasons = [arrays[name] for name in column.reasons if name in arrays]
        if not reasons:
            return
        for n, there in enumerate(arrays[column.name].is_valid().to_pylist()):
            if not there and not any(reason[n].is_valid for reason in reasons):
                raise SchemaError(
                    f"{self.name}.{column.name} is missing in row {n}, and {column.missing} does not say why"
                )


@dataclass(frozen=True)
class Measurement:
    """The results of a measure at one checkpoint.

    table: the declared table
    rows: its rows, checked by `Table.arrow`
    """

    table: Table
    rows: pa.Table

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.table.name

    def frame(self) -> pd.DataFrame:
        """The rows as a data frame."""
        frame: pd.DataFrame = self.rows.to_pandas()
        return frame


def table_of(plain: Mapping[str, Any]) -> Table:
    """The table that `Table.plain` describes."""
    columns = tuple(Column(**{**c, "range": tuple(c["range"])}) for c in plain["columns"])
    return Table(**{**plain, "columns": columns})


def markdown(tables: Iterable[Table]) -> str:
    """The tables as Markdown: a section for each table with a line for each column."""
    return "\n".join(_section(table) for table in tables)


def _section(table: Table) -> str:
    head = (
        f"### `{table.name}`\n\nOne row: {table.row}.\n\n| column | type | meaning | unit, range |\n|---|---|---|---|\n"
    )
    return head + "".join(_line(column) for column in table.columns)


def _line(column: Column) -> str:
    low, high = column.range
    limits = (
        ""
        if column.range == (None, None)
        else f"{'' if low is None else f'{low:g}'} to {'' if high is None else f'{high:g}'}"
    )
    unit = ", ".join(filter(None, (column.unit, limits.strip())))
    kind = column.type + (f" ({column.shape})" if column.shape else "")
    meaning = column.description + (f" [{column.source}]" if column.source else "")
    if column.missing:
        why = " or ".join(f"`{name}`" for name in column.reasons)
        meaning += f"; may be missing: {f'see {why}' if why else column.missing}"
    cells = (f"`{column.name}`", kind, meaning, unit)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


#: The row of the tables that the joined table `binding` consists of.
PER_PROMPT = "a prompt"
#: The measure whose null columns keep their short names in the joined table.
LEADING = "eb_star"
#: Name of the joined table, which is computed when it is read and not stored.
JOINED = "binding"

#: The first columns of a table that is read or exported: the checkpoint of each row.
CHECKPOINT = (
    Column("suite", "text", "name of the suite of checkpoints"),
    Column("revision", "text", "branch, tag or commit on the hub, or the name of the folder"),
    Column("step", "integer", "optimizer steps by then", unit="steps", missing="the step is not known"),
)

PROMPT = Column("prompt", "text", "id of the prompt, unique in a run; begins with the term")
QUESTION = Column(
    "question", "text", "id that the rotations of one question, or one opening behind all exemplars, share"
)
TERM = Column("term", "text", "the term")
KIND = Column(
    "kind", "text", "kind of the question or opening (definition, benefit, ...); number of the carrier sentence"
)
REASON = Column("reason", "text", "why the prompt has no span: absent, or one token", missing="the prompt has a span")

#: The table of prompts whose spans are measured, with the position of the term in each.
PROMPTS = Table(
    "prompts",
    "a prompt that holds the term, in the rotation that is measured first and without an exemplar in front",
    (
        PROMPT,
        QUESTION,
        TERM,
        Column("group", "text", "real for the terms, else the name of the control group"),
        Column("task", "text", "recognition, generation or carrier"),
        KIND,
        Column("n_tokens", "integer", "length of the prompt", unit="tokens", range=(1, None)),
        Column("prefix", "integer", "special tokens in front of the text", unit="tokens", range=(0, None)),
        Column("tokens", "list of text", "the text as its tokens cut it; special tokens in front by name"),
        Column(
            "k", "integer", "length of the term's first occurrence", unit="tokens", range=(2, None), missing="reason"
        ),
        Column("span", "list of integers", "token positions of the term, from 0", missing="reason"),
        Column("span_strings", "list of text", "the tokens of the term, decoded one by one", missing="reason"),
        Column(
            "occurrences", "integer", "how often the term occurs; the first occurrence is measured", range=(0, None)
        ),
        REASON,
    ),
)


def null_columns(value: Column) -> tuple[Column, ...]:
    """The columns that compare a leading value with windows of k tokens.

    The columns position_... use only windows that start in the same position bin as the term.

    value: the leading column
    """
    where = {"": "any windows of k tokens", "position_": "windows of k tokens that start about as far into the text"}
    return tuple(
        column
        for prefix, windows in where.items()
        for column in (
            Column(f"{prefix}null_n", "integer", f"number of {windows}", range=(0, None), missing="reason"),
            Column(
                f"{prefix}null_mean",
                "number",
                f"mean of {value.name} over {windows}",
                unit=value.unit,
                missing=f"{prefix}null_reason or reason",
            ),
            Column(
                f"{prefix}excess",
                "number",
                f"{value.name} less the mean over {windows}",
                unit=value.unit,
                missing=f"{prefix}null_reason or reason",
            ),
            Column(
                f"{prefix}percentile",
                "number",
                f"rank of {value.name} among {windows} and itself, (b + 1) / (n + 1)",
                range=(0, 1),
                missing=f"{prefix}null_reason or reason",
            ),
            Column(
                f"{prefix}null_reason",
                "text",
                "why there is no null",
                missing="the null is there, or the prompt has no span",
            ),
        )
    )


def joined(prompts: pd.DataFrame, parts: Iterable[tuple[Table, pd.DataFrame]]) -> pd.DataFrame:
    """The table of prompts with the columns of every table that has a row per prompt.

    The null columns of EB* keep their names. Those of other measures, and any column whose name occurs already, get the
    name of their table in front (mass_excess).

    prompts: rows of `PROMPTS`, with or without the columns of `CHECKPOINT`
    parts: tables with their rows, with or without the columns of `CHECKPOINT`
    """
    keys = [column.name for column in (*CHECKPOINT, PROMPT) if column.name in prompts]
    whole = prompts
    for table, rows in parts:
        if table.row != PER_PROMPT:
            continue
        part = rows.drop(columns=[TERM.name, REASON.name])
        null = {column.name for column in null_columns(table[table.value])} if table.value else set()
        prefixed = (null if table.name != LEADING else set()) | (set(part) & set(whole) - set(keys))
        part = part.rename(columns={name: f"{table.name}_{name}" for name in prefixed})
        if whole[keys].equals(part[keys]):
            whole = pd.concat([whole, part.drop(columns=keys)], axis=1)
        else:
            whole = whole.merge(part, on=keys, how="left", validate="one_to_one")
    return whole
