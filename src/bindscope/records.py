"""The records that flow through the program: terms, prompts, checkpoints, studies, measurements.

All are frozen. Text and numbers only: no tensors, no models, so that every layer can import this file.
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

#: Part of every result's key: raised whenever the meaning of a stored column changes.
SCHEMA_VERSION = 3

Task = Literal["recognition", "generation", "carrier"]
Format = Literal["listed", "cloze"]
#: Where gold stands among listed options: once in each place, at a place that moves on from question to question, or
#: as the source gives it (term files give the answer first).
Order = Literal["rotated", "spread", "given"]
#: What stands in front of a generation prompt: nothing, the term's exemplar, its paraphrase, another term's exemplar.
Shot = Literal["zero", "exemplar", "paraphrase", "mismatched"]
Bos = Literal["default", "on", "off"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Question:
    """A recognition item: every choice continues `stem` as a sentence; `answer` is the right one."""

    kind: str
    stem: str
    answer: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Opening:
    """The beginning of a sentence that the model continues."""

    kind: str
    text: str
    max_tokens: int = 20


@dataclass(frozen=True)
class Rubric:
    """How a generated answer is scored: phrases that a right one holds, and phrases that only a wrong one holds."""

    keywords: tuple[str, ...]
    contradictions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Term:
    """A multi-token expression, with the prompts that ask about it.

    written: its form inside a sentence ("ARIA attribute"), the name itself where not given. exemplar: a sentence that
    explains the term in words of its rubric; paraphrase: the same without any keyword of the rubric.
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
    """One text fed to a model. For recognition, `choices` continue it and `answer` is the index of gold.

    `id` is unique in a run and begins with the term. `rotation` 0 is the one whose binding is measured: in other
    rotations only text after the first occurrence of the term differs, which causal attention cannot see. A carrier
    is a sentence that any expression fits; `group` is "real" or the control group of its expression. `shot` says what
    stands in front of a generation prompt, `exemplar` is that sentence, `exemplar_term` whose it is. `question` is the
    id that rotations of one question, or the shots of one opening, share; the prompt's own id where it has none.
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
        """What is asked, whatever the rotation or the shot."""
        return self.question or self.id

    @property
    def binds(self) -> bool:
        """Whether binding is measured on it: once per question, and never behind an exemplar."""
        return self.rotation == 0 and self.shot == "zero"


@dataclass(frozen=True)
class Sampling:
    """How each token of a completion is chosen: greedily at temperature 0, else from softmax(logits / temperature) with
    random numbers that follow from the seed."""

    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Span:
    """Where a term stands in a tokenized prompt.

    tokens: positions s_1 < ... < s_k in the sequence that the model sees (BOS included); chars: the term's character
    interval in the prompt; occurrences: how often the term occurs (the first is used).
    """

    tokens: tuple[int, ...]
    chars: tuple[int, int]
    occurrences: int

    @property
    def k(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class CheckpointRef:
    """One checkpoint of a suite: where its weights are, and where it stands in training.

    repo: a hub repository or a local folder; revision: a branch, tag or commit (hub only); step: optimizer steps,
    None where unknown; tokenizer: another repository or folder, where the weights' own has none; tokens: seen in
    training by then, None where unknown.
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
        if self.step is not None:
            return f"step {self.step:,}"
        return self.revision or "final"

    @property
    def place(self) -> str:
        """What tables and files call it within its suite: the revision, or the name of its folder."""
        return self.revision or Path(self.repo).name

    @property
    def columns(self) -> dict[str, str | int | None]:
        """What stands in front of its rows in every table: suite, revision, step."""
        return {"suite": self.suite, "revision": self.place, "step": self.step}


@dataclass(frozen=True)
class Identity:
    """What exactly was measured: the resolved commit and a hash over the bytes of weights, config and tokenizer."""

    repo: str
    commit: str | None
    fingerprint: str


#: A head is (layer, query head), both from 0.
Head = tuple[int, int]
Ranking = Literal["bsi", "excess", "previous_token", "named"]
Mode = Literal["zero", "mean", "resample", "published", "knockout"]


def check_heads(heads: Iterable[Head], layers: int, per_layer: int, what: str = "head") -> None:
    """Raises RequestError for one that the model does not have."""
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < per_layer):
            ends = f"layers go from 0 to {layers - 1}, {what}s from 0 to {per_layer - 1}"
            raise RequestError(f"there is no {what} {layer}.{head}: {ends}")


@dataclass(frozen=True)
class Ablation:
    """Which heads are taken out, how, and what they are compared with.

    rankings: by mean BSI, by BSI over its null, by previous-token score, or "named": `heads`, (layer, head) from 0, are
    the top set; modes: see `measure.edits`; k: heads in a set; sweep: further sizes, numbers or shares of all heads
    ("2.8%"); random: sets drawn for each ranking and size, from the layers of the top heads (scope "layer") or from the
    whole model; unit: query heads, or all query heads of a key-value head; questions: a term's questions that are
    asked, all if None; held_out: rank on prompts that are not evaluated; generation: continue the openings under each
    edit too.
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
        """Sizes of the sets of one ranking, each once."""
        return (len(self.heads),) if ranking == "named" else tuple(dict.fromkeys((self.k, *self.sweep)))

    @property
    def least_random(self) -> int:
        """The fewest random sets with which p = (b + 1) / (R + 1) can reach alpha."""
        return math.ceil(1 / self.alpha) - 1


@dataclass(frozen=True)
class Protocol:
    """Every choice that changes a number. Part of the key of each result.

    format and order are None where the prompts come from a file, which has its own.
    """

    format: Format | None = "listed"
    order: Order | None = "rotated"
    bos: Bos = "default"
    premise: str = "Answer:"
    min_null: int = 30
    ablation: Ablation | None = None


@dataclass(frozen=True)
class Provenance:
    """How a shard came to be, written beside its numbers. started: ISO 8601, UTC; seconds: wall time of its pass."""

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
    """JSON with sorted keys and no spaces: equal values give equal text."""

    def plain(x: Any) -> Any:
        if is_dataclass(x) and not isinstance(x, type):
            return asdict(x)
        raise TypeError(f"{type(x).__name__} has no canonical form")

    return json.dumps(value, default=plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(*values: Any) -> str:
    """SHA-256 (hex) over the canonical form of the values."""
    return hashlib.sha256(canonical(values).encode()).hexdigest()
