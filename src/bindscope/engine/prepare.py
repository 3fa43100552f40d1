"""Prompts -> token ids: what the model is given, where the term stands, and which prompts cannot be measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from bindscope.checkpoints.load import Loaded
from bindscope.engine.capture import TextInput
from bindscope.errors import ModelError, PromptError, SpanError
from bindscope.prompts.spans import Encoded, continuation, encode, locate
from bindscope.records import Bos, Prompt, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Tokens of neutral text in one row of the previous-token measurement.
_NEUTRAL_TOKENS = 128
#: Choices behind one premise.
_SIDE = 8


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as token ids.

    encoded: ids and character offsets of its text
    span: where the term stands; None where it has no span of two tokens or more
    reason: why there is no span ("absent", "one token")
    choices: token ids of each choice, as they continue the text
    """

    prompt: Prompt
    encoded: Encoded
    span: Span | None
    reason: str | None
    choices: tuple[tuple[int, ...], ...]

    def text_input(self, width: int, choices: bool = True) -> TextInput:
        """What the forward pass gets. width: positions back that attention is read where spans are measured on this
        prompt; choices: whether their log-probabilities are wanted."""
        continuations = self.choices if choices else ()
        if not self.prompt.binds:
            return TextInput(self.encoded.ids, continuations)
        return TextInput(self.encoded.ids, continuations, width, self.span.tokens if self.span else ())


def tokenized(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, bos: Bos) -> TokenizedPrompt:
    """A prompt as any model with this tokenizer gets it. Raises PromptError for one that merges with a choice."""
    encoded = encode(tokenizer, prompt.text, bos)
    choices = tuple(continuation(tokenizer, encoded, choice) for choice in prompt.choices)
    try:
        return TokenizedPrompt(
            prompt=prompt,
            encoded=encoded,
            span=locate(encoded, prompt.term, prompt.aliases),
            reason=None,
            choices=choices,
        )
    except SpanError as error:
        return TokenizedPrompt(prompt=prompt, encoded=encoded, span=None, reason=error.reason, choices=choices)


def prepare(loaded: Loaded, prompt: Prompt) -> TokenizedPrompt:
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


def premise_inputs(
    tokenizer: PreTrainedTokenizerBase, premise: str, bos: Bos, items: Iterable[TokenizedPrompt]
) -> tuple[list[str], list[TextInput]]:
    """Every choice of the prompts, and texts in which several choices at a time follow the neutral premise."""
    encoded, choices = encode(tokenizer, premise, bos), sorted({c for item in items for c in item.prompt.choices})
    ids = [continuation(tokenizer, encoded, choice) for choice in choices]
    return choices, [TextInput(encoded.ids, tuple(ids[i : i + _SIDE])) for i in range(0, len(ids), _SIDE)]


def neutral_inputs(loaded: Loaded) -> tuple[list[TextInput], int]:
    """The neutral text in parts, each with the special tokens of a prompt in front, and how many those are."""
    encoded = encode(loaded.tokenizer, neutral_text(), loaded.bos)
    front, body = encoded.ids[: encoded.prefix], encoded.ids[encoded.prefix :]
    size = min(_NEUTRAL_TOKENS, loaded.context or _NEUTRAL_TOKENS) - len(front)
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return [TextInput((*front, *part), band=1) for part in parts if len(part) >= 8], len(front)


@cache
def neutral_text() -> str:
    """Plain prose without any of the library's subjects, for previous-token scores."""
    return resources.files("bindscope").joinpath("data/neutral.txt").read_text(encoding="utf-8")
