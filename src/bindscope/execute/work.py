"""Counts the tokens that an experiment needs of a checkpoint, and times how fast a checkpoint processes tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bindscope.checkpoints.load import Loaded
from bindscope.engine.capture import TextInput
from bindscope.engine.engine import Engine
from bindscope.engine.generate import MAX_TOKENS
from bindscope.engine.passes import BATCH_TOKENS
from bindscope.engine.prepare import TokenizedPrompt, neutral_text, premise_inputs
from bindscope.measures.ablation import evaluated, ranked_on
from bindscope.measures.ablation import steps as conditions
from bindscope.measures.base import CompletionMeasure, Measure, Procedure
from bindscope.prompts.spans import encode
from bindscope.records import Protocol, Sampling

#: A run of at least this many seconds gives a reliable time.
_TIMED = 0.5


@dataclass(frozen=True)
class Work:
    """The tokens of one checkpoint.

    read: tokens of forward passes
    written: new tokens at most; a completion may end early
    batch: tokens of a full batch, or of the longest prompt where that is longer
    scored: tokens of a batch whose probabilities are computed
    band: how many positions back attention is kept
    """

    read: int
    written: int
    batch: int
    scored: int
    band: int


@dataclass(frozen=True)
class Rates:
    """The speed of one checkpoint.

    read: tokens a second in forward passes
    written: new tokens a second in decoding, 0 where nothing is decoded
    setup: seconds until the model is loaded and checked
    """

    read: float
    written: float
    setup: float

    def seconds(self, work: Work) -> float:
        """The time that the tokens of one checkpoint take, in seconds."""
        return self.setup + work.read / self.read + (work.written / self.written if work.written else 0.0)


def work(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[TokenizedPrompt],
    protocol: Protocol,
    measures: Collection[Measure],
) -> Work:
    """The tokens that the measures need of one checkpoint.

    tokenizer: the tokenizer of the model
    prompts: all prompts of the experiment
    protocol: its settings
    measures: its measures
    """
    plain = [p for p in prompts if p.prompt.shot == "zero"]
    inputs = [TextInput(p.encoded.ids, p.choices) for p in plain]
    neutral = len(encode(tokenizer, neutral_text(), protocol.bos).ids)
    _, premises = premise_inputs(tokenizer, protocol.premise, protocol.bos, plain)
    total = sum(map(len, inputs)) + neutral + sum(map(len, premises))
    new = 0
    for measure in (m for m in measures if isinstance(m, CompletionMeasure)):
        times = len(measure.distinct)
        chosen = {prompt.id for prompt in measure.prompts([p.prompt for p in prompts])}
        for each in (p for p in prompts if p.prompt.id in chosen):
            total += times * len(each.encoded.ids)
            new += times * (each.prompt.max_tokens or MAX_TOKENS)
    if protocol.ablation is not None and any(isinstance(m, Procedure) for m in measures):
        more, completed = _edited(plain, protocol, neutral)
        total, new = total + more, new + completed
    longest = max(map(len, inputs), default=1)
    share = max((sum(map(len, text.continuations)) / len(text) for text in inputs), default=0)
    batch = max(BATCH_TOKENS, longest)
    return Work(
        read=total,
        written=new,
        batch=batch,
        scored=round(batch * share),
        band=max((p.span.k - 1 for p in plain if p.span), default=1),
    )


def _edited(plain: Sequence[TokenizedPrompt], protocol: Protocol, neutral: int) -> tuple[int, int]:
    """Tokens read and new tokens while heads are ablated, at most: the count ignores layers that passes skip."""
    spec = protocol.ablation
    assert spec is not None
    chosen, count = evaluated(plain, spec), conditions(spec)
    rows = sum(len(TextInput(item.encoded.ids, item.choices)) for item in chosen) + neutral
    total = count * rows + sum(len(item.encoded.ids) for item in ranked_on(plain, chosen, spec))
    openings = [item for item in plain if item.prompt.task == "generation"] if spec.generation else []
    total += count * sum(len(item.encoded.ids) for item in openings)
    return total, count * sum(item.prompt.max_tokens or MAX_TOKENS for item in openings)


def rates(loaded: Loaded, prompts: Sequence[TokenizedPrompt], since: float) -> Rates:
    """Time a loaded checkpoint on a question of median length and on openings, if there are any.

    Each is repeated, twice as often each time, until it takes long enough or fills a batch.

    loaded: the model
    prompts: all prompts of the experiment
    since: time.monotonic() when loading began
    """
    with Engine(loaded) as engine:
        setup = time.monotonic() - since
        questions = [p for p in prompts if p.choices] or list(prompts)
        text = sorted((TextInput(p.encoded.ids, p.choices) for p in questions), key=len)[len(questions) // 2]

        def score(times: int) -> int:
            engine.read([text] * times)
            return times * len(text)

        reading = _rate(score, BATCH_TOKENS // len(text))
        openings = [p for p in prompts if p.prompt.task == "generation" and p.prompt.shot == "zero" and p.prompt.rubric]
        if not openings:
            return Rates(reading, 0.0, setup)

        def compose(times: int) -> int:
            some = [p.encoded.ids for p in openings[:times]]
            texts = engine.complete(some, [MAX_TOKENS] * times, [Sampling()] * times)
            return times * max(len(text.ids) + text.ended for text in texts)

        return Rates(reading, _rate(compose, len(openings)), setup)


def _rate(run: Callable[[int], int], most: int) -> float:
    """Tokens a second of `run(times)`, which returns its number of tokens; the first run is not timed.

    most: largest number of times
    """
    run(1)
    times = 1
    while True:
        started = time.monotonic()
        tokens = run(times)
        seconds = time.monotonic() - started
        if seconds >= _TIMED or times >= most:
            return tokens / seconds
        times = min(2 * times, most)
