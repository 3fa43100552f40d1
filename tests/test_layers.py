"""The arrows of the layout: who may import whom. Read from the source, so a new file is held to them too."""

from __future__ import annotations

import ast
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
    "yamlfile": {"errors"},
    "prompts": {"errors", "records", "yamlfile"},
    "checkpoints": {"errors", "records", "yamlfile"},
    "engine": {"errors", "records", "prompts", "checkpoints", "measures"},
    "measures": {"errors", "records", "prompts", "checkpoints", "engine"},
    "store": {"errors", "records"},
    "experiment": {"errors", "records", "prompts", "yamlfile"},
    "execute": {"errors", "records", "prompts", "checkpoints", "measures", "engine", "store", "experiment"},
    "quick": {"errors", "records", "prompts", "checkpoints", "measures"},
    "stats": {"errors"},
    "charts": set(),
    "tables": {"errors", "store", "stats"},
    "claims": {"errors", "store", "stats", "tables", "charts"},
    "replicate": {"errors", "records", "prompts", "stats", "claims"},
    "report": {"errors", "records", "store", "tables", "charts", "claims"},
    "export": {"errors", "records", "prompts", "store", "experiment"},
    "monitor": {"errors", "records", "checkpoints", "measures", "engine", "store", "experiment", "execute", "tables"},
    "doctor": {"errors", "records", "checkpoints", "engine", "execute"},
    "terminal": {
        "errors",
        "records",
        "store",
        "tables",
        "charts",
        "claims",
        "checkpoints",
        "execute",
        "quick",
        "doctor",
    },
    "api": {
        "errors",
        "records",
        "prompts",
        "checkpoints",
        "store",
        "experiment",
        "execute",
        "quick",
        "tables",
        "charts",
        "claims",
        "report",
    },
}
TORCH_FREE = {
    "errors",
    "records",
    "store",
    "stats",
    "charts",
    "tables",
    "claims",
    "export",
    "replicate",
    "report",
    "experiment",
    "prompts",
    "yamlfile",
    "terminal",
    "cli",
    "__init__",
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
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    part = _part(path)
    if part == "cli":
        return
    used = {name.split(".")[1] for name in _imports(path) if name.startswith("bindscope.")}
    used &= {p.stem for p in ROOT.glob("*.py")} | {p.name for p in ROOT.iterdir() if p.is_dir()}
    assert used <= ALLOWED[part] | {part}, f"{part} imports {used - ALLOWED[part] - {part}}"


@pytest.mark.parametrize(
    "path", [p for p in _files() if _part(p) in TORCH_FREE], ids=lambda p: str(p.relative_to(ROOT))
)
def test_results_are_read_without_torch(path: Path) -> None:
    assert not {name.split(".")[0] for name in _imports(path)} & {"torch", "transformers"}


def test_one_file_knows_ray() -> None:
    assert [p.relative_to(ROOT).as_posix() for p in _files() if "ray" in _imports(p)] == ["execute/ray.py"]


def test_no_file_is_too_long() -> None:
    assert not [str(p) for p in _files() if p.read_text().count("\n") > 400]
