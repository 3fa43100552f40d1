"""Recognition: which choice does the model prefer after the question?

Each choice has four scores: raw (the sum of its log-probabilities), per token (Tran 2026), per byte of the choice's
text, and PMI, the sum less the log-probability of the same text after a neutral premise (Holtzman et al. 2021,
arXiv:2104.08315). The log-probability of every choice is stored, so that other scores can be computed later. The
margin is the score of the right choice less the best other score; it changes before accuracy does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bindscope.measures.base import Values
from bindscope.measures.decorators import choice_measure
from bindscope.measures.view import ChoiceView
from bindscope.schema import Column, Type

SCORES = ("per_token", "raw", "per_byte", "pmi")
_UNITS = {"per_token": "nats per token", "raw": "nats", "per_byte": "nats per byte", "pmi": "nats"}


@dataclass(frozen=True)
class Scores:
    """Scores of the choices under one normalisation.

    values: (choices,) in nats, or nats per token or byte
    gold: index of the right choice
    """

    values: NDArray[np.float64]
    gold: int

    @property
    def predicted(self) -> int:
        """Index of the choice with the highest score, the first of them in a tie."""
        return int(self.values.argmax())

    @property
    def margin(self) -> float:
        """The score of the right choice less the highest other score; 0 is a tie."""
        return float(self.values[self.gold] - np.delete(self.values, self.gold).max())


def scores(
    sums: Sequence[float], tokens: Sequence[int], choices: Sequence[str], unconditional: Sequence[float], gold: int
) -> Mapping[str, Scores]:
    """The scores of the choices under every normalisation, by the names in `SCORES`.

    sums: log-probability of each choice (nats)
    tokens: number of tokens of each choice
    choices: text of each choice
    unconditional: log-probability of each choice after the neutral premise (nats)
    gold: index of the right choice
    """
    raw = np.asarray(sums, dtype=np.float64)
    by = {
        "per_token": raw / np.asarray(tokens),
        "raw": raw,
        "per_byte": raw / np.asarray([len(choice.encode()) for choice in choices]),
        "pmi": raw - np.asarray(unconditional, dtype=np.float64),
    }
    return {name: Scores(by[name], gold) for name in SCORES}


def _columns() -> Iterator[Column]:
    own_form: Type = "text"
    yield Column(
        "format", own_form, "listed: options in the prompt; cloze: none are shown", missing="a prompt file has none"
    )
    yield Column("rotation", "integer", "by how many places the options are shifted", range=(0, None))
    yield Column("gold", "integer", "index of the right choice", range=(0, None))
    yield Column("choices", "list of text", "the choices in their order")
    yield Column(
        "logprob",
        "list of numbers",
        "log P of each choice after the prompt",
        unit="nats",
        range=(None, 0),
        shape="choices",
    )
    yield Column(
        "choice_tokens", "list of integers", "length of each choice", unit="tokens", range=(1, None), shape="choices"
    )
    yield Column(
        "choice_bytes", "list of integers", "length of each choice", unit="bytes", range=(1, None), shape="choices"
    )
    yield Column(
        "unconditional",
        "list of numbers",
        "log P of each choice after a neutral premise",
        unit="nats",
        range=(None, 0),
        shape="choices",
    )
    for name in SCORES:
        yield Column(
            f"predicted_{name}", "integer", f"index of the choice with the highest score {name}", range=(0, None)
        )
        yield Column(f"correct_{name}", "yes/no", f"whether that is the right one, score {name}")
        yield Column(
            f"margin_{name}", "number", f"score {name} of the right choice less the best other", unit=_UNITS[name]
        )


@choice_measure(columns=tuple(_columns()), value="margin_per_token", title="Margin", group="recognition")
def recognition(view: ChoiceView) -> Values:
    """The log-probabilities of the choices, and the prediction and margin of every score, for one question."""
    prompt = view.prompt
    assert prompt.answer is not None
    sums = [float(values.astype(np.float64).sum()) for values in view.logprobs]
    lengths = [len(values) for values in view.logprobs]
    row: dict[str, object] = {
        "format": prompt.format,
        "rotation": prompt.rotation,
        "gold": prompt.answer,
        "choices": list(prompt.choices),
        "logprob": sums,
        "choice_tokens": lengths,
        "choice_bytes": [len(c.encode()) for c in prompt.choices],
        "unconditional": list(view.unconditional),
    }
    for name, score in scores(sums, lengths, prompt.choices, view.unconditional, prompt.answer).items():
        row |= {
            f"predicted_{name}": score.predicted,
            f"correct_{name}": score.predicted == score.gold,
            f"margin_{name}": score.margin,
        }
    return row
