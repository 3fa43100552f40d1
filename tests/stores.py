"""Invented results folders: random but plausible numbers, written through the store as a run writes them."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bindscope.claims.analysis import Analysis, analyse
from bindscope.measures import registry
from bindscope.records import CheckpointRef, Identity, Protocol, Provenance
from bindscope.schema import PER_PROMPT, PROMPTS, Measurement
from bindscope.store import RunFile, Store, Unit
from bindscope.tables.run import RunTables

KINDS = ("definition", "benefit", "implementation", "failure", "audit")
OPENINGS = (*KINDS, "tutorial")
WORDS = (
    *("the", "page", "screen", "reader", "text", "button", "that", "speech", "image", "form", "label", "read", "aloud"),
    *("by", "with", "keyboard", "focus", "contrast", "heading", "region", "order", "link", "user", "hears", "through"),
)


def analysed(store: Store) -> Analysis:
    """Every claim of a results folder."""
    return analyse(RunTables(store))


class Given(RunTables):
    """Tables that a test made by hand. observed: suite -> observations; others: by the name of the property."""

    def __init__(self, observed: dict[str, pd.DataFrame], **others: pd.DataFrame) -> None:
        self.observed = observed
        self.carriers = self.gains = self.effects = pd.DataFrame()
        vars(self).update(others)

    def stored(self, name: str) -> pd.DataFrame:
        """A row for the tables that every run holds, none of others."""
        return pd.DataFrame({"suite": list(self.observed)}) if name in ("binding", "recognition") else pd.DataFrame()


def _fixed(name: str) -> np.random.Generator:
    """The same draws for one name in every checkpoint: texts are the study's, not the model's."""
    return np.random.default_rng(zlib.crc32(name.encode()))


class Invention:
    """Writes one results folder. mark: a text put into every field that holds one."""

    def __init__(
        self,
        folder: Path,
        *,
        suites: int = 1,
        steps: int = 3,
        terms: int = 6,
        layers: int = 3,
        heads: int = 4,
        mark: str = "",
        seed: int = 0,
        sets: int = 19,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.mark, self.layers, self.heads, self.sets = mark, layers, heads, sets
        self.terms = [f"term {i}{mark}" for i in range(terms)]
        self.store = Store(folder)
        units = []
        for s in range(suites):
            for t in range(steps):
                ref = CheckpointRef(f"model-{s}{mark}", f"org/model-{s}", f"step{1000 * t}{mark}", 1000 * t)
                units.append(self._unit(ref, t / max(1, steps - 1), t == steps - 1))
        self.store.write_run(RunFile(self._study(units), tuple(units)))

    def _study(self, units: list[Unit]) -> dict[str, Any]:
        return {
            "name": f"invented{self.mark}",
            "about": f"about{self.mark}",
            "terms": [f"set{self.mark}"],
            "prompts": None,
            "suites": list(dict.fromkeys(u.checkpoint.suite for u in units)),
            "controls": [f"group{self.mark}"],
            "measures": ["binding", "recognition", "generation", "few_shot", "ablation"],
            "protocol": "controlled",
        }

    def _unit(self, ref: CheckpointRef, at: float, final: bool) -> Unit:
        self.at = at
        made = {
            "previous_token": self._heads(),
            "recognition": self._recognition(),
            "generation": self._written(("zero",)),
            "few_shot": self._written(("exemplar", "paraphrase", "mismatched")),
        }
        if final:
            made |= {"ablation": self._ablation(), "ablation_sets": self._sets()}
        note = f"note{self.mark}"
        provenance = Provenance(
            {"bindscope": "0"},
            None,
            None,
            "cpu",
            "float32",
            "on",
            f"bindscope{self.mark}",
            Identity(ref.repo, f"commit{self.mark}", "0123456789abcdef0123"),
            ref,
            Protocol(),
            "2026-01-01",
            1.0,
            (f"self-check: fine{self.mark}", note),
        )
        tables = {table.name: table for table in registry.tables()}
        binding = self._binding()
        for name, table in tables.items():
            if table.row == PER_PROMPT or table is PROMPTS:
                made[name] = [{c.name: row[c.name] for c in table.columns} for row in binding]
        for name, rows in made.items():
            columns = {key: [row[key] for row in rows] for key in rows[0]}
            result = Measurement(tables[name], tables[name].arrow(columns))
            self.store.write(ref, f"key of {name}", result, provenance)
        return Unit(ref, "done", {name: f"key of {name}" for name in made})

    def _prompts(self) -> list[tuple[str, str, str, str, str]]:
        """prompt, term, group, task, kind"""
        out = []
        for term in self.terms:
            out += [(f"{term}/r/{kind}/0", term, "real", "recognition", f"{kind}{self.mark}") for kind in KINDS]
            out += [(f"{term}/g/{kind}", term, "real", "generation", f"{kind}{self.mark}") for kind in OPENINGS]
            out += [(f"{term}/c/{i}", term, "real", "carrier", f"carrier {i}{self.mark}") for i in range(3)]
        for i in range(len(self.terms)):
            name = f"control {i}{self.mark}"
            out += [(f"{name}/{j}", name, f"group{self.mark}", "carrier", f"carrier {j}{self.mark}") for j in range(3)]
        return out

    def _binding(self) -> list[dict[str, Any]]:
        return [self._bound(*prompt) for prompt in self._prompts()]

    def _bound(self, prompt: str, term: str, group: str, task: str, kind: str) -> dict[str, Any]:
        k = 2 + (sum(map(ord, term)) % 2)
        start, n = 6, 30
        words = [f" {w}" for w in _fixed(prompt).choice(WORDS, n)]
        tokens = ["<s>", *words[: start - 1], *[f" {term}{self.mark}" for _ in range(k)], *words[start - 1 :]]
        bsi = self.rng.beta(1, 6, (self.layers, self.heads)) * (0.1 + self.at)
        eb = bsi.max(1) - bsi.mean(1)
        star, null = float(eb.max()), float(0.6 * eb.max() + 0.05 * self.rng.random())
        top = np.argsort(-bsi.ravel())[:5]
        rows = self.rng.dirichlet(np.full(start + k, 0.3), len(top))
        return {
            "prompt": prompt,
            "question": prompt.removesuffix("/0"),
            "term": term,
            "group": group,
            "task": task,
            "kind": kind,
            "n_tokens": len(tokens),
            "prefix": 1,
            "tokens": tokens,
            "k": k,
            "span": list(range(start, start + k)),
            "span_strings": tokens[start : start + k],
            "occurrences": 1,
            "reason": None,
            "eb_star": star,
            "eb_per_layer": eb.tolist(),
            "best_layer": int(eb.argmax()),
            "best_head": 0,
            "entropy": 1.0,
            "eb_star_mass": star,
            "adjacent_bsi": 0.1,
            "first_bsi": 0.1,
            "sink_mass": 0.1,
            "bsi_sinkless": 0.1,
            "sinkless_reason": None,
            "uniform_baseline": 0.1,
            "eb_star_value": star,
            "null_n": 99,
            "null_mean": null,
            "excess": star - null,
            "percentile": 0.8,
            "null_reason": None,
            "position_null_n": 40,
            "position_null_mean": null,
            "position_excess": star - null,
            "position_percentile": 0.8,
            "position_null_reason": None,
            "bsi_pts_r": 0.1,
            "best_head_is_pts": False,
            "bsi": bsi.ravel(),
            "null_bsi": 0.5 * bsi.ravel(),
            "mass": bsi.ravel(),
            "sink": bsi.ravel(),
            "value_bsi": bsi.ravel(),
            "top_bsi": float(bsi.max()),
            "top_heads": top.tolist(),
            "top_rows": rows.tolist(),
        }

    def _heads(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer, "head": head, "previous_token_score": float(self.rng.random())}
            for layer in range(self.layers)
            for head in range(self.heads)
        ]

    def _recognition(self) -> list[dict[str, Any]]:
        out = []
        for term in self.terms:
            for kind in KINDS:
                texts = _fixed(f"{term} {kind}").choice(WORDS, (4, 6))
                options = [f"{' '.join(text)}{self.mark} {i}" for i, text in enumerate(texts)]
                for rotation in range(4):
                    gold = rotation
                    scores = self.rng.normal(-2, 0.4, 4)
                    scores[gold] += 1.5 * self.at
                    margin = float(scores[gold] - np.delete(scores, gold).max())
                    row: dict[str, Any] = {
                        "prompt": f"{term}/r/{kind}/{rotation}",
                        "question": f"{term}/r/{kind}",
                        "term": term,
                        "kind": f"{kind}{self.mark}",
                        "format": "listed",
                        "rotation": rotation,
                        "gold": gold,
                        "choices": options[-rotation:] + options[:-rotation] if rotation else options,
                        "logprob": np.minimum(8 * scores, -0.1).tolist(),
                        "choice_tokens": [8] * 4,
                        "choice_bytes": [40] * 4,
                        "unconditional": [-20.0] * 4,
                    }
                    for name in ("per_token", "raw", "per_byte", "pmi"):
                        row |= {
                            f"predicted_{name}": int(scores.argmax()),
                            f"correct_{name}": margin > 0,
                            f"margin_{name}": margin,
                        }
                    out.append(row)
        return out

    def _written(self, shots: tuple[str, ...]) -> list[dict[str, Any]]:
        return [
            {
                "prompt": f"{term}/g/{kind}/{shot}",
                "question": f"{term}/g/{kind}",
                "term": term,
                "kind": f"{kind}{self.mark}",
                "shot": shot,
                "exemplar_term": None if shot == "zero" else term,
                "temperature": 0.0,
                "seed": None,
                "text": f"{' '.join(self.rng.choice(WORDS, 18))} keyword{self.mark}",
                "new_tokens": 20,
                "ended": False,
                "decoded_alone": False,
                "score": float(self.rng.choice([0, 1 / 3, 2 / 3])),
                "matched": [f"keyword{self.mark}"],
                "contradicted": [f"wrong{self.mark}"] if self.mark else [],
                "copied": [f"keyword{self.mark}"] if shot != "zero" else [],
            }
            for term in self.terms
            for kind in OPENINGS
            for shot in shots
        ]

    def _ablation(self) -> list[dict[str, Any]]:
        conditions = [("baseline", 0, 0), *((name, k, 0) for k in (2, 4) for name in ("top", "bottom"))]
        conditions += [("random", k, draw) for k in (2, 4) for draw in range(self.sets)]
        return [
            {
                "mode": None if name == "baseline" else "zero",
                "ranking": None if name == "baseline" else "bsi",
                "set": name,
                "k": k,
                "draw": draw,
                "prompt": f"{term}/r/{KINDS[0]}/0",
                "question": f"{term}/r/{KINDS[0]}",
                "term": term,
                "task": "recognition",
                "score": float(self.rng.random() < (0.8 if name != "top" else 0.5)),
                "margin": float(self.rng.normal(0.5, 0.3)),
            }
            for name, k, draw in conditions
            for term in self.terms
        ]

    def _sets(self) -> list[dict[str, Any]]:
        rows = [("baseline", 0, 0), *((n, k, 0) for k in (2, 4) for n in ("top", "bottom"))]
        rows += [("random", k, draw) for k in (2, 4) for draw in range(self.sets)]
        return [
            {
                "mode": None if n == "baseline" else "zero",
                "ranking": None if n == "baseline" else "bsi",
                "set": n,
                "k": k,
                "draw": draw,
                "heads": ["0.0"],
                "neutral_loss": 3.0,
            }
            for n, k, draw in rows
        ]
