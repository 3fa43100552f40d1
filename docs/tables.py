"""Writes what tables declare of their columns into docs/tables.md: `python docs/tables.py`."""

from bindscope.export.results import PROVENANCE
from bindscope.measures.registry import built_in
from bindscope.schema import PROMPTS, markdown


def sections() -> dict[str, str]:
    """Section -> its text: the tables of the measures that ship, and what an export adds."""
    stored = [PROMPTS, *(table for measure in built_in().values() for table in measure.tables)]
    return {"stored": markdown(stored), "exported": markdown([PROVENANCE])}


if __name__ == "__main__":
    from sections import replace

    for name, text in sections().items():
        replace("tables", name, text)
