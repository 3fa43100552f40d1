"""Which measures there are: those of this package, of installed packages, and those that a caller hands over.

built in          every file of this package that defines a `Measure`
entry points      group `bindscope.measures` of installed packages: NAME = "module:measure"
an experiment     `measures: [binding, my_module:my_measure]` in its YAML file
a call            `bs.run(..., measures=[my_measure])`
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points

from bindscope import measures as package
from bindscope.errors import BindscopeError, RequestError, UnknownName
from bindscope.measures.base import Measure
from bindscope.schema import PROMPTS, Table

GROUP = "bindscope.measures"
#: Names of tables that no measure may have.
RESERVED = {"prompts", "binding", "provenance"}


@cache
def built_in() -> dict[str, Measure]:
    """The measures that ship, by name, in the order of their files. This loads no torch."""
    found: dict[str, Measure] = {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for value in vars(loaded).values():
            if isinstance(value, Measure) and value.function.__module__ == loaded.__name__:
                found[value.name] = value
    return found


@cache
def installed() -> tuple[dict[str, Measure], list[str]]:
    """Measures of installed packages, by name, and a line for each that cannot be used."""
    found: dict[str, Measure] = {}
    faults: list[str] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            _add(found, checked(point.load(), f"the entry point {point.value}"))
        except Exception as error:  # whatever an installed package does, other measures are kept
            reason = str(error) if isinstance(error, BindscopeError) else f"{type(error).__name__}: {error}"
            faults.append(f"the measure {point.name} is left out: {' '.join(reason.split())}")
    return found, faults


def tables() -> list[Table]:
    """Every table that a run can hold, that of the prompts first."""
    return [PROMPTS, *(table for m in (built_in() | installed()[0]).values() for table in m.tables)]


def names() -> list[str]:
    """What `measures:` of an experiment may name: groups first, then single measures."""
    known = built_in() | installed()[0]
    groups = dict.fromkeys(m.group for m in known.values() if m.group)
    return [*groups, *(name for name in known if name not in groups)]


def chosen(asked: Sequence[str], more: Iterable[Measure] = ()) -> tuple[dict[str, Measure], list[str]]:
    """The measures of an experiment, by name, and a line for each that cannot be used.

    asked: groups, measures by name, and `module:measure` (see `load`); those that a measure implies come with it
    more: measures that a caller hands over
    Raises UnknownName for a name that nobody defines, RequestError where two measures have one name.
    """
    outside, faults = installed()
    known = built_in() | {name: m for name, m in outside.items() if name not in built_in()}
    faults += [
        f"the measure {name} is left out: a measure that ships has this name"
        for name in outside.keys() & built_in().keys()
    ]
    found: dict[str, Measure] = {}
    for name in asked:
        if ":" in name:
            _add(found, load(name), known)
            continue
        members = [m for m in known.values() if name in (m.name, m.group)]
        if not members:
            raise UnknownName("measure", name, names(), "(a measure of your own is written module:measure)")
        found |= {m.name: m for m in members}
    for measure in more:
        _add(found, checked(measure, "what was handed over"), known)
    implied = [name for m in found.values() for name in m.implies]
    return found | {name: known[name] for name in implied if name not in found}, faults


def load(name: str) -> Measure:
    """The measure that `module:measure` names; `folder/module:measure` where its file lies in a folder.

    Raises RequestError where there is none.
    """
    folder, _, spec = name.rpartition("/")
    module, _, attribute = spec.partition(":")
    try:
        with _importable(folder):
            found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing runs somebody's code: whatever it raises is one line
        reason = f"{type(error).__name__}: {error}"
        raise RequestError(f"the measure {name} cannot be loaded: {' '.join(reason.split())}") from error
    return checked(found, name)


@contextmanager
def _importable(folder: str) -> Iterator[None]:
    """Within this block modules of the folder can be imported; of none where it is empty."""
    if not folder:
        yield
        return
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


def checked(value: object, what: str) -> Measure:
    """The value, if it is a measure. Raises RequestError where it is not."""
    if not isinstance(value, Measure):
        raise RequestError(
            f"{what} is a {type(value).__name__} and not a measure; decorate the function with @span_measure(...) or "
            "its like, see docs/your-measure.md"
        )
    return value


def _add(found: dict[str, Measure], measure: Measure, known: dict[str, Measure] | None = None) -> None:
    """Raises RequestError where another measure, or one of its tables, has the name already."""
    everything = (known or {}) | found
    taken = {table.name: m for m in everything.values() for table in m.tables if m is not measure}
    for table in measure.tables:
        if table.name in taken or table.name in RESERVED:
            owner = taken[table.name].function.__module__ if table.name in taken else "bindscope"
            raise RequestError(f"the name {table.name!r} of a measure is taken by {owner}; choose another")
    found[measure.name] = measure
