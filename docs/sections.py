"""Replaces one generated section of a page; the words around it are written by hand and stay.

    python tests/parity.py | python docs/sections.py performance parity

A section lies between the lines `<!-- begin NAME: how it is made -->` and `<!-- end NAME -->`.
"""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- begin {re.escape(name)}(?:: [^\n]*)? -->\n)(.*?)(<!-- end {re.escape(name)} -->)", re.S)


def section(page: str, name: str) -> str:
    """The generated text of section `name` in docs/`page`.md. Raises ValueError where there is none."""
    match = _pattern(name).search((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    if match is None:
        raise ValueError(f"docs/{page}.md has no section {name!r}; write <!-- begin {name} --> and <!-- end {name} -->")
    return match[2].strip()


def replace(page: str, name: str, text: str) -> None:
    """Writes `text` into section `name` of docs/`page`.md. Raises ValueError where there is none."""
    section(page, name)
    path = DOCS / f"{page}.md"
    before = path.read_text(encoding="utf-8")
    after = _pattern(name).sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[3]}", before)
    path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    replace(*sys.argv[1:3], sys.stdin.read())
