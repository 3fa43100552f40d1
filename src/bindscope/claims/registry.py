"""Collects the claims: those of this package, of installed packages, of an experiment's file, and of the caller."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import bindscope.claims as package
from bindscope.claims.base import Claim
from bindscope.plugins import importable

#: Installed packages offer claims under this group of entry points.
GROUP = "bindscope.claims"


class NoClaim(ValueError):
    """A name that should lead to a claim does not. The message says why."""


def built_in() -> list[Claim]:
    """The claims of this package: the `CLAIM` of each of its files."""
    modules = (importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__))
    return sorted((m.CLAIM for m in modules if hasattr(m, "CLAIM")), key=lambda claim: (claim.order, claim.id))


def registered(given: Iterable[Claim] = (), named: Sequence[str] = ()) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """All claims, in the order of the report page, and a line for each that cannot be loaded or whose id is taken.

    given: claim objects. named: strings "module:name", as listed under `claims:` in an experiment; see `imported`.
    """
    claims, problems = {claim.id: claim for claim in built_in()}, list[str]()
    offers: list[tuple[str, Callable[[], object]]] = [(f"entry point {e.value}", e.load) for e in _installed()]
    offers += [(spec, lambda spec=spec: imported(spec)) for spec in named]  # type: ignore[misc]
    offers += [(_called(claim), lambda claim=claim: claim) for claim in given]  # type: ignore[misc]
    for name, load in offers:
        try:
            claim = load()
        except Exception as error:  # somebody else's code: whatever it raises, the other claims are kept
            problems.append(f"claim {name} is left out: {in_a_line(error)}")
            continue
        if not isinstance(claim, Claim):
            problems.append(
                f"claim {name} is left out: it is {type(claim).__name__}, not a bindscope.claims.base.Claim"
            )
        elif claim.id in claims and claims[claim.id] != claim:
            problems.append(f"claim {name} is left out: the id {claim.id!r} is taken; give it another")
        else:
            claims[claim.id] = claim
    return tuple(sorted(claims.values(), key=lambda claim: claim.order)), tuple(problems)


def _installed() -> Iterator[EntryPoint]:
    yield from sorted(entry_points(group=GROUP), key=lambda entry: entry.value)


def _called(claim: object) -> str:
    return repr(claim.id) if isinstance(claim, Claim) else repr(claim)[:60]


def imported(spec: str) -> object:
    """The object that "module:name" names. Raises NoClaim where there is none; errors of the import pass through.

    A module that lies beside an experiment's file is named with its folder in front: "/home/me/study/mine:CLAIM".
    """
    where, _, name = spec.rpartition(":")
    folder, _, module = where.rpartition("/")
    if not module or not name:
        raise NoClaim(f"{spec!r} is not of the form module:name")
    with importable(folder):
        loaded = importlib.import_module(module)
    if folder and not _lies_in(loaded, folder):
        raise NoClaim(f"another module called {module} is loaded from {loaded.__file__}; rename the one in {folder}")
    if not hasattr(loaded, name):
        raise NoClaim(f"the module {module} has no {name}")
    return getattr(loaded, name)


def _lies_in(module: ModuleType, folder: str) -> bool:
    return module.__file__ is not None and Path(module.__file__).resolve().is_relative_to(Path(folder).resolve())


def in_a_line(error: Exception) -> str:
    """The kind and message of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
