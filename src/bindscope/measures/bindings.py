"""Collects the binding of every prompt as forward passes deliver it, and sets it against the null windows at the end.

A band is read and let go, so memory does not grow with the number of prompts beyond the rows of the tables.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bindscope.checkpoints.load import Loaded
from bindscope.engine.forward import Reading
from bindscope.engine.prepare import Item
from bindscope.measures import binding as b
from bindscope.prompts.spans import find, tokens_of
from bindscope.records import Measurement

#: How many of the heads with the highest BSI keep the attention row of the term's last token.
_TOP = 5
#: Pools of null windows are told apart by k and by whether the text is a carrier sentence.
_Pool = tuple[int, bool]


@dataclass
class _Windows:
    """Null windows of one pool, a chunk per prompt; bsi (L, H): the sum of every head's BSI over all of them."""

    prompts: list[str] = field(default_factory=list)
    chunks: list[b.Windows] = field(default_factory=list)
    bsi: Any = 0.0


class Bindings:
    """Feed `add` every measured prompt, then take `tables`."""

    def __init__(self, loaded: Loaded, ks: Sequence[int]) -> None:
        """ks: the token counts for which null windows are wanted."""
        self._tokenizer, self._ks = loaded.tokenizer, ks
        added = loaded.tokenizer.added_tokens_decoder.items()
        self._special = {*loaded.tokenizer.all_special_ids, *(i for i, token in added if token.special)}
        self._null: dict[_Pool, _Windows] = defaultdict(_Windows)
        self._seen: set[tuple[int, bool, bytes]] = set()
        self._rows: list[dict[str, Any]] = []
        self._words: dict[str, str] = {}

    def add(self, place: int, item: Item, reading: Reading) -> None:
        """One prompt that binds, and what was read of it; `place` orders the rows of the table."""
        row = {"place": place, "carrier": item.prompt.task == "carrier"} | self._identity(item)
        if item.span is not None and reading.band is not None:
            row |= _measured(
                b.head_values(reading.band, item.span.tokens[0], item.span.k), item.span.tokens[0], item.span.k
            )
        if reading.last is not None:
            top = np.argsort(-row["bsi"], kind="stable")[:_TOP]
            last = reading.last.reshape(-1, reading.last.shape[-1])
            row |= {"top_heads": top.tolist(), "top_rows": [last[i].tolist() for i in top]}
        if reading.valued is not None:
            row |= {"eb_star_value": float(b.eb(reading.valued).max()), "value_bsi": reading.valued.ravel()}
        self._rows.append(row)
        if reading.band is not None:
            self._windows(item, reading.band)

    def _identity(self, item: Item) -> dict[str, Any]:
        span, prompt = item.span, item.prompt
        return {
            "prompt": prompt.id,
            "question": prompt.shared,
            "term": prompt.term,
            "group": prompt.group,
            "task": prompt.task,
            "kind": prompt.kind,
            "n_tokens": len(item.encoded.ids),
            "prefix": item.encoded.prefix,
            "tokens": self._pieces(item),
            "k": span.k if span else None,
            "span": list(span.tokens) if span else None,
            "span_strings": [self._tokenizer.decode([item.encoded.ids[i]]) for i in span.tokens] if span else None,
            "occurrences": span.occurrences if span else len(find(prompt.text, prompt.term, prompt.aliases)),
            "reason": item.reason,
        }

    def _pieces(self, item: Item) -> list[str]:
        """The text as its tokens cut it, special tokens in front by name. A letter of several tokens is the last's."""
        code, end, out = item.encoded, 0, list[str]()
        for _, stop in code.offsets[code.prefix :]:
            piece = code.text[end : max(end, stop)]
            out.append(self._words.setdefault(piece, piece))  # one string for all prompts that hold it
            end = max(end, stop)
        return [self._tokenizer.decode([i]) for i in code.ids[: code.prefix]] + out

    def _windows(self, item: Item, band: b.Band) -> None:
        """Null windows of the prompt; texts that begin alike give equal numbers as far as they agree: counted once."""
        prompt, carrier = item.prompt, item.prompt.task == "carrier"
        mine = [
            t for chars in find(prompt.text, prompt.term, prompt.aliases) for t in tokens_of(item.encoded, chars)
        ]  # fmt: skip
        marks = [i for i, t in enumerate(item.encoded.ids) if t in self._special or i < item.encoded.prefix]
        prefixes = _prefix_digests(item.encoded.ids)
        for k in self._ks:
            starts = b.window_starts(len(item.encoded.ids), k, [*mine, *marks])
            names = [(k, carrier, prefixes[s + k - 1]) for s in starts]
            fresh = np.array([name not in self._seen for name in names], dtype=bool)
            self._seen.update(names)
            if fresh.any():
                pool, w = self._null[k, carrier], b.windows(band, k, starts[fresh])
                pool.prompts.append(prompt.id)
                pool.chunks.append(w)
                pool.bsi = pool.bsi + w.bsi

    def tables(self, pts: b.Array, least: int) -> tuple[Measurement, Measurement]:
        """The tables `binding` and `windows`. pts: previous-token scores (L, H); least: windows a null must have."""
        samples = _samples(self._null)
        heads = {pool: w.bsi / sum(len(c.starts) for c in w.chunks) for pool, w in self._null.items()}
        rows = sorted(self._rows, key=lambda row: row["place"])
        for row in rows:
            row |= _against(row, samples, pts, least)
            if row.get("null_mean") is not None:
                row["null_bsi"] = heads[row["k"], row["carrier"]].ravel()
        names = [name for name in (*_IDENTITY, *_MEASURED) if rows]
        binding = Measurement("binding", {name: [row.get(name) for row in rows] for name in names})
        chunks = [(name, c) for pool in self._null.values() for name, c in zip(pool.prompts, pool.chunks, strict=True)]
        windows: dict[str, list[Any]] = {
            "prompt": [name for name, c in chunks for _ in c.starts],
            "carrier": [carrier for (_, carrier), pool in self._null.items() for c in pool.chunks for _ in c.starts],
            "k": [c.k for _, c in chunks for _ in c.starts],
            "start": [int(s) for _, c in chunks for s in c.starts],
            "eb_star": [float(v) for _, c in chunks for v in c.eb_star],
            "eb_star_mass": [float(v) for _, c in chunks for v in c.eb_star_mass],
        }
        return binding, Measurement("windows", windows)


def _prefix_digests(ids: tuple[int, ...]) -> list[bytes]:
    """A digest of ids[: i + 1] for every i."""
    running, out = hashlib.blake2b(digest_size=16), []
    for token in ids:
        running.update(token.to_bytes(4, "little"))
        out.append(running.copy().digest())
    return out


_IDENTITY = (
    "prompt", "question", "term", "group", "task", "kind", "n_tokens", "prefix", "tokens", "k", "span", "span_strings",
    "occurrences", "reason",
)  # fmt: skip
#: Columns of a prompt whose term has a span; all None where it has none.
_MEASURED = (
    "eb_star", "eb_per_layer", "best_layer", "best_head", "entropy", "eb_star_mass", "adjacent_bsi", "first_bsi",
    "sink_mass", "bsi_sinkless", "sinkless_reason", "uniform_baseline", "eb_star_value",
    "null_n", "null_mean", "excess", "percentile", "null_reason",
    "mass_null_mean", "mass_excess", "mass_percentile",
    "position_null_n", "position_null_mean", "position_excess", "position_percentile", "position_null_reason",
    "bsi_pts_r", "best_head_is_pts", "bsi", "mass", "sink", "value_bsi",
    "null_bsi", "top_heads", "top_rows",
)  # fmt: skip


def _measured(v: b.HeadValues, start: int, k: int) -> dict[str, Any]:
    per_layer = b.eb(v.bsi)
    layer = int(per_layer.argmax())
    head = int(v.bsi[layer].argmax())
    sinkless = float(v.bsi_sinkless[layer, head])
    return {
        "eb_star": float(per_layer[layer]),
        "eb_per_layer": per_layer.tolist(),
        "best_layer": layer,
        "best_head": head,
        "entropy": b.head_entropy(v.bsi[layer]),
        "eb_star_mass": float(b.eb(v.mass).max()),
        "adjacent_bsi": float(v.adjacent[layer, head]),
        "first_bsi": float(v.first[layer, head]),
        "sink_mass": float(v.sink[layer, head]),
        "bsi_sinkless": None if np.isnan(sinkless) else sinkless,
        "sinkless_reason": _no_sinkless(start) if np.isnan(sinkless) else None,
        "uniform_baseline": b.uniform_baseline(start, k),
        "bsi": v.bsi.ravel(),
        "mass": v.mass.ravel(),
        "sink": v.sink.ravel(),
    }


def _no_sinkless(start: int) -> str:
    return "the span starts at position 0" if start == 0 else "position 0 takes nearly all attention of a row"


def _samples(null: dict[_Pool, _Windows]) -> dict[tuple[Any, ...], b.Array]:
    """Null values by pool and quantity; EB* by position bin too."""
    out: dict[tuple[Any, ...], b.Array] = {}
    for (k, carrier), pool in null.items():
        values = np.concatenate([c.eb_star for c in pool.chunks])
        bins = b.position_bins(np.concatenate([c.starts for c in pool.chunks]))
        out[k, carrier, "eb_star"] = values
        out[k, carrier, "mass"] = np.concatenate([c.eb_star_mass for c in pool.chunks])
        out |= {(k, carrier, int(place)): values[bins == place] for place in np.unique(bins)}
    return out


def _against(row: dict[str, Any], samples: dict[tuple[Any, ...], b.Array], pts: b.Array, least: int) -> dict[str, Any]:
    if "eb_star" not in row:
        return {}
    empty, pool = np.empty(0), (row["k"], row["carrier"])
    null = b.against(row["eb_star"], samples.get((*pool, "eb_star"), empty), least)
    mass = b.against(row["eb_star_mass"], samples.get((*pool, "mass"), empty), least)
    near = b.against(row["eb_star"], samples.get((*pool, b.position_bin(row["span"][0])), empty), least)
    return {
        "null_n": null.n,
        "null_mean": null.mean,
        "excess": null.excess,
        "percentile": null.percentile,
        "null_reason": null.reason,
        "mass_null_mean": mass.mean,
        "mass_excess": mass.excess,
        "mass_percentile": mass.percentile,
        "position_null_n": near.n,
        "position_null_mean": near.mean,
        "position_excess": near.excess,
        "position_percentile": near.percentile,
        "position_null_reason": near.reason,
        "bsi_pts_r": b.correlation(row["bsi"], pts),
        "best_head_is_pts": bool(row["bsi"].argmax() == pts.argmax()),
    }
