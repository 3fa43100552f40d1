"""Chooses the wrong answers of a term file: rewrites its `wrong_from` lines in place.

    python recipes/terms/assign.py src/bindscope/data/terms/accessibility.yaml a11y-41

Within a kind of question every answer of the set (of all terms where none is named) is right once and wrong three
times, so a guesser who looks only at the choices cannot beat chance. Terms outside the set take their wrong answers
from it. An answer is never offered to a term that is `near`, nor where it holds a word of the term (the right answer
never does). Seeds are tried until neither the longest nor the shortest choice is right too often or too seldom (two-
sided binomial p > 0.2).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import yaml
from scipy.stats import binomtest

WRONG = 3
Terms = list[dict[str, Any]]


def forbidden(terms: Terms, kind: str) -> list[set[int]]:
    """Per term, the terms whose answer of this kind it cannot be offered: itself, its near ones, shared words."""
    answers = [next(q["answer"] for q in term["recognition"] if q["kind"] == kind) for term in terms]
    out = []
    for i, term in enumerate(terms):
        words = {w for form in (term["name"], *term.get("aliases", [])) for w in form.split()}
        near = set(term.get("near", []))
        out.append({
            j
            for j, other in enumerate(terms)
            if j == i or other["name"] in near or words & set(re.findall(r"\w+", answers[j].lower()))
        })  # fmt: skip
    return out


def permutation(barred: list[set[int]], rng: Random) -> list[int]:
    """An assignment j = p[i], each j once, none barred: augmenting paths in random order."""
    n = len(barred)
    owner: dict[int, int] = {}

    def place(i: int, seen: set[int]) -> bool:
        options = [j for j in range(n) if j not in barred[i] and j not in seen]
        rng.shuffle(options)
        for j in options:
            seen.add(j)
            if j not in owner or place(owner[j], seen):
                owner[j] = i
                return True
        return False

    for i in rng.sample(range(n), n):
        if not place(i, set()):
            raise SystemExit("no assignment exists: too many terms are near each other")
    return [j for _, j in sorted((i, j) for j, i in owner.items())]


def assign(terms: Terms, members: set[str], kinds: list[str], seed: int) -> dict[tuple[int, str], list[str]]:
    """(term, kind) -> names of the terms whose answers are the wrong choices."""
    rng, out = Random(seed), {}
    for kind in kinds:
        barred = forbidden(terms, kind)
        inside = [i for i, term in enumerate(terms) if term["name"] in members]
        local = [{inside.index(j) for j in barred[i] if j in inside} for i in inside]
        for _ in range(WRONG):
            for i, j in enumerate(permutation(local, rng)):
                out.setdefault((inside[i], kind), []).append(terms[inside[j]]["name"])
                local[i] = local[i] | {j}
        for i in set(range(len(terms))) - set(inside):
            free = [terms[j]["name"] for j in inside if j not in barred[i]]
            out[i, kind] = rng.sample(free, WRONG)
    return out


def gives_away(terms: Terms, chosen: dict[tuple[int, str], list[str]]) -> bool:
    """Whether the longest or the shortest choice is right too often or too seldom."""
    answer = {(t["name"], q["kind"]): q["answer"] for t in terms for q in t["recognition"]}
    for pick in (max, min):
        hits = 0.0
        for (i, kind), names in chosen.items():
            lengths = [len(answer[name, kind]) for name in (terms[i]["name"], *names)]
            hits += (lengths[0] == pick(lengths)) / lengths.count(lengths[0])
        if binomtest(round(hits), len(chosen), 1 / (WRONG + 1)).pvalue <= 0.2:
            return True
    return False


def main(path: Path, name: str | None) -> None:
    text = path.read_text(encoding="utf-8")
    file = yaml.safe_load(text)
    terms = [t for t in file["terms"] if t.get("recognition")]
    members = set(file["sets"][name]) if name else {t["name"] for t in terms}
    kinds = [q["kind"] for q in terms[0]["recognition"]]
    seed = 0
    while gives_away(terms, chosen := assign(terms, members, kinds, seed)):
        seed += 1
    order = iter([sorted(chosen[i, q["kind"]]) for i, t in enumerate(terms) for q in t["recognition"]])
    path.write_text(re.sub(r"wrong_from: \[.*\]", lambda _: f"wrong_from: [{', '.join(next(order))}]", text), "utf-8")
    print(f"{path}: {len(chosen)} questions, seed {seed}")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
