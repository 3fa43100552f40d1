"""Prompts -> token ids: what is fed to the model, where the term stands, and what cannot be measured as written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from bindscope.checkpoints.load import Loaded
from bindscope.engine.forward import Row, read
from bindscope.errors import ModelError, PromptError, SpanError
from bindscope.measures import binding as b
from bindscope.prompts.spans import Encoded, continuation, encode, locate
from bindscope.records import Bos, Prompt, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Tokens of neutral text in one row of the previous-token measurement.
_NEUTRAL_TOKENS = 128
#: Choices behind one premise.
_SIDE = 8


@dataclass(frozen=True)
class Item:
    """A prompt, prepared: its tokens, its span or why it has none, the ids of its choices."""

    prompt: Prompt
    encoded: Encoded
    span: Span | None
    reason: str | None
    choices: tuple[tuple[int, ...], ...]

    def row(self, width: int) -> Row:
        """What the forward pass needs; `width` tokens back are read where binding is measured on this prompt."""
        if not self.prompt.binds:
            return Row(self.encoded.ids, self.choices)
        return Row(self.encoded.ids, self.choices, width, self.span.tokens if self.span else ())


def tokenized(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, bos: Bos) -> Item:
    """A prompt as any model with this tokenizer gets it. Raises PromptError for one that merges with a choice."""
    encoded = encode(tokenizer, prompt.text, bos)
    choices = tuple(continuation(tokenizer, encoded, choice) for choice in prompt.choices)
    try:
        return Item(prompt, encoded, locate(encoded, prompt.term, prompt.aliases), None, choices)
    except SpanError as error:
        return Item(prompt, encoded, None, error.reason, choices)


def prepare(loaded: Loaded, prompt: Prompt) -> Item:
    """Raises ModelError for a tokenizer that does not fit the weights, PromptError for a prompt that is too long or
    that merges with a choice."""
    item = tokenized(loaded.tokenizer, prompt, loaded.bos)
    encoded, choices = item.encoded, item.choices
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
    return item


def premise_rows(
    tokenizer: PreTrainedTokenizerBase, premise: str, bos: Bos, items: Iterable[Item]
) -> tuple[list[str], list[Row]]:
    """Every choice of the items, and rows of them in that order after the neutral premise, several behind one."""
    encoded, choices = encode(tokenizer, premise, bos), sorted({c for item in items for c in item.prompt.choices})
    ids = [continuation(tokenizer, encoded, choice) for choice in choices]
    return choices, [Row(encoded.ids, tuple(ids[i : i + _SIDE])) for i in range(0, len(ids), _SIDE)]


def neutral_rows(loaded: Loaded) -> tuple[list[Row], int]:
    """The neutral text in rows, each with the special tokens of a prompt in front, and how many those are."""
    encoded = encode(loaded.tokenizer, neutral_text(), loaded.bos)
    front, body = encoded.ids[: encoded.prefix], encoded.ids[encoded.prefix :]
    size = min(_NEUTRAL_TOKENS, loaded.context or _NEUTRAL_TOKENS) - len(front)
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return [Row((*front, *part), band=1) for part in parts if len(part) >= 8], len(front)


def previous_token_scores(loaded: Loaded, packed: bool) -> b.Array:
    """(L, H): mean attention to the previous token on the neutral text. The model must be under `hooked`."""
    rows, special = neutral_rows(loaded)
    bands = [reading.band for reading in read(loaded.model, rows, packed=packed)]
    return b.previous_token_scores([band for band in bands if band is not None], max(1, special))


@cache
def neutral_text() -> str:
    """Plain prose without any of the library's subjects, for previous-token scores."""
    return resources.files("bindscope").joinpath("data/neutral.txt").read_text(encoding="utf-8")
