"""Which heads bind most, and the sets of heads that are taken out to see whether it matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from bindscope.engine.edits import Head, check_heads
from bindscope.engine.forward import stream
from bindscope.engine.prepare import Item
from bindscope.errors import RequestError
from bindscope.measures import binding as b
from bindscope.prompts.spans import find, tokens_of
from bindscope.records import Ablation, Ranking


@dataclass(frozen=True)
class HeadSet:
    """Units taken out together, and why: the baseline, the highest or lowest of a ranking, or a random draw."""

    ranking: Ranking | None
    name: str
    k: int
    draw: int
    heads: tuple[Head, ...]


def scores(model: PreTrainedModel, items: Sequence[Item], pts: b.Array, packed: bool) -> dict[Ranking, b.Array]:
    """(L, H) by ranking: mean BSI over the items, the same less the head's mean over null windows of as many tokens,
    and the previous-token score. The model must be under `hooked`. Raises RequestError where no item has a span."""
    spans = [item for item in items if item.span is not None]
    if not spans:
        raise RequestError("no prompt is left to rank heads on: none has the term in two tokens or more")
    ks = sorted({item.span.k for item in spans if item.span})
    rows = [item.row(max(ks) - 1) for item in spans]
    sums: dict[int, b.Array] = {}
    null: dict[int, b.Array] = {}
    counts: dict[int, int] = dict.fromkeys(ks, 0)
    windows: dict[int, int] = dict.fromkeys(ks, 0)
    for place, reading in stream(model, rows, packed=packed):
        item = spans[place]
        assert item.span is not None
        assert reading.band is not None
        k = item.span.k
        sums[k] = sums.get(k, 0) + b.head_values(reading.band, item.span.tokens[0], k).bsi
        counts[k] += 1
        mine = [
            t
            for chars in find(item.encoded.text, item.prompt.term, item.prompt.aliases)
            for t in tokens_of(item.encoded, chars)
        ]
        starts = b.window_starts(len(item.encoded.ids), k, [*mine, *range(item.encoded.prefix)])
        null[k] = null.get(k, 0) + b.windows(reading.band, k, starts).bsi
        windows[k] += len(starts)
    n = sum(counts.values())
    bsi = sum(sums.values()) / n
    lacking = [k for k in ks if windows[k] == 0]
    out: dict[Ranking, b.Array] = {"bsi": np.asarray(bsi), "previous_token": pts}
    if not lacking:
        expected = sum(null[k] / windows[k] * counts[k] for k in ks) / n
        out["excess"] = np.asarray(bsi - expected)
    return out


def sets(found: dict[Ranking, b.Array], spec: Ablation, groups: int) -> Iterator[HeadSet]:
    """The baseline, then for each ranking and size the top, the bottom and the random sets.

    groups: key-value heads. The bottom set of named heads is the lowest by BSI. Raises RequestError for sizes and heads
    that the model does not have, and for a ranking that the prompts do not carry.
    """
    yield HeadSet(None, "baseline", 0, 0, ())
    for ranking in spec.rankings:
        by: Ranking = "bsi" if ranking == "named" else ranking
        if by not in found:
            raise RequestError(f"heads cannot be ranked by {by}: a term's token count has no null window")
        L, H = found[by].shape
        per = H // groups if spec.unit == "kv_group" else 1
        values = found[by].reshape(L, H // per, per).mean(2)
        order = [divmod(int(i), H // per) for i in np.argsort(-values, axis=None, kind="stable")]
        what = "key-value head" if spec.unit == "kv_group" else "head"
        for size in dict.fromkeys(_size(s, values.size) for s in spec.sizes(ranking)):
            if not 1 <= size <= values.size // 2:
                raise RequestError(
                    f"k {size} does not fit: the model has {values.size} {what}s, and k may be half of them"
                )
            top = order[:size]
            if ranking == "named":
                top = list(spec.heads)
                check_heads(top, L, H // per, what)
            bottom = [unit for unit in reversed(order) if unit not in top][:size]
            yield HeadSet(ranking, "top", size, 0, _heads(top, per))
            yield HeadSet(ranking, "bottom", size, 0, _heads(bottom, per))
            rng = np.random.default_rng([spec.seed, size])
            for draw in range(spec.random):
                yield HeadSet(ranking, "random", size, draw, _heads(_random(top, values.shape, spec.scope, rng), per))


def _size(size: int | str, total: int) -> int:
    """A number, or a share of all heads, at least one."""
    return max(1, round(float(size.rstrip("%")) / 100 * total)) if isinstance(size, str) else size


def _heads(units: Sequence[Head], per: int) -> tuple[Head, ...]:
    return tuple(sorted((layer, unit * per + i) for layer, unit in units for i in range(per)))


def _random(top: Sequence[Head], shape: tuple[int, ...], scope: str, rng: np.random.Generator) -> list[Head]:
    """As many units from the whole model, or as many from each layer as the top has there.

    Top units may be drawn: only then is the top set, under the null that ranking and effect have nothing to do with
    each other, one more draw of the same kind, and p = (b + 1) / (R + 1) exact. Without them p is too small, the more
    so the larger the share of the heads that is top (6 of 12: 46% of p below 0.05).
    """
    L, U = shape
    if scope == "model":
        return [divmod(int(i), U) for i in rng.choice(L * U, len(top), replace=False)]
    out: list[Head] = []
    for layer in sorted({layer for layer, _ in top}):
        count = sum(at == layer for at, _ in top)
        out += [(layer, int(u)) for u in rng.choice(U, count, replace=False)]
    return out
