"""One checkpoint in, records out: `measure` is the pure function that every way of running a study calls.

Binding and recognition of a prompt come from the same forward pass. Four tables result:

binding      a row per prompt: where the term stands, EB* and its companions, their nulls, values of every head
windows      a row per null window: k, start, EB*, EB*_mass
heads        a row per head: layer, head, previous-token score on neutral text
recognition  a row per recognition prompt (all rotations): raw sums of each choice, and the scores derived from them
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from bindscope.errors import ModelError, PromptError, SpanError
from bindscope.measure import binding as b
from bindscope.measure.attention import hooked
from bindscope.measure.forward import Reading, Row, read
from bindscope.measure.recognition import continuation, scores
from bindscope.measure.selfcheck import SelfCheck, self_check
from bindscope.models.load import Loaded
from bindscope.records import Measurement, Prompt, Protocol, Span
from bindscope.terms.spans import Encoded, encode, find, locate, tokens_of

MEASURES = ("binding", "windows", "heads", "recognition")

#: Tokens of neutral text in one row of the previous-token measurement.
_NEUTRAL_TOKENS = 128


@dataclass(frozen=True)
class _Item:
    """A prompt, prepared: its tokens, its span or why it has none, the ids of its choices."""

    prompt: Prompt
    encoded: Encoded
    span: Span | None
    reason: str | None
    choices: tuple[tuple[int, ...], ...]

    @property
    def binds(self) -> bool:
        return self.prompt.rotation == 0


def measure(
    loaded: Loaded, prompts: Sequence[Prompt], protocol: Protocol, progress: Callable[[int], None] | None = None
) -> tuple[list[Measurement], SelfCheck]:
    """Measure one loaded checkpoint on all prompts.

    progress gets counts of prompts done. Raises PromptError for a prompt that cannot be measured as written (too
    long, merged with a choice), UnsupportedArchitecture and MeasureError for a model that cannot be read.
    """
    check = self_check(loaded.model)
    items = [_prepare(loaded, prompt) for prompt in prompts]
    width = max([i.span.k - 1 for i in items if i.span and i.binds], default=1)
    rows = [Row(i.encoded.ids, i.choices, width if i.binds else 0) for i in items]
    neutral, special = _neutral_rows(loaded)
    texts = sorted({choice for prompt in prompts for choice in prompt.choices})
    premise = encode(loaded.tokenizer, protocol.premise, loaded.bos)
    ids = {text: continuation(loaded.tokenizer, premise, text) for text in texts}
    with hooked(loaded.model):
        readings = read(loaded.model, rows, packed=check.packed, progress=progress)
        quiet = read(loaded.model, neutral, packed=check.packed)
        alone = read(loaded.model, [Row(premise.ids, (ids[t],)) for t in texts], packed=check.packed)
    pts = b.previous_token_scores([r.band for r in quiet if r.band is not None], max(1, special))
    unconditional = {text: float(r.logprobs[0].sum()) for text, r in zip(texts, alone, strict=True)}
    pairs = list(zip(items, readings, strict=True))
    null = _windows(loaded, pairs, sorted({i.span.k for i in items if i.span and i.binds}))
    return [
        _binding(loaded, pairs, null, pts, protocol),
        Measurement(
            "windows",
            {
                "prompt": [p for p, w in null for _ in w.starts],
                "k": [w.k for _, w in null for _ in w.starts],
                "start": [int(s) for _, w in null for s in w.starts],
                "eb_star": [float(v) for _, w in null for v in w.eb_star],
                "eb_star_mass": [float(v) for _, w in null for v in w.eb_star_mass],
            },
        ),
        Measurement(
            "heads",
            {
                "layer": [layer for layer in range(loaded.layers) for _ in range(loaded.heads)],
                "head": [head for _ in range(loaded.layers) for head in range(loaded.heads)],
                "previous_token_score": [float(v) for v in pts.ravel()],
            },
        ),
        _recognition(pairs, unconditional),
    ], check


def _prepare(loaded: Loaded, prompt: Prompt) -> _Item:
    encoded = encode(loaded.tokenizer, prompt.text, loaded.bos)
    choices = tuple(continuation(loaded.tokenizer, encoded, choice) for choice in prompt.choices)
    rows = loaded.model.get_input_embeddings().num_embeddings
    if (top := max([*encoded.ids, *(i for c in choices for i in c)], default=0)) >= rows:
        raise ModelError(
            f"the tokenizer gives id {top} for prompt {prompt.id!r}, but {loaded.ref.suite} embeds {rows} tokens only; "
            "tokenizer and weights do not belong together"
        )
    longest = len(encoded.ids) + max((len(c) for c in choices), default=0)
    if loaded.context is not None and longest > loaded.context:
        raise PromptError(
            f"prompt {prompt.id!r} needs {longest} tokens with its longest choice, more than the "
            f"{loaded.context} of the context of {loaded.ref.suite}; shorten it"
        )
    try:
        return _Item(prompt, encoded, locate(encoded, prompt.term, prompt.aliases), None, choices)
    except SpanError as error:
        return _Item(prompt, encoded, None, error.reason, choices)


def _neutral_rows(loaded: Loaded) -> tuple[list[Row], int]:
    """The neutral text in rows, each with the special tokens of a prompt in front, and how many those are."""
    encoded = encode(loaded.tokenizer, neutral_text(), loaded.bos)
    front, body = encoded.ids[: encoded.prefix], encoded.ids[encoded.prefix :]
    size = min(_NEUTRAL_TOKENS, loaded.context or _NEUTRAL_TOKENS) - len(front)
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return [Row((*front, *part), band=1) for part in parts if len(part) >= 8], len(front)


@cache
def neutral_text() -> str:
    """Plain prose without any of the library's subjects, for previous-token scores."""
    return resources.files("bindscope").joinpath("data/neutral.txt").read_text(encoding="utf-8")


def _windows(loaded: Loaded, pairs: list[tuple[_Item, Reading]], ks: list[int]) -> list[tuple[str, b.Windows]]:
    """Null windows by prompt. Texts that begin alike give the same numbers as far as they agree: counted once."""
    added = loaded.tokenizer.added_tokens_decoder.items()
    special = {*loaded.tokenizer.all_special_ids, *(i for i, token in added if token.special)}
    seen: set[tuple[int, bytes]] = set()
    out = []
    for item, reading in pairs:
        if reading.band is None:
            continue
        mine = [
            t
            for chars in find(item.encoded.text, item.prompt.term, item.prompt.aliases)
            for t in tokens_of(item.encoded, chars)
        ]
        marks = [i for i, token in enumerate(item.encoded.ids) if token in special or i < item.encoded.prefix]
        prefixes = _prefix_digests(item.encoded.ids)
        for k in ks:
            w = b.windows(reading.band, k, [*mine, *marks])
            fresh = [(k, prefixes[s + k - 1]) not in seen for s in w.starts]
            seen |= {(k, prefixes[s + k - 1]) for s in w.starts}
            out.append((item.prompt.id, b.Windows(k, w.starts[fresh], w.eb_star[fresh], w.eb_star_mass[fresh])))
    return out


def _prefix_digests(ids: tuple[int, ...]) -> list[bytes]:
    """A digest of ids[: i + 1] for every i."""
    running, out = hashlib.blake2b(digest_size=16), []
    for token in ids:
        running.update(token.to_bytes(4, "little"))
        out.append(running.copy().digest())
    return out


def _binding(
    loaded: Loaded,
    pairs: list[tuple[_Item, Reading]],
    null: list[tuple[str, b.Windows]],
    pts: b.Array,
    protocol: Protocol,
) -> Measurement:
    pooled: dict[Any, list[float]] = defaultdict(list)
    for _, w in null:
        for s, value, mass in zip(w.starts, w.eb_star, w.eb_star_mass, strict=True):
            pooled[w.k, "eb_star"].append(value)
            pooled[w.k, "eb_star_mass"].append(mass)
            pooled[w.k, "eb_star", b.position_bin(int(s))].append(value)
    samples = {key: np.asarray(values) for key, values in pooled.items()}
    rows = []
    for item, reading in pairs:
        if item.binds:
            rows.append(_identity_columns(loaded, item) | _binding_row(item, reading, samples, pts, protocol.min_null))
    return Measurement("binding", {key: [row[key] for row in rows] for key in (rows[0] if rows else ())})


def _identity_columns(loaded: Loaded, item: _Item) -> dict[str, Any]:
    span = item.span
    return {
        "prompt": item.prompt.id,
        "term": item.prompt.term,
        "task": item.prompt.task,
        "kind": item.prompt.kind,
        "n_tokens": len(item.encoded.ids),
        "k": span.k if span else None,
        "span": list(span.tokens) if span else None,
        "span_strings": [loaded.tokenizer.decode([item.encoded.ids[i]]) for i in span.tokens] if span else None,
        "occurrences": span.occurrences if span else len(find(item.prompt.text, item.prompt.term, item.prompt.aliases)),
        "reason": item.reason,
    }


#: Columns of a prompt whose term has a span; all None where it has none.
_COLUMNS = (
    "eb_star",
    "eb_per_layer",
    "best_layer",
    "best_head",
    "entropy",
    "eb_star_mass",
    "adjacent_bsi",
    "first_bsi",
    "sink_mass",
    "bsi_sinkless",
    "sinkless_reason",
    "uniform_baseline",
    "null_n",
    "null_mean",
    "excess",
    "percentile",
    "null_reason",
    "mass_null_mean",
    "mass_excess",
    "mass_percentile",
    "position_null_n",
    "position_null_mean",
    "position_excess",
    "position_percentile",
    "position_null_reason",
    "bsi_pts_r",
    "best_head_is_pts",
    "bsi",
    "mass",
    "sink",
)


def _binding_row(
    item: _Item, reading: Reading, samples: dict[Any, b.Array], pts: b.Array, least: int
) -> dict[str, Any]:
    if item.span is None or reading.band is None:
        return dict.fromkeys(_COLUMNS)
    start, k = item.span.tokens[0], item.span.k
    v = b.head_values(reading.band, start, k)
    per_layer = b.eb(v.bsi)
    layer = int(per_layer.argmax())
    head = int(v.bsi[layer].argmax())
    star, star_mass = float(per_layer[layer]), float(b.eb(v.mass).max())
    empty = np.empty(0)
    null = b.against(star, samples.get((k, "eb_star"), empty), least)
    mass = b.against(star_mass, samples.get((k, "eb_star_mass"), empty), least)
    near = b.against(star, samples.get((k, "eb_star", b.position_bin(start)), empty), least)
    sinkless = float(v.bsi_sinkless[layer, head])
    values = (
        star,
        per_layer.tolist(),
        layer,
        head,
        b.head_entropy(v.bsi[layer]),
        star_mass,
        float(v.adjacent[layer, head]),
        float(v.first[layer, head]),
        float(v.sink[layer, head]),
        None if np.isnan(sinkless) else sinkless,
        _no_sinkless(start) if np.isnan(sinkless) else None,
        b.uniform_baseline(start, k),
        null.n,
        null.mean,
        null.excess,
        null.percentile,
        null.reason,
        mass.mean,
        mass.excess,
        mass.percentile,
        near.n,
        near.mean,
        near.excess,
        near.percentile,
        near.reason,
        b.correlation(v.bsi, pts),
        bool(v.bsi.argmax() == pts.argmax()),
        v.bsi.ravel().tolist(),
        v.mass.ravel().tolist(),
        v.sink.ravel().tolist(),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _no_sinkless(start: int) -> str:
    return "the span starts at position 0" if start == 0 else "position 0 takes nearly all attention of a row"


def _recognition(pairs: list[tuple[_Item, Reading]], unconditional: dict[str, float]) -> Measurement:
    rows = []
    for item, reading in pairs:
        prompt = item.prompt
        if prompt.answer is None:
            continue
        sums = [float(values.astype(np.float64).sum()) for values in reading.logprobs]
        lengths = [len(c) for c in item.choices]
        alone = [unconditional[choice] for choice in prompt.choices]
        by = scores(sums, lengths, prompt.choices, alone, prompt.answer)
        row: dict[str, Any] = {
            "prompt": prompt.id,
            "term": prompt.term,
            "kind": prompt.kind,
            "format": prompt.format,
            "rotation": prompt.rotation,
            "gold": prompt.answer,
            "choices": list(prompt.choices),
            "logprob": sums,
            "choice_tokens": lengths,
            "choice_bytes": [len(c.encode()) for c in prompt.choices],
            "unconditional": alone,
        }
        for name, score in by.items():
            row |= {
                f"predicted_{name}": score.predicted,
                f"correct_{name}": score.predicted == score.gold,
                f"margin_{name}": score.margin,
            }
        rows.append(row)
    return Measurement("recognition", {key: [row[key] for row in rows] for key in (rows[0] if rows else ())})
