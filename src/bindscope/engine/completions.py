"""Completions of prepared prompts, each with its text: what completion measures are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bindscope.engine.data import CompletionView
from bindscope.engine.generate import Under, distinct, token_limits
from bindscope.engine.prepare import TokenizedPrompt
from bindscope.records import Sampling

if TYPE_CHECKING:
    from bindscope.engine.engine import Engine


def completions(
    engine: Engine,
    prompts: Sequence[TokenizedPrompt],
    samplings: Sequence[Sampling],
    *,
    progress: Callable[[int], None] | None = None,
    under: Under | None = None,
) -> list[CompletionView]:
    """A completion for each prompt and sampling, prompt by prompt.

    under: a context for the decoding of each batch, given the places of its prompts among `prompts`
    Raises PromptError where prompt and completion exceed the model's context.
    """
    limits = token_limits(engine.loaded, prompts)
    jobs = [(i, sampling) for sampling in distinct(samplings) for i in range(len(prompts))]
    written = engine.complete(
        [prompts[i].encoded.ids for i, _ in jobs],
        [limits[i] for i, _ in jobs],
        [sampling for _, sampling in jobs],
        progress=progress,
        under=None if under is None else lambda batch: under([jobs[n][0] for n in batch]),
    )
    by_job = dict(zip(jobs, written, strict=True))
    views = []
    for i, prompt in enumerate(prompts):
        for sampling in samplings:
            each = by_job[i, sampling if sampling.temperature else Sampling()]
            text = engine.loaded.tokenizer.decode(each.ids, skip_special_tokens=True)
            views.append(
                CompletionView(
                    prompt=prompt.prompt,
                    sampling=sampling,
                    text=text,
                    new_tokens=len(each.ids),
                    ended=each.ended,
                    decoded_alone=each.alone,
                )
            )
    return views
