"""Writes the section "catalogue" of docs/checkpoints.md from data/suites.yaml: `python docs/catalogue.py`."""

from collections.abc import Iterator

from bindscope.checkpoints.suites import Suite, catalogued
from bindscope.terminal.catalogue import short

COLUMNS = ("suite and its weights", "parameters", "BOS", "licence", "checkpoints")


def tables() -> str:
    """The suites, then what is known of them, as Markdown."""
    suites = catalogued()
    parts = [_table(COLUMNS, [_row(suite) for suite in suites])]
    for title, column in (("Known faults", "faults"), ("Attention", "attention"), ("Notes", "note")):
        names_by_text: dict[str, list[str]] = {}
        for suite in suites:
            if suite.entry and (text := getattr(suite.entry, column)):
                names_by_text.setdefault(text, []).append(f"`{suite.name}`")
        rows = [(", ".join(names), _escaped(text)) for text, names in names_by_text.items()]
        parts.append(f"### {title}\n\n{_table(('suites', title.lower()), rows)}")
    return "\n".join(parts)


def _row(suite: Suite) -> tuple[str, ...]:
    row = suite.entry
    assert row is not None
    return (
        f"`{suite.name}`<br>{_place(row.repo)}",
        f"{short(row.parameters)}, {row.dtype}" if row.dtype else short(row.parameters),
        {"default": "the tokenizer's"}.get(row.bos, row.bos),
        row.licence or "?",
        "; ".join(_checkpoints(suite)),
    )


def _checkpoints(suite: Suite) -> Iterator[str]:
    """How many, and from which step and token count to which."""
    yield str(len(suite.checkpoints) or 1)  # a suite in a Python package is one file, installed here or not
    steps = [ref.step for ref in suite.checkpoints if ref.step is not None]
    tokens = [ref.tokens for ref in suite.checkpoints if ref.tokens is not None]
    if len(steps) > 1:
        yield f"steps {steps[0]:,} to {steps[-1]:,}"
    if len(tokens) > 1:
        yield f"{short(tokens[0])} to {short(tokens[-1])} tokens"


def _place(repo: str) -> str:
    kind, _, place = repo.partition(":")
    if kind == "package":
        return "in this package"
    return f"PyPI, `{place.split('/')[0]}`" if kind == "gguf" else f"`{repo}`"


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


if __name__ == "__main__":
    from sections import replace

    replace("checkpoints", "catalogue", tables())
