"""The records that modules exchange: terms, prompts, checkpoints, protocols, provenance.

All are frozen and hold text and numbers only, no tensors and no models, so that every module can import this file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal

from bindscope.errors import RequestError

#: Part of the key of every result; raise it when the meaning of a stored column changes.
SCHEMA_VERSION = 3

Task = Literal["recognition", "generation", "carrier"]
Format = Literal["listed", "cloze"]
#: The position of the right answer among listed options: "rotated" asks each question once with the answer in each
#: position, "spread" moves the position from question to question, "given" keeps the order of the source (term files
#: give the answer first).
Order = Literal["rotated", "spread", "given"]
#: What stands in front of a generation prompt: nothing, the term's exemplar, its paraphrase, another term's exemplar.
Shot = Literal["zero", "exemplar", "paraphrase", "mismatched"]
Bos = Literal["default", "on", "off"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Question:
    """A recognition question.

    kind: kind of the question (definition, benefit, ...)
    stem: the beginning of a sentence that every choice continues
    answer: the right choice
    wrong: the wrong choices
    """

    kind: str
    stem: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Opening:
    """The beginning of a sentence that the model continues.

    kind: kind of the opening
    text: the beginning
    max_tokens: new tokens at most
    """

    kind: str
    text: str
    max_tokens: int = 20


@dataclass(frozen=True)
class Rubric:
    """How a completion is scored.

    keywords: phrases that a right completion contains
    contradictions: phrases that only a wrong completion contains
    """

    keywords: tuple[str, ...]
    contradictions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Term:
    """A multi-token expression, with the prompts that ask about it.

    name: its name, unique in a library
    written: its form inside a sentence ("ARIA attribute"), "" where that is the name
    aliases: other forms that count as the term
    definition: what it means
    source: where the definition comes from
    questions: recognition questions about it
    openings: sentences to continue
    rubric: how completions are scored, None where there are no openings
    exemplar: a sentence that explains the term with keywords of its rubric
    paraphrase: the same explanation without any keyword of the rubric
    """

    name: str
    written: str = ""
    aliases: tuple[str, ...] = ()
    definition: str = ""
    source: str = ""
    questions: tuple[Question, ...] = ()
    openings: tuple[Opening, ...] = ()
    rubric: Rubric | None = None
    exemplar: str = ""
    paraphrase: str = ""

    @property
    def surface(self) -> str:
        """The term as it is written inside a sentence."""
        return self.written or self.name


@dataclass(frozen=True)
class Prompt:
    """One text for a model.

    id: unique in a run; begins with the term
    term: the term
    text: the text
    task: recognition, generation, or carrier for a carrier sentence, which fits any expression
    aliases: other forms that count as the term
    kind: kind of the question or opening; number of a carrier sentence
    choices: texts that may continue a question
    answer: index of the right choice
    max_tokens: new tokens of a completion at most, None for the default
    format: whether the options are listed in the question, None where it comes from a prompt file
    rotation: by how many positions the options are shifted
    rubric: how a completion is scored
    group: "real", or the control group of the expression
    shot: what is put in front of a generation prompt
    exemplar: that sentence, "" for none
    exemplar_term: the term that it explains
    question: id that the rotations of a question, or the shots of an opening, share; "" where it is the prompt's own id
    """

    id: str
    term: str
    text: str
    task: Task
    aliases: tuple[str, ...] = ()
    kind: str = ""
    choices: tuple[str, ...] = ()
    answer: int | None = None
    max_tokens: int | None = None
    format: Format | None = None
    rotation: int = 0
    rubric: Rubric | None = None
    group: str = "real"
    shot: Shot = "zero"
    exemplar: str = ""
    exemplar_term: str = ""
    question: str = ""

    @property
    def shared(self) -> str:
        """The id that all rotations of the question, or all shots of the opening, share."""
        return self.question or self.id

    @property
    def binds(self) -> bool:
        """Whether binding is measured on this prompt.

        It is measured in rotation 0 only, since other rotations differ after the term, which causal attention cannot
        see, and only on prompts without an exemplar.
        """
        return self.rotation == 0 and self.shot == "zero"


@dataclass(frozen=True)
class Sampling:
    """How each token of a completion is chosen.

    temperature: 0 for greedy decoding, else tokens are drawn from softmax(logits / temperature)
    seed: seed of the random numbers, None for greedy decoding
    """

    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Span:
    """Where a term is in a tokenized prompt.

    tokens: positions s_1 < ... < s_k in the sequence that the model sees (BOS included)
    chars: start and end of the term in the characters of the prompt
    occurrences: how often the term occurs; the span is the first occurrence
    """

    tokens: tuple[int, ...]
    chars: tuple[int, int]
    occurrences: int

    @property
    def k(self) -> int:
        """Number of tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class CheckpointRef:
    """One checkpoint of a suite.

    suite: name of the suite
    repo: a hub repository or a local folder
    revision: a branch, tag or commit of a hub repository
    step: optimizer steps, None where they are not known
    tokenizer: repository or folder of the tokenizer, None where it is in `repo`
    gguf: name of the GGUF file in `repo`, None where the weights are in another format
    tokens: tokens seen in training, None where they are not known
    """

    suite: str
    repo: str
    revision: str | None = None
    step: int | None = None
    tokenizer: str | None = None
    gguf: str | None = None
    tokens: int | None = None

    @property
    def label(self) -> str:
        """The name of the checkpoint for people: its step, else its revision."""
        if self.step is not None:
            return f"step {self.step:,}"
        return self.revision or "final"

    @property
    def place(self) -> str:
        """The name of the checkpoint in tables and file names: the revision, or the name of its folder."""
        return self.revision or Path(self.repo).name

    @property
    def columns(self) -> dict[str, str | int | None]:
        """The first columns of its rows in every table: suite, revision, step."""
        return {"suite": self.suite, "revision": self.place, "step": self.step}


@dataclass(frozen=True)
class Identity:
    """The exact content of a checkpoint.

    repo: hub repository or folder
    commit: the resolved commit, None for a folder
    fingerprint: hash over the bytes of weights, config and tokenizer
    """

    repo: str
    commit: str | None
    fingerprint: str


#: A head is (layer, query head), both from 0.
Head = tuple[int, int]
Ranking = Literal["bsi", "excess", "previous_token", "named"]
Mode = Literal["zero", "mean", "resample", "published", "knockout"]


def check_heads(heads: Iterable[Head], layers: int, per_layer: int, what: str = "head") -> None:
    """Check that a model has some heads.

    heads: (layer, head) of each
    layers: number of layers
    per_layer: number of heads in a layer
    what: what a head is called in the error
    Raises RequestError for a head that the model does not have.
    """
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < per_layer):
            ends = f"layers go from 0 to {layers - 1}, {what}s from 0 to {per_layer - 1}"
            raise RequestError(f"there is no {what} {layer}.{head}: {ends}")


@dataclass(frozen=True)
class Ablation:
    """The settings of ablation: which heads are ablated, how, and what they are compared with.

    modes: how heads are ablated, see `engine.edits`
    rankings: scores that heads are ranked by: mean BSI, excess over its null, previous-token score, or "named" for the
        heads of the list `heads`
    heads: (layer, head) from 0, the top set of the ranking "named"
    k: number of heads in a set
    sweep: further sizes: numbers, or percentages of all heads ("2.8%")
    random: number of random sets for each ranking and size
    scope: random sets are drawn from the layers of the top heads ("layer") or from the whole model ("model")
    unit: ablate single query heads, or all query heads of a key-value head
    questions: number of questions of each term that are evaluated, None for all
    held_out: whether heads are ranked on prompts that are not evaluated
    generation: whether the openings are completed under each edit as well
    seed: seed of the random sets, questions and donors
    alpha: significance level
    """

    modes: tuple[Mode, ...] = ("zero",)
    rankings: tuple[Ranking, ...] = ("bsi",)
    heads: tuple[tuple[int, int], ...] = ()
    k: int = 4
    sweep: tuple[int | str, ...] = ()
    random: int = 199
    scope: Literal["layer", "model"] = "layer"
    unit: Literal["head", "kv_group"] = "head"
    questions: int | None = None
    held_out: bool = True
    generation: bool = False
    seed: int = 42
    alpha: float = 0.05

    def sizes(self, ranking: Ranking) -> tuple[int | str, ...]:
        """The distinct sizes of the sets of one ranking."""
        return (len(self.heads),) if ranking == "named" else tuple(dict.fromkeys((self.k, *self.sweep)))

    @property
    def least_random(self) -> int:
        """The fewest random sets with which p = (b + 1) / (R + 1) can reach alpha."""
        return math.ceil(1 / self.alpha) - 1


@dataclass(frozen=True)
class Protocol:
    """The settings that change numbers; they are part of the key of each result.

    format: whether the options are listed in a question, None where the prompts come from a file
    order: order of the options, None where the prompts come from a file
    bos: whether a beginning-of-text token is put in front
    premise: the neutral premise of the score PMI
    min_null: number of windows that a comparison with the null needs
    ablation: settings of ablation, None where nothing is ablated
    """

    format: Format | None = "listed"
    order: Order | None = "rotated"
    bos: Bos = "default"
    premise: str = "Answer:"
    min_null: int = 30
    ablation: Ablation | None = None


@dataclass(frozen=True)
class Provenance:
    """How a shard was computed; stored in the shard.

    versions: library -> version
    git_commit: commit of bindscope, None where it is not a git checkout
    git_dirty: whether the working tree differed from the commit
    device, dtype: what the model ran on and in
    bos: whether a beginning-of-text token was put in front
    attention: how attention was read
    identity: content of weights and tokenizer
    checkpoint: the checkpoint
    protocol: the settings
    started: start of the pass, ISO 8601, UTC
    seconds: wall time of the pass
    notes: messages about the checkpoint
    """

    versions: Mapping[str, str]
    git_commit: str | None
    git_dirty: bool | None
    device: str
    dtype: str
    bos: str
    attention: str
    identity: Identity
    checkpoint: CheckpointRef
    protocol: Protocol
    started: str
    seconds: float
    notes: tuple[str, ...] = field(default=())


def canonical(value: Any) -> str:
    """A value as JSON with sorted keys and no spaces, so that equal values give equal text."""

    def plain(x: Any) -> Any:
        if is_dataclass(x) and not isinstance(x, type):
            return asdict(x)
        raise TypeError(f"{type(x).__name__} has no canonical form")

    return json.dumps(value, default=plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(*values: Any) -> str:
    """SHA-256 (hex) over the canonical form of the values."""
    return hashlib.sha256(canonical(values).encode()).hexdigest()
