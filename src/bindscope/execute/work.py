"""How much a study asks of a checkpoint, in tokens, and how fast a checkpoint is at it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bindscope.checkpoints.load import Loaded
from bindscope.engine.attention import hooked
from bindscope.engine.forward import BATCH_TOKENS, Row, read
from bindscope.engine.generate import MAX_TOKENS, Draw, distinct, write
from bindscope.engine.prepare import Item, neutral_text, premise_rows
from bindscope.engine.selfcheck import self_check
from bindscope.measures.ablation import evaluated, ranked_on
from bindscope.measures.ablation import steps as conditions
from bindscope.measures.checkpoint import EDITED, WRITTEN, draws, used
from bindscope.prompts.spans import encode
from bindscope.records import Protocol

#: Seconds that are long enough to be timed.
_TIMED = 0.5


@dataclass(frozen=True)
class Work:
    """What one checkpoint has to do. read: tokens of forward passes; written: new tokens, at most (a text may end
    early). batch: tokens of a full batch, or of the longest prompt where that is longer; scored: tokens of a batch
    whose probabilities are needed; band: how far back attention is kept."""

    read: int
    written: int
    batch: int
    scored: int
    band: int


@dataclass(frozen=True)
class Rates:
    """Tokens a second in forward passes and in writing (0 where nothing is written), and what comes before them."""

    read: float
    written: float
    setup: float

    def seconds(self, work: Work) -> float:
        """For one checkpoint."""
        return self.setup + work.read / self.read + (work.written / self.written if work.written else 0.0)


def work(tokenizer: PreTrainedTokenizerBase, asked: Sequence[Item], protocol: Protocol, names: Sequence[str]) -> Work:
    """The tokens of every pass that fills the tables `names`."""
    plain = [item for item in asked if item.prompt.shot == "zero"]
    rows = [Row(item.encoded.ids, item.choices) for item in plain]
    neutral = len(encode(tokenizer, neutral_text(), protocol.bos).ids)
    _, premises = premise_rows(tokenizer, protocol.premise, protocol.bos, plain)
    total = sum(map(len, rows)) + neutral + sum(map(len, premises))
    new = 0
    for name in (name for name in WRITTEN if name in names):
        times = len(distinct(draws(name)))
        chosen = {prompt.id for prompt in used(name, [item.prompt for item in asked])}
        for item in (item for item in asked if item.prompt.id in chosen):
            total += times * len(item.encoded.ids)
            new += times * (item.prompt.max_tokens or MAX_TOKENS)
    if protocol.ablation is not None and set(names) & set(EDITED):
        more, written = _edited(plain, protocol, neutral)
        total, new = total + more, new + written
    longest = max(map(len, rows), default=1)
    share = max((sum(map(len, row.continuations)) / len(row) for row in rows), default=0)
    batch = max(BATCH_TOKENS, longest)
    return Work(total, new, batch, round(batch * share), max((i.span.k - 1 for i in plain if i.span), default=1))


def _edited(plain: Sequence[Item], protocol: Protocol, neutral: int) -> tuple[int, int]:
    """Tokens read and written under edits; layers below the lowest edited one are run less often, which is left out."""
    spec = protocol.ablation
    assert spec is not None
    chosen, count = evaluated(plain, spec), conditions(spec)
    rows = sum(len(Row(item.encoded.ids, item.choices)) for item in chosen) + neutral
    total = count * rows + sum(len(item.encoded.ids) for item in ranked_on(plain, chosen, spec))
    openings = [item for item in plain if item.prompt.task == "generation"] if spec.generation else []
    total += count * sum(len(item.encoded.ids) for item in openings)
    return total, count * sum(item.prompt.max_tokens or MAX_TOKENS for item in openings)


def rates(loaded: Loaded, asked: Sequence[Item], since: float) -> Rates:
    """Time a question (or what there is) of middling length, repeated, and openings, more and more of them, until they
    take long enough or fill the batches of a run. since: when loading began, on the monotonic clock."""
    check = self_check(loaded.model)
    setup = time.monotonic() - since
    questions = [i for i in asked if i.choices] or list(asked)
    row = sorted((Row(i.encoded.ids, i.choices) for i in questions), key=len)[len(questions) // 2]

    def score(times: int) -> int:
        read(loaded.model, [row] * times, packed=check.packed)
        return times * len(row)

    with hooked(loaded.model):
        reading = _rate(score, BATCH_TOKENS // len(row))
    openings = [i for i in asked if i.prompt.task == "generation" and i.prompt.shot == "zero" and i.prompt.rubric]
    if not openings:
        return Rates(reading, 0.0, setup)

    def compose(times: int) -> int:
        some = [i.encoded.ids for i in openings[:times]]
        found = write(loaded.model, some, [MAX_TOKENS] * times, [Draw()] * times)
        return times * max(len(text.ids) + text.ended for text in found)

    return Rates(reading, _rate(compose, len(openings)), setup)


def _rate(run: Callable[[int], int], most: int) -> float:
    """Tokens a second of `run(times)`, which gives its tokens; the first run only warms up."""
    run(1)
    times = 1
    while True:
        started = time.monotonic()
        tokens = run(times)
        seconds = time.monotonic() - started
        if seconds >= _TIMED or times >= most:
            return tokens / seconds
        times = min(2 * times, most)
