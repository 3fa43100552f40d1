"""Does the model know the term? Log-probability of each choice after the prompt, and the scores derived from it.

All raw sums are kept, so that every normalisation can be computed later: raw (the sum), per token (published), per byte
of the choice's text, and PMI, the sum minus the log-probability of the same text after a neutral premise (Holtzman
2104.08315). The margin, score(gold) - max score(other), moves before accuracy does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bindscope.records import Prompt

SCORES = ("per_token", "raw", "per_byte", "pmi")


@dataclass(frozen=True)
class Scores:
    """Scores (choices,) under one normalisation, in nats, or nats per token or byte; gold: the place of the right
    choice; predicted is the first of the highest."""

    values: NDArray[np.float64]
    gold: int

    @property
    def predicted(self) -> int:
        return int(self.values.argmax())

    @property
    def margin(self) -> float:
        """score(gold) - max score(other); 0 is a tie."""
        return float(self.values[self.gold] - np.delete(self.values, self.gold).max())


def scores(
    sums: Sequence[float], tokens: Sequence[int], choices: Sequence[str], unconditional: Sequence[float], gold: int
) -> Mapping[str, Scores]:
    """All normalisations of the summed log-probabilities (nats): keys are `SCORES`.

    sums, tokens, choices, unconditional: for each choice its log-probability, number of tokens, text, and
    log-probability after the neutral premise; gold: the place of the right one.
    """
    raw = np.asarray(sums, dtype=np.float64)
    by = {
        "per_token": raw / np.asarray(tokens),
        "raw": raw,
        "per_byte": raw / np.asarray([len(choice.encode()) for choice in choices]),
        "pmi": raw - np.asarray(unconditional, dtype=np.float64),
    }
    return {name: Scores(by[name], gold) for name in SCORES}


def recognition_row(
    prompt: Prompt, lengths: Sequence[int], logprobs: Sequence[NDArray[np.float32]], unconditional: Mapping[str, float]
) -> dict[str, Any]:
    """One row of the table `recognition`: raw sums of each choice, and prediction and margin under every score.

    lengths: tokens of each choice; logprobs: of each choice's tokens (nats); unconditional: choice -> log P after the
    neutral premise.
    """
    assert prompt.answer is not None
    sums = [float(values.astype(np.float64).sum()) for values in logprobs]
    alone = [unconditional[choice] for choice in prompt.choices]
    row: dict[str, Any] = {
        "prompt": prompt.id,
        "question": prompt.shared,
        "term": prompt.term,
        "kind": prompt.kind,
        "format": prompt.format,
        "rotation": prompt.rotation,
        "gold": prompt.answer,
        "choices": list(prompt.choices),
        "logprob": sums,
        "choice_tokens": list(lengths),
        "choice_bytes": [len(c.encode()) for c in prompt.choices],
        "unconditional": alone,
    }
    for name, score in scores(sums, lengths, prompt.choices, alone, prompt.answer).items():
        row |= {
            f"predicted_{name}": score.predicted,
            f"correct_{name}": score.predicted == score.gold,
            f"margin_{name}": score.margin,
        }
    return row
