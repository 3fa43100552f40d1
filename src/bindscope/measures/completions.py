"""The columns and the scoring of completions, which generation, few_shot and variability share."""

from __future__ import annotations

from bindscope.errors import MeasureError
from bindscope.measures.base import Values
from bindscope.measures.view import CompletionView
from bindscope.prompts.rubric import matches, rubric_score
from bindscope.schema import Column

COLUMNS = (
    Column(
        "shot", "text", "what stands in front: zero (nothing), the term's exemplar, its paraphrase, or a mismatched one"
    ),
    Column("exemplar_term", "text", "whose exemplar stands in front", missing="nothing stands in front"),
    Column("temperature", "number", "0 is greedy decoding", range=(0, None)),
    Column("seed", "integer", "of the random numbers", missing="greedy decoding has none"),
    Column("text", "text", "the completion"),
    Column("new_tokens", "integer", "its length", unit="tokens", range=(0, None)),
    Column("ended", "yes/no", "whether the model ended the text itself, before the limit"),
    Column(
        "decoded_alone", "yes/no", "whether it was decoded again by itself: two logits were nearly equal in the batch"
    ),
    Column(
        "score",
        "number",
        "distinct keywords / 3, at most 1, less 0.2 for each contradiction, at least 0",
        range=(0, 1),
        source="Tran 2026",
    ),
    Column("matched", "list of text", "keywords of the rubric in the text"),
    Column("contradicted", "list of text", "contradictions of the rubric in the text"),
    Column("copied", "list of text", "those of the keywords that stand in the exemplar"),
)


def scored(view: CompletionView) -> Values:
    """A completion scored by the keywords of its rubric: a value for each of `COLUMNS`.

    Raises MeasureError for a prompt without a rubric.
    """
    prompt = view.prompt
    if prompt.rubric is None:
        raise MeasureError(f"the prompt {prompt.id!r} has no rubric, so its completion cannot be scored")
    score, good, bad = rubric_score(view.text, prompt.rubric)
    return {
        "shot": prompt.shot,
        "exemplar_term": prompt.exemplar_term or None,
        "temperature": view.sampling.temperature,
        "seed": view.sampling.seed,
        "text": view.text,
        "new_tokens": view.new_tokens,
        "ended": view.ended,
        "decoded_alone": view.decoded_alone,
        "score": score,
        "matched": list(good),
        "contradicted": list(bad),
        "copied": list(matches(prompt.exemplar, good)),
    }
