"""Ranks heads by how much they bind, and chooses the sets of heads to ablate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bindscope.engine.data import Array
from bindscope.errors import MeasureError, RequestError
from bindscope.measures.eb_star import eb_star
from bindscope.measures.procedure import Context
from bindscope.measures.spans import SpanTables
from bindscope.records import Ablation, Head, Ranking, check_heads

if TYPE_CHECKING:
    from bindscope.engine.prepare import TokenizedPrompt


@dataclass(frozen=True)
class HeadSet:
    """Heads that are ablated together.

    ranking: the score that the heads were ranked by, None for the baseline
    name: baseline, top, bottom or random
    k: number of heads, or of groups of heads
    draw: number of a random set, from 0
    heads: (layer, head) of each, from 0
    """

    ranking: Ranking | None
    name: str
    k: int
    draw: int
    heads: tuple[Head, ...]


def scores(context: Context, prompts: Sequence[TokenizedPrompt]) -> tuple[dict[Ranking, Array], str]:
    """Scores (L, H) of every head by ranking, and the reason why there is no ranking by excess ("" where there is one).

    bsi is the mean BSI over the prompts, excess is BSI less the head's mean BSI on windows, and previous_token is the
    previous-token score.

    context: engine, protocol and previous-token scores
    prompts: the prompts on which heads are ranked
    Raises RequestError where no prompt has a span, MeasureError where EB* cannot be computed.
    """
    spans = [(n, prompt) for n, prompt in enumerate(prompts) if prompt.span is not None]
    if not spans:
        raise RequestError(
            f"none of the {len(prompts)} prompts for ranking heads has its term in two tokens or more; add terms that "
            "the tokenizer splits"
        )
    ks = sorted({prompt.span.k for _, prompt in spans if prompt.span})
    engine, failures = context.engine, dict[str, str]()
    tables = SpanTables(
        measures=[eb_star], tokenizer=engine.loaded.tokenizer, ks=ks, least=context.choices.min_null, failures=failures
    )
    inputs = [prompt.text_input(max(ks) - 1, choices=False) for _, prompt in spans]
    for place, data in engine.stream(inputs, eb_star.needs):
        tables.add(place, spans[place][1], data)
    for reason in failures.values():
        raise MeasureError(reason)
    columns = tables.columns(eb_star.name)[eb_star.name]
    shape = context.previous_token.shape
    bsi = np.mean(columns["bsi"], 0).reshape(shape)
    out: dict[Ranking, Array] = {"bsi": bsi, "previous_token": context.previous_token}
    lacking = next((reason for reason in columns["null_reason"] if reason is not None), "")
    if not lacking:
        out["excess"] = bsi - np.mean(columns["null_bsi"], 0).reshape(shape)
    return out, lacking


def sets(ranked: dict[Ranking, Array], spec: Ablation, groups: int, lacking: str = "") -> Iterator[HeadSet]:
    """Yield the baseline, then for each ranking and size the top, the bottom and the random sets.

    Named heads are the top set of their ranking; its bottom set holds the heads with the lowest BSI.

    ranked: ranking -> (L, H) scores
    spec: the ablation settings
    groups: number of key-value heads in a layer
    lacking: why there is no ranking by excess
    Raises RequestError for sizes and heads that the model does not have, and for a ranking without scores.
    """
    yield HeadSet(ranking=None, name="baseline", k=0, draw=0, heads=())
    for ranking in spec.rankings:
        by: Ranking = "bsi" if ranking == "named" else ranking
        if by not in ranked:
            raise RequestError(f"heads cannot be ranked by {by}: {lacking}; add prompts, or rank them by bsi")
        L, H = ranked[by].shape
        per = H // groups if spec.unit == "kv_group" else 1
        values = ranked[by].reshape(L, H // per, per).mean(2)
        order = [divmod(int(i), H // per) for i in np.argsort(-values, axis=None, kind="stable")]
        what = "key-value head" if spec.unit == "kv_group" else "head"
        for size in dict.fromkeys(_size(s, values.size) for s in spec.sizes(ranking)):
            if not 1 <= size <= values.size // 2:
                raise RequestError(
                    f"ablation cannot use k = {size}: the model has {values.size} {what}s; use a k from 1 to "
                    f"{values.size // 2}"
                )
            top = order[:size]
            if ranking == "named":
                top = list(spec.heads)
                check_heads(top, L, H // per, what)
            bottom = [unit for unit in reversed(order) if unit not in top][:size]
            yield HeadSet(ranking=ranking, name="top", k=size, draw=0, heads=_heads(top, per))
            yield HeadSet(ranking=ranking, name="bottom", k=size, draw=0, heads=_heads(bottom, per))
            rng = np.random.default_rng([spec.seed, size])
            for draw in range(spec.random):
                yield HeadSet(
                    ranking=ranking,
                    name="random",
                    k=size,
                    draw=draw,
                    heads=_heads(_random(top, values.shape, spec.scope, rng), per),
                )


def _size(size: int | str, total: int) -> int:
    """A number of heads; a percentage is taken of all heads and gives at least one."""
    return max(1, round(float(size.rstrip("%")) / 100 * total)) if isinstance(size, str) else size


def _heads(units: Sequence[Head], per: int) -> tuple[Head, ...]:
    return tuple(sorted((layer, unit * per + i) for layer, unit in units for i in range(per)))


def _random(top: Sequence[Head], shape: tuple[int, ...], scope: str, rng: np.random.Generator) -> list[Head]:
    """A random set as large as the top set: from the whole model, or from each layer as many as the top set has there.

    The draw includes the units of the top set. Only then is the top set, under the null hypothesis that ranking and
    effect are unrelated, one more draw of the same kind, and p = (b + 1) / (R + 1) is exact. Without them p is too
    small, and more so where the top set holds more of the heads (with 6 of 12 heads, 46% of p are below 0.05).
    """
    L, U = shape
    if scope == "model":
        return [divmod(int(i), U) for i in rng.choice(L * U, len(top), replace=False)]
    out: list[Head] = []
    for layer in sorted({layer for layer, _ in top}):
        count = sum(at == layer for at, _ in top)
        out += [(layer, int(u)) for u in rng.choice(U, count, replace=False)]
    return out
