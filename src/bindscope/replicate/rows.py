"""The kinds of record in the reference study's files. A record is recognized by its keys, not by the name of its file.

The fields have the names and meanings of the published files.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

Task = Literal["recognition", "generation"]
Share = Annotated[float, Field(ge=0, le=1)]


class Row(BaseModel):
    """A record. Further keys are ignored; a number that is missing, NaN or infinite raises ValidationError."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=(), frozen=True)

    @classmethod
    def missing(cls, keys: set[str]) -> list[str]:
        """The required keys that are not among some keys."""
        return [
            name
            for name, field in cls.model_fields.items()
            if field.is_required() and not keys & _names(name, field.validation_alias)
        ]


def _names(name: str, alias: Any) -> set[str]:
    return {str(choice) for choice in alias.choices} if isinstance(alias, AliasChoices) else {name}


def _blank(value: Any) -> Any:
    """None for an empty cell, "None" or "nan": the files mark an undefined correlation (a constant series) so."""
    return None if isinstance(value, str) and value.strip().lower() in {"", "none", "nan"} else value


def _list(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


Maybe = Annotated[float | None, BeforeValidator(_blank)]


class _OfPrompt(Row):
    model: str
    checkpoint: str
    term: str
    task: Task
    prompt_id: str
    prompt_template: str


class Binding(_OfPrompt):
    """Binding of one prompt at one checkpoint."""

    eb_star: float
    eb_per_layer: list[float] = Field(min_length=1)
    best_layer: int
    entropy: float
    span_indices: list[int]
    n_term_tokens: int


class Behavior(_OfPrompt):
    """The answer to one prompt at one checkpoint."""

    score: Share = Field(validation_alias=AliasChoices("score", "behavioral_score"))
    is_correct: bool | None = None
    predicted_idx: int | None = None
    log_probs: list[float] | None = None
    text_out: str = Field("", validation_alias=AliasChoices("text_out", "generated_text"))


class Prompt(Row):
    """One prompt."""

    term: str
    task: Task
    template: str
    prompt_id: str
    choices: list[str] | None = None
    answer_idx: int | None = None


class Summary(Row):
    """Means over the prompts of one checkpoint."""

    model: str
    checkpoint: str
    rec_acc: float
    gen_mean: float
    beh_avg: float
    eb_star_mean: float
    eb_star_max: float
    best_layer_mode: int
    n_prompts: int


class TermPair(Row):
    """EB* and behavior of one term at one checkpoint."""

    term: str
    model: str
    checkpoint: str
    eb_star: float
    beh_avg: float


class Lead(Row):
    """Lagged correlations of one term over training."""

    term: str
    r_lead: Maybe = Field(validation_alias=AliasChoices("r_lead", "r_forward"))
    r_lag: Maybe = Field(validation_alias=AliasChoices("r_lag", "r_backward"))
    model: str | None = None


class Decoupling(Row):
    """Rank correlations of one term in the early and the late half of training."""

    term: str
    rho_early: Maybe
    rho_late: Maybe
    decouple_strict: bool | None = None
    model: str | None = None


class Control(Row):
    """EB* of one control term at one checkpoint."""

    model: str
    checkpoint: str
    term: str
    control_group: str
    n_term_tokens: int = Field(ge=1)
    eb_star: float


class Tokenization(Row):
    """The token ids of one term."""

    model: str = Field(validation_alias=AliasChoices("model", "model_size"))
    term: str
    n_tokens: int
    token_ids: Annotated[list[int], BeforeValidator(_list)]


class Detail(Row):
    """The score of one prompt in a few-shot file."""

    term: str
    prompt_id: str
    template: str
    score: Share
    text_out: str = ""


class FewShot(Row):
    """Scores with and without an exemplar at one checkpoint."""

    model: str
    checkpoint: str
    zero_shot_mean: float
    few_shot_mean: float
    improvement_pp: float
    improvement_relative_pct: float | None = None
    zero_shot_details: list[Detail] = Field(min_length=1)
    few_shot_details: list[Detail] = Field(min_length=1)


class Accuracy(Row):
    """Recognition accuracy under one condition of ablation."""

    accuracy: Share
    correct: int | None = Field(None, ge=0)
    total: int | None = Field(None, ge=1)


class Mean(Row):
    """Mean generation score under one condition of ablation."""

    mean_score: Share


class Ablation(Row):
    """Ablation at one checkpoint, with conditions under each task.

    The conditions are "BASELINE", "TOP-4 ablated", "RANDOM trial 1", "BOTTOM-4 ablated".
    """

    model: str
    checkpoint: str
    recognition: dict[str, Accuracy] = Field(min_length=1)
    generation: dict[str, Mean] = Field(default_factory=dict)
    drops: dict[str, float] = Field(default_factory=dict)


class FlatAblation(Row):
    """Ablation at one checkpoint, with one recognition accuracy for each condition (random: a mean over trials)."""

    model: str
    checkpoint: str
    baseline_rec: Share
    top_ablated_rec: Share
    rand_ablated_rec: Share
    bot_ablated_rec: Share
    n_prompts: int
    specificity: float | None = None


#: File extension -> the kinds of record in such files.
KINDS: dict[str, tuple[type[Row], ...]] = {
    ".jsonl": (Binding, Behavior, Prompt),
    ".csv": (Summary, TermPair, Lead, Decoupling, Control, Tokenization),
    ".json": (FewShot, Ablation, FlatAblation),
}
