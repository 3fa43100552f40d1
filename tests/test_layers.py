"""The arrows of the layout: who may import whom. Read from the source, so a new file is held to them too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bindscope

ROOT = Path(bindscope.__file__).parent

#: part -> parts it may import (itself always). A part is a subpackage or a file of the package.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "records": {"errors"},
    "schema": {"errors"},
    "yamlfile": {"errors"},
    "prompts": {"errors", "records", "yamlfile"},
    "checkpoints": {"errors", "records", "yamlfile"},
    "plugins": set(),
    "store": {"errors", "records", "schema"},
    "experiment": {"errors", "records", "prompts", "yamlfile"},
    "stats": {"errors"},
    "charts": set(),
    "engine": {"errors", "records", "prompts", "checkpoints"},
    "measures": {"errors", "records", "schema", "plugins", "prompts", "engine"},
    "execute": {
        *("errors", "records", "schema", "prompts", "checkpoints", "store", "experiment", "engine", "measures")
    },
    "quick": {"errors", "records", "schema", "prompts", "checkpoints", "engine", "measures", "execute"},
    "recombined": {"errors", "records", "prompts", "checkpoints", "engine", "measures", "stats"},
    "measured": {"errors", "records", "charts"},
    "tables": {"errors", "schema", "store", "stats"},
    "claims": {"errors", "plugins", "store", "stats", "tables", "charts"},
    "replicate": {"errors", "records", "prompts", "stats", "claims"},
    "report": {"errors", "records", "schema", "store", "tables", "charts", "claims"},
    "export": {"errors", "records", "schema", "prompts", "store", "experiment"},
    "monitor": {
        *("errors", "records", "checkpoints", "store", "experiment", "engine", "measures", "execute", "tables")
    },
    "doctor": {"errors", "records", "checkpoints", "engine", "execute"},
    "terminal": {"errors", "records", "checkpoints", "charts", "tables"},
    "api": {
        *("errors", "records", "prompts", "checkpoints", "store", "experiment", "measures", "execute", "quick"),
        *("recombined", "measured", "tables", "claims", "report"),
    },
    "cli": {
        *("errors", "records", "schema", "prompts", "checkpoints", "store", "experiment", "measures", "execute"),
        *("quick", "tables", "claims", "report", "replicate", "export", "doctor", "terminal"),
    },
}
#: Parts that only read results or declare things: they load neither torch nor transformers.
TORCH_FREE = {
    *(
        "errors",
        "records",
        "schema",
        "yamlfile",
        "plugins",
        "prompts",
        "store",
        "experiment",
        "stats",
        "charts",
        "measures",
    ),
    *("measured", "tables", "claims", "replicate", "report", "export", "terminal", "cli", "api", "__init__"),
}


def _files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def _part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path, typing_too: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    hidden = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for n in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden and not typing_too:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if _is_module(name)}
            found |= names | ({node.module} if names - submodules else set())
    return found


def _is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    part = _part(path)
    used = {name.split(".")[1] for name in _imports(path) if name.startswith("bindscope.")}
    used &= {p.stem for p in ROOT.glob("*.py")} | {p.name for p in ROOT.iterdir() if p.is_dir()}
    assert used <= ALLOWED[part] | {part}, f"{part} imports {used - ALLOWED[part] - {part}}"


@pytest.mark.parametrize(
    "path", [p for p in _files() if _part(p) in TORCH_FREE - {"api"}], ids=lambda p: str(p.relative_to(ROOT))
)
def test_results_are_read_without_torch(path: Path) -> None:
    assert not {name.split(".")[0] for name in _imports(path)} & {"torch", "transformers"}


def test_one_file_knows_ray() -> None:
    assert [p.relative_to(ROOT).as_posix() for p in _files() if "ray" in _imports(p)] == ["execute/ray.py"]


def test_no_file_is_too_long() -> None:
    assert not [str(p) for p in _files() if p.read_text().count("\n") > 400]


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


def test_no_circles() -> None:
    """No file imports itself through others, inside packages either; imports inside functions count."""
    modules = {_module(path): path for path in _files()}
    graph = {name: _imports(path) & modules.keys() - {name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*above, name))
        done.add(name)

    for name in graph:
        visit(name, ())
    assert len(done) > 100


def test_declarations_load_no_torch() -> None:
    """What is imported in passing counts too."""
    parts = sorted(TORCH_FREE - {"__init__"})
    code = f"import importlib, sys; [importlib.import_module('bindscope.' + p) for p in {parts}]; "
    code += "from bindscope.measures import registry; registry.built_in(); "
    code += "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_constructors_name_their_arguments() -> None:
    """Nobody has to count the places of more than four arguments."""
    long = []
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and len(node.args) > 4:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                starred = any(isinstance(a, ast.Starred) for a in node.args)
                if name[:1].isupper() and not starred and name != "Bars":  # rich takes its columns so
                    long.append(f"{path}:{node.lineno} {name}")
    assert not long


def test_lines_are_not_packed() -> None:
    assert not [str(p) for p in _files() if "fmt: skip" in p.read_text()]


def test_no_package_hides_a_public_name() -> None:
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")} | {p.stem for p in ROOT.glob("*.py")}
    assert not packages & set(bindscope.__all__)
