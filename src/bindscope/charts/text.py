"""Formats numbers and names for people: missing values are named, and control characters are shown as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

#: Control characters and those that change the direction of text, which could hide or reorder the text after them.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def plain(text: str) -> str:
    """The text with control characters written out (U+202E); new lines and tabs are kept."""
    return _CONTROL.sub(lambda match: f"\u27e8U+{ord(match[0]):04X}\u27e9", text)


def line(text: str) -> str:
    """`plain`, on one line."""
    return " ".join(plain(text).split())


def number(value: float | None, digits: int = 3) -> str:
    """A number with a fixed number of decimals; "not available" where it is missing."""
    if value is None or pd.isna(value):
        return "not available"
    text = f"{value:.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "\u2212")


def span(low: Any, high: Any, digits: int = 3) -> str:
    """An interval in brackets; "" where it is missing."""
    return "" if low is None or pd.isna(low) else f"[{number(low, digits)},\u00a0{number(high, digits)}]"


def interval_of(row: Mapping[Any, Any], name: str, digits: int = 3) -> str:
    """The value of a column with its interval, from the columns NAME, NAME_low and NAME_high."""
    if name not in row or pd.isna(row[name]):
        return number(None)
    return f"{number(row[name], digits)} {span(row.get(f'{name}_low'), row.get(f'{name}_high'), digits)}".strip()


def chance(p: float | None) -> str:
    """A p value: "p < 0.001" or with three digits; "" where it is missing."""
    if p is None or pd.isna(p):
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def place(row: Mapping[Any, Any]) -> str:
    """A checkpoint by its step, or by its revision where the step is not known."""
    return line(str(row["revision"])) if pd.isna(row["step"]) else f"{int(row['step']):,}"


def at(row: Mapping[Any, Any]) -> str:
    """`place` in a sentence: step 6,000, or the revision."""
    return place(row) if pd.isna(row["step"]) else f"step {place(row)}"


def count(n: int, noun: str) -> str:
    """A number with its noun: 1 term, 2 terms."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
