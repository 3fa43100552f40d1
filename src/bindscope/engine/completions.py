"""Completions of tokenized prompts with their decoded text: the input of completion measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bindscope.engine.data import CompletionView
from bindscope.engine.generate import BatchContext, distinct, token_limits
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
    batch_context: BatchContext | None = None,
) -> list[CompletionView]:
    """A completion for each prompt and each way of sampling, prompt by prompt.

    engine: the model, with the hook in place
    prompts: the prompts to continue
    samplings: how tokens are chosen, one completion for each
    progress: called with the number of completions that a batch has finished
    batch_context: makes the context in which a batch is decoded, from the indices of its prompts in `prompts`
    Raises PromptError where prompt and completion exceed the model's context, MeasureError for logits that are not
    finite.
    """
    limits = token_limits(engine.loaded, prompts)
    jobs = [(i, sampling) for sampling in distinct(samplings) for i in range(len(prompts))]
    generated = engine.complete(
        [prompts[i].encoded.ids for i, _ in jobs],
        [limits[i] for i, _ in jobs],
        [sampling for _, sampling in jobs],
        progress=progress,
        batch_context=None if batch_context is None else lambda batch: batch_context([jobs[n][0] for n in batch]),
    )
    by_job = dict(zip(jobs, generated, strict=True))
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
