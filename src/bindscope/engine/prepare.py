"""Tokenizes prompts, locates the term in each, and reports prompts that cannot be measured."""

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
#: Choices that follow the premise in one packed row.
_CHOICES_PER_ROW = 8


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as token ids.

    prompt: the prompt
    encoded: token ids and character offsets of its text
    span: positions of the term's tokens; None where the term has no span of two tokens or more
    reason: why there is no span ("absent", "one token"), else None
    choices: token ids of each choice, as they continue the text
    """

    prompt: Prompt
    encoded: Encoded
    span: Span | None
    reason: str | None
    choices: tuple[tuple[int, ...], ...]

    def text_input(self, width: int, choices: bool = True) -> TextInput:
        """The prompt as a text for the forward pass.

        width: how many positions back attention is read where spans are measured on this prompt
        choices: whether the log-probabilities of the choices are computed
        """
        continuations = self.choices if choices else ()
        if not self.prompt.binds:
            return TextInput(self.encoded.ids, continuations)
        return TextInput(self.encoded.ids, continuations, width, self.span.tokens if self.span else ())


def tokenized(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, bos: Bos) -> TokenizedPrompt:
    """Tokenize a prompt for any model with this tokenizer.

    bos: whether a beginning-of-text token is put in front
    Raises PromptError where the tokens of the prompt and of a choice merge.
    """
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
    """Tokenize a prompt for a loaded model.

    Raises ModelError where the tokenizer gives ids that the model does not embed, PromptError where the prompt is too
    long or where its tokens merge with those of a choice.
    """
    item = tokenized(loaded.tokenizer, prompt, loaded.bos)
    encoded, choices = item.encoded, item.choices
    rows = loaded.model.get_input_embeddings().num_embeddings
    if (top := max([*encoded.ids, *(i for c in choices for i in c)], default=0)) >= rows:
        raise ModelError(
            f"the tokenizer gives id {top} for prompt {prompt.id!r}, but {loaded.ref.suite} embeds {rows} tokens only; "
            "use the tokenizer that belongs to the weights"
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
    """The distinct choices of the prompts, and texts in which several choices follow the neutral premise.

    premise: the neutral premise
    bos: whether a beginning-of-text token is put in front
    items: the prompts
    Raises PromptError where the tokens of the premise and of a choice merge.
    """
    encoded, choices = encode(tokenizer, premise, bos), sorted({c for item in items for c in item.prompt.choices})
    ids = [continuation(tokenizer, encoded, choice) for choice in choices]
    return choices, [
        TextInput(encoded.ids, tuple(ids[i : i + _CHOICES_PER_ROW])) for i in range(0, len(ids), _CHOICES_PER_ROW)
    ]


def neutral_inputs(loaded: Loaded) -> tuple[list[TextInput], int]:
    """The neutral text in parts, each after the special tokens of a prompt, and the number of those special tokens."""
    encoded = encode(loaded.tokenizer, neutral_text(), loaded.bos)
    front, body = encoded.ids[: encoded.prefix], encoded.ids[encoded.prefix :]
    size = min(_NEUTRAL_TOKENS, loaded.context or _NEUTRAL_TOKENS) - len(front)
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return [TextInput((*front, *part), band=1) for part in parts if len(part) >= 8], len(front)


@cache
def neutral_text() -> str:
    """The neutral text: prose that contains none of the library's terms."""
    return resources.files("bindscope").joinpath("data/neutral.txt").read_text(encoding="utf-8")
