"""bindscope: when does a language model bind a multi-token term into one concept, and when does it know the term?

    import bindscope as bs

    found = bs.measure(model, tokenizer, ["screen reader"])   # a causal language model that you hold
    found.frame, found.heads, found.figure                    # EB*, its null; every head; the head map

Each name is loaded when it is first used: importing the package loads neither torch, transformers nor pandas.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bindscope.api import analyse, audit, figures, load, measure, pairings, read, run, terms
    from bindscope.errors import BindscopeError
    from bindscope.experiment import Experiment
    from bindscope.monitor import Monitor, watch

#: Name -> the module that it comes from.
_HOME = {
    "measure": "api",
    "pairings": "api",
    "load": "api",
    "terms": "api",
    "audit": "api",
    "Experiment": "experiment",
    "run": "api",
    "read": "api",
    "analyse": "api",
    "figures": "api",
    "Monitor": "monitor",
    "watch": "monitor",
    "BindscopeError": "errors",
}

__all__ = [
    "BindscopeError",
    "Experiment",
    "Monitor",
    "analyse",
    "audit",
    "figures",
    "load",
    "measure",
    "pairings",
    "read",
    "run",
    "terms",
    "watch",
]

__version__ = version("bindscope")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bindscope' has no attribute {name!r}; it offers {', '.join(__all__)}")
    found = globals()[name] = getattr(import_module(f"bindscope.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
