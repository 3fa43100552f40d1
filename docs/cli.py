"""Writes docs/cli.md from what every command prints for --help: `python docs/cli.py`.

The text is taken from the real command line, 80 characters wide.
"""

import os
import subprocess
import sys
from pathlib import Path

from typer.main import get_command

from bindscope.cli import app

HEAD = """\
# Commands

What each command prints for `--help`. Written by `python docs/cli.py`.

Exit codes: 0 done; 1 something is incomplete, and everything that was finished is kept; 2 the request is wrong, with
one line on stderr that says what to change. Nothing is printed to stdout but results, so every `--json` can be piped.
"""


def commands() -> list[str]:
    """Names in the order of the overview."""
    group = get_command(app)
    return list(group.commands)


def shown(*words: str) -> str:
    """What `bindscope WORDS --help` prints."""
    env = os.environ | {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    run = [sys.executable, "-c", "import sys; from bindscope.cli import main; sys.argv[0] = 'bindscope'; main()"]
    return subprocess.run([*run, *words, "--help"], env=env, check=True, capture_output=True, text=True).stdout


def page() -> str:
    parts = [HEAD, f"```text\n{shown().strip()}\n```\n"]
    for name in commands():
        parts.append(f"## bindscope {name}\n\n```text\n{shown(name).strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page(), encoding="utf-8")
