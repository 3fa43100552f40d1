"""Finds measures: those of this package, of installed packages, of an experiment, and those that a caller passes.

built in          every file of this package that defines a `Measure`
entry points      group `bindscope.measures` of installed packages: NAME = "module:measure"
an experiment     `measures: [binding, my_module:my_measure]` in its YAML file
a call            `bs.run(..., measures=[my_measure])`
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import entry_points

from bindscope import measures as package
from bindscope.errors import BindscopeError, RequestError, UnknownName
from bindscope.measures.base import Measure
from bindscope.plugins import importable
from bindscope.schema import PROMPTS, Table

GROUP = "bindscope.measures"
#: Names of tables that no measure may have.
RESERVED = {"prompts", "binding", "provenance"}


@cache
def built_in() -> dict[str, Measure]:
    """The measures of this package by name, in the order of their files. This does not import torch."""
    by_name: dict[str, Measure] = {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, Measure) and value.function.__module__ == loaded.__name__:
                by_name[value.name] = value
    return by_name


@cache
def installed() -> tuple[dict[str, Measure], list[str]]:
    """The measures of installed packages by name, and a message for each that cannot be used."""
    by_name: dict[str, Measure] = {}
    faults: list[str] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            _add(by_name, checked(point.load(), f"the entry point {point.value}"))
        except Exception as error:  # any error of one installed package must not stop the other measures
            reason = str(error) if isinstance(error, BindscopeError) else f"{type(error).__name__}: {error}"
            faults.append(f"the measure {point.name} is left out: {' '.join(reason.split())}")
    return by_name, faults


def tables() -> list[Table]:
    """Every table that the known measures store; the table of prompts comes first."""
    return [PROMPTS, *(table for m in (built_in() | installed()[0]).values() for table in m.tables)]


def names() -> list[str]:
    """The names that `measures:` of an experiment can hold: groups first, then single measures."""
    known = built_in() | installed()[0]
    groups = dict.fromkeys(m.group for m in known.values() if m.group)
    return [*groups, *(name for name in known if name not in groups)]


def chosen(asked: Sequence[str], more: Iterable[Measure] = ()) -> tuple[dict[str, Measure], list[str]]:
    """The measures of an experiment by name, with those that they imply, and a message for each that is left out.

    asked: names of groups and measures, and `module:measure` (see `load`)
    more: measures that a caller passes
    Raises UnknownName for a name that is not known, RequestError where two measures have the same name.
    """
    outside, faults = installed()
    known = built_in() | {name: m for name, m in outside.items() if name not in built_in()}
    taken = [
        f"the measure {name} of an installed package is left out: bindscope has a measure of this name"
        for name in outside.keys() & built_in().keys()
    ]
    selected: dict[str, Measure] = {}
    for name in asked:
        if ":" in name:
            _add(selected, load(name), known)
            continue
        members = [m for m in known.values() if name in (m.name, m.group)]
        if not members:
            raise UnknownName("measure", name, names(), "(a measure of your own is written module:measure)")
        selected |= {m.name: m for m in members}
    for measure in more:
        _add(selected, checked(measure, "an entry of measures="), known)
    implied = [name for m in selected.values() for name in m.implies]
    return selected | {name: known[name] for name in implied if name not in selected}, [*faults, *taken]


def load(name: str) -> Measure:
    """Load a measure by its name.

    name: `module:measure`, or `folder/module:measure` for a file in a folder
    Raises RequestError where it cannot be imported or is not a measure.
    """
    folder, _, spec = name.rpartition("/")
    module, _, attribute = spec.partition(":")
    try:
        with importable(folder):
            value = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs the user's code, which can raise anything
        reason = f"{type(error).__name__}: {error}"
        raise RequestError(f"the measure {name} cannot be loaded: {' '.join(reason.split())}") from error
    return checked(value, name)


def checked(value: object, what: str) -> Measure:
    """The value itself, if it is a measure.

    value: what was imported or passed
    what: its name in the error
    Raises RequestError where it is not a measure.
    """
    if not isinstance(value, Measure):
        raise RequestError(
            f"{what} is a {type(value).__name__} and not a measure; decorate the function with @span_measure(...) or "
            "another decorator of docs/your-measure.md"
        )
    return value


def _add(selected: dict[str, Measure], measure: Measure, known: dict[str, Measure] | None = None) -> None:
    """Add a measure. Raises RequestError where another measure has a table with the name of one of its tables."""
    everything = (known or {}) | selected
    taken = {table.name: m for m in everything.values() for table in m.tables if m is not measure}
    for table in measure.tables:
        if table.name in taken or table.name in RESERVED:
            owner = taken[table.name].function.__module__ if table.name in taken else "bindscope"
            raise RequestError(f"the table name {table.name!r} of a measure is used by {owner}; choose another name")
    selected[measure.name] = measure
