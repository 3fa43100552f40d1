"""One virtual environment for each program: their requirements exclude one another.

    python benchmarks/peers/environments.py [--cache .bench] [NAME ...]

A name is that of a file in requirements/. An environment is made once and kept until its requirements, or the Python
that it was made with, change. Only this step uses the network.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
#: Where environments are kept.
CACHE = Path(".bench")
#: Script in this folder -> its environment; None: the one that runs this file.
CONTESTANTS = {
    "ours": None,
    "plain": None,
    "eager": None,
    "transformer_lens_2": "transformer-lens-2",
    "transformer_lens_4": "transformer-lens-4",
    "nnsight_trace": "nnsight",
    "lm_eval_mc": "lm-eval",
    "study": "transformer-lens-2",
}


def names() -> list[str]:
    return sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))


def python_of(name: str, cache: Path = CACHE) -> Path:
    """The interpreter of a peer's environment, which is made first where it is missing or out of date."""
    wanted = f"# Python {sys.version}\n{(REQUIREMENTS / f'{name}.txt').read_text()}"
    folder = cache.absolute() / name
    python, made = folder / "bin" / "python", folder / "made-from.txt"
    if made.is_file() and made.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*command, "--requirement", REQUIREMENTS / f"{name}.txt"], check=True, stdout=sys.stderr)
    made.write_text(wanted)  # last: an installation that was cut off is made again
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("names", nargs="*", default=names(), metavar="NAME", help=f"of {', '.join(names())}")
    arguments = parser.parse_args()
    for name in arguments.names:
        print(name, python_of(name, arguments.cache), flush=True)


if __name__ == "__main__":
    main()
