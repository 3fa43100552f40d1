"""Batched decoding whose completions equal those of decoding one prompt at a time.

The `generate` method of transformers decodes. Prompts of different lengths share a batch, padded on the left, where a
probe shows that padding does not change the model's logits. Otherwise, and where heads are edited by position, only
prompts of equal length share a batch. In a batch a logit differs in its last digits from the logit of the same prompt
alone; where the two highest logits are closer than that, the prompt is decoded a second time in a batch of its own.
Sampling is greedy decoding of logits / temperature + Gumbel noise, which draws exactly from
softmax(logits / temperature) (the Gumbel-max trick). The noise depends on the prompt, the seed and the position of the
new token, not on the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from bindscope.checkpoints.load import Loaded
from bindscope.engine.batches import ShrinkingBatches
from bindscope.engine.prepare import TokenizedPrompt
from bindscope.errors import MeasureError, PromptError
from bindscope.records import Sampling

#: New tokens for prompts that set no limit, as in the reference study.
MAX_TOKENS = 20
#: Prompt and new tokens in one batch.
BATCH_TOKENS = 4096
#: Two logits that are closer than a near tie can change order between a batch and a single row. In float32, logits of a
#: batch and of a single row were measured to differ by up to 12 times the spacing of floating-point numbers near the
#: largest logit; the limit is ten times that. In shorter formats the limit is 8 times their spacing near 1, times the
#: standard deviation of the logits.
_NEAR, _NEAR_SHORT = 128.0, 8.0


def distinct(samplings: Sequence[Sampling]) -> list[Sampling]:
    """The samplings that can give different completions: at temperature 0 the seed has no effect."""
    return list(dict.fromkeys(s if s.temperature else Sampling() for s in samplings))


@dataclass(frozen=True)
class Completion:
    """The new tokens of a prompt.

    ids: token ids, without the end-of-text token
    ended: whether the model ended the text itself
    alone: whether the prompt was decoded a second time in a batch of its own, because two logits were nearly equal
    """

    ids: tuple[int, ...]
    ended: bool
    alone: bool


#: Makes the context in which one batch is decoded, from the indices of its prompts; the context can edit heads.
BatchContext = Callable[[Sequence[int]], AbstractContextManager[object]]


def no_context(_: Sequence[int]) -> AbstractContextManager[object]:
    """The batch context that edits nothing."""
    return nullcontext()


def complete(
    model: PreTrainedModel,
    ids: Sequence[Sequence[int]],
    limits: Sequence[int],
    samplings: Sequence[Sampling],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] | None = None,
    batch_context: BatchContext = no_context,
) -> list[Completion]:
    """Continue every prompt, with the results of `generate` on one prompt at a time.

    model: the model
    ids: token ids of each prompt
    limits: for each prompt, new tokens at most
    samplings: for each prompt, how tokens are chosen
    batch_tokens: prompt and new tokens of one batch at most
    progress: called with the number of prompts of each finished batch
    batch_context: makes the context in which a batch is decoded, from the indices of its prompts
    Raises MeasureError for logits that are not finite.
    """
    out: dict[int, Completion] = {}
    batches = ShrinkingBatches()
    with _plain(model) as ends:
        padded = batch_context is no_context and len(set(map(len, ids))) > 1 and _padding_holds(model)

        def decode(part: Sequence[int]) -> list[tuple[list[int], bool]]:
            with batch_context(part):
                return _decode(model, part, ids, limits, samplings, ends)

        for batch in _batches(ids, limits, batch_tokens, padded):
            for i, (tokens, near) in zip(batch, batches.run(batch, decode), strict=True):
                redo = near and len(batch) > 1
                if redo:
                    tokens, _ = decode([i])[0]
                cut = next((n for n, token in enumerate(tokens) if token in ends), len(tokens))
                out[i] = Completion(tuple(tokens[:cut]), cut < len(tokens), redo)
            if progress is not None:
                progress(len(batch))
    return [out[i] for i in range(len(ids))]


@contextmanager
def _plain(model: PreTrainedModel) -> Iterator[set[int]]:
    """Within this block decoding is greedy and ignores the checkpoint's own settings; yields the end-of-text ids."""
    before = model.generation_config
    end = before.eos_token_id if before.eos_token_id is not None else model.config.eos_token_id
    ends = {int(e) for e in (end if isinstance(end, list) else [] if end is None else [end])}
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends) or None, pad_token_id=min(ends, default=0))
    try:
        yield ends
    finally:
        model.generation_config = before


def _batches(ids: Sequence[Sequence[int]], limits: Sequence[int], budget: int, padded: bool) -> Iterator[list[int]]:
    """Indices of the prompts of each batch. The first prompt of a batch has the highest limit of new tokens.

    padded: whether prompts of different lengths may share a batch; they are then ordered by their limits
    """

    def order(i: int) -> tuple[int, int]:
        return (-limits[i], -len(ids[i])) if padded else (-len(ids[i]), -limits[i])

    batch: list[int] = []
    length = 0
    for i in sorted(range(len(ids)), key=order):
        full = (len(batch) + 1) * (max(length, len(ids[i])) + limits[i if not batch else batch[0]]) > budget
        if batch and (full or (not padded and len(ids[i]) != length)):
            yield batch
            batch = []
        length = len(ids[i]) if not batch else max(length, len(ids[i]))
        batch.append(i)
    if batch:
        yield batch


def _padded(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, T), padded on the left."""
    T = max(map(len, ids))
    rows = torch.tensor([[0] * (T - len(row)) + list(row) for row in ids], device=model.device)
    mask = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in ids], device=model.device)
    return {"input_ids": rows, "attention_mask": mask}


@torch.no_grad()
def _padding_holds(model: PreTrainedModel) -> bool:
    """Whether padding on the left changes the logits of a prompt and its next tokens by at most half of a near tie.

    Without padding, prompts of different lengths cannot share a batch. Decoding 60 prompts of 15 to 60 tokens by length
    takes three times as many CPU seconds (Pythia-160M shape, 20 new tokens, one thread).
    """
    V = int(model.config.vocab_size)
    long, short = ([(7 * i * i + start) % V for i in range(1, n)] for start, n in ((3, 17), (5, 7)))

    def logits(ids: Sequence[Sequence[int]]) -> Tensor:
        generated = model.generate(
            **_padded(model, ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=3,
            min_new_tokens=3,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return torch.stack([step[-1].float() for step in generated.logits])  # (3, V) of the last prompt

    alone, behind = logits([short]), logits([long, short])
    return bool(((alone - behind).abs().amax(-1) <= _near(alone, model.dtype) / 2).all())


def _near(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """How close two logits of a row (..., V) must be to count as a near tie: (...)."""
    low, high = logits.aminmax(dim=-1)
    largest = _NEAR * torch.finfo(torch.float32).eps * high.maximum(-low)
    if dtype == torch.float32:  # the limit for shorter formats is always the smaller one here
        return largest
    return (_NEAR_SHORT * torch.finfo(dtype).eps * logits.std(-1)).maximum(largest)


@torch.no_grad()
def _decode(
    model: PreTrainedModel,
    batch: Sequence[int],
    ids: Sequence[Sequence[int]],
    limits: Sequence[int],
    samplings: Sequence[Sampling],
    ends: set[int],
) -> list[tuple[list[int], bool]]:
    """For each prompt of the batch its new token ids, and whether a near tie occurred while they were chosen."""
    inputs = _padded(model, [ids[i] for i in batch])
    start, each = inputs["input_ids"].shape[1], [samplings[i] for i in batch]
    watch = _Watch([_noise_seed(ids[i], samplings[i]) for i in batch], each, ends, start, model.dtype)
    new = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        max_new_tokens=limits[batch[0]],
        logits_processor=LogitsProcessorList([watch]),
    )[:, start:].tolist()
    near = watch.near.tolist()
    return [(tokens[: limits[i]], bool(n)) for i, tokens, n in zip(batch, new, near, strict=True)]


def _noise_seed(ids: Sequence[int], sampling: Sampling) -> int:
    """A seed of 63 bits for the noise of one prompt and one way of sampling."""
    text = f"{sampling.seed}/{sampling.temperature}/{','.join(map(str, ids))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class _Watch(LogitsProcessor):  # type: ignore[misc]
    """Adds each row's noise and records the rows in which a near tie occurred before the text ended.

    near: (B,) whether a near tie occurred
    """

    def __init__(
        self, seeds: Sequence[int], samplings: Sequence[Sampling], ends: set[int], start: int, dtype: torch.dtype
    ) -> None:
        self.samplings, self.ends, self.start, self.dtype = samplings, ends, start, dtype
        self.sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.near = torch.zeros(len(samplings), dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B, T), scores (B, V) -> scores (B, V) in float32."""
        scores = scores.float()
        close = _near(scores, self.dtype).cpu()
        if not bool(close.isfinite().all()):  # one logit that is not finite suffices
            raise MeasureError(
                "the model gives logits that are not finite during decoding; use float32 or bfloat16 (float16 "
                "overflows on some models)"
            )
        for b, sampling in enumerate(self.samplings):
            if sampling.temperature > 0:
                u = torch.empty(scores.shape[1], dtype=torch.float64).exponential_(generator=self.sources[b])
                scores[b] = scores[b] / sampling.temperature - u.log().to(scores.device, scores.dtype)
                close[b] /= sampling.temperature
        best = scores.topk(2, dim=-1).values
        new = input_ids[:, self.start :]
        over = torch.isin(new, torch.tensor(sorted(self.ends), device=new.device)).any(1)
        self.near |= ((best[:, 0] - best[:, 1]).cpu() < close) & ~over.cpu()
        return scores


def token_limits(loaded: Loaded, items: Sequence[TokenizedPrompt]) -> list[int]:
    """New tokens allowed for each prompt.

    loaded: the model, whose context length is the limit
    items: the prompts
    Raises PromptError where a prompt with its new tokens exceeds the model's context.
    """
    limits = []
    for item in items:
        limit = item.prompt.max_tokens or MAX_TOKENS
        if loaded.context is not None and len(item.encoded.ids) + limit > loaded.context:
            raise PromptError(
                f"prompt {item.prompt.id!r} and its {limit} new tokens need {len(item.encoded.ids) + limit} tokens, "
                f"more than the {loaded.context} of the context of {loaded.ref.suite}; shorten it"
            )
        limits.append(limit)
    return limits
