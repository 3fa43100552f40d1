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
    from bindscope.errors import BindscopeError
    from bindscope.library import analyse, audit, figures, load, measure, read, run, terms
    from bindscope.monitor import Monitor, watch
    from bindscope.study import Study

#: Name -> the module that it comes from.
_HOME = {
    "measure": "library",
    "load": "library",
    "terms": "library",
    "audit": "library",
    "Study": "study",
    "run": "library",
    "read": "library",
    "analyse": "library",
    "figures": "library",
    "Monitor": "monitor",
    "watch": "monitor",
    "BindscopeError": "errors",
}

__all__ = [
    "BindscopeError",
    "Monitor",
    "Study",
    "analyse",
    "audit",
    "figures",
    "load",
    "measure",
    "read",
    "run",
    "terms",
    "watch",
]

__version__ = version("bindscope")

# Two of the names belong to packages too. The first import of a package makes it an attribute of this one, in place of
# the function: so that happens here, where it costs nothing (both are empty), and the names are taken back.
for _name in ("measure", "terms"):
    import_module(f"bindscope.{_name}")
    del globals()[_name]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bindscope' has no attribute {name!r}; it offers {', '.join(__all__)}")
    found = globals()[name] = getattr(import_module(f"bindscope.{_HOME[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"_name"})
