"""The kinds of record that the reference study's files hold. A record is known by its keys, never by a file's name."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

Task = Literal["recognition", "generation"]
Share = Annotated[float, Field(ge=0, le=1)]


class Row(BaseModel):
    """Keys beyond the declared ones are ignored; a number that is missing, NaN or infinite makes the record damaged."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=(), frozen=True)

    @classmethod
    def missing(cls, keys: set[str]) -> list[str]:
        """Needed keys that are not among these."""
        return [
            name
            for name, field in cls.model_fields.items()
            if field.is_required() and not keys & _names(name, field.validation_alias)
        ]


def _names(name: str, alias: Any) -> set[str]:
    return {str(choice) for choice in alias.choices} if isinstance(alias, AliasChoices) else {name}


def _blank(value: Any) -> Any:
    """A correlation that does not exist (a constant series) is written as an empty cell, None or nan."""
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
    eb_star: float
    eb_per_layer: list[float] = Field(min_length=1)
    best_layer: int
    entropy: float
    span_indices: list[int]
    n_term_tokens: int


class Behavior(_OfPrompt):
    score: Share = Field(validation_alias=AliasChoices("score", "behavioral_score"))
    is_correct: bool | None = None
    predicted_idx: int | None = None
    log_probs: list[float] | None = None
    text_out: str = Field("", validation_alias=AliasChoices("text_out", "generated_text"))


class Prompt(Row):
    term: str
    task: Task
    template: str
    prompt_id: str
    choices: list[str] | None = None
    answer_idx: int | None = None


class Summary(Row):
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
    term: str
    model: str
    checkpoint: str
    eb_star: float
    beh_avg: float


class Lead(Row):
    term: str
    r_lead: Maybe = Field(validation_alias=AliasChoices("r_lead", "r_forward"))
    r_lag: Maybe = Field(validation_alias=AliasChoices("r_lag", "r_backward"))
    model: str | None = None


class Decoupling(Row):
    term: str
    rho_early: Maybe
    rho_late: Maybe
    decouple_strict: bool | None = None
    model: str | None = None


class Control(Row):
    model: str
    checkpoint: str
    term: str
    control_group: str
    n_term_tokens: int = Field(ge=1)
    eb_star: float


class Tokenization(Row):
    model: str = Field(validation_alias=AliasChoices("model", "model_size"))
    term: str
    n_tokens: int
    token_ids: Annotated[list[int], BeforeValidator(_list)]


class Detail(Row):
    term: str
    prompt_id: str
    template: str
    score: Share
    text_out: str = ""


class FewShot(Row):
    model: str
    checkpoint: str
    zero_shot_mean: float
    few_shot_mean: float
    improvement_pp: float
    improvement_relative_pct: float | None = None
    zero_shot_details: list[Detail] = Field(min_length=1)
    few_shot_details: list[Detail] = Field(min_length=1)


class Accuracy(Row):
    accuracy: Share
    correct: int | None = Field(None, ge=0)
    total: int | None = Field(None, ge=1)


class Mean(Row):
    mean_score: Share


class Ablation(Row):
    """Conditions nested under each task: "BASELINE", "TOP-4 ablated", "RANDOM trial 1", "BOTTOM-4 ablated"."""

    model: str
    checkpoint: str
    recognition: dict[str, Accuracy] = Field(min_length=1)
    generation: dict[str, Mean] = Field(default_factory=dict)
    drops: dict[str, float] = Field(default_factory=dict)


class FlatAblation(Row):
    """One recognition accuracy a condition at the top level; the random one is a mean over trials."""

    model: str
    checkpoint: str
    baseline_rec: Share
    top_ablated_rec: Share
    rand_ablated_rec: Share
    bot_ablated_rec: Share
    n_prompts: int
    specificity: float | None = None


#: Endings of file names, and the kinds of record that may stand in such a file.
KINDS: dict[str, tuple[type[Row], ...]] = {
    ".jsonl": (Binding, Behavior, Prompt),
    ".csv": (Summary, TermPair, Lead, Decoupling, Control, Tokenization),
    ".json": (FewShot, Ablation, FlatAblation),
}
