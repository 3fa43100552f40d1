"""Scores by hand, the published predictions, and the join of prompt and choice."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bindscope.errors import PromptError
from bindscope.measures.recognition import SCORES, scores
from bindscope.prompts.spans import continuation, encode
from conftest import shared


def test_scores_by_hand() -> None:
    by = scores([-6.0, -4.0], [3, 1], ["four", "naïve"], [-1.0, -9.0], gold=1)
    assert by["raw"].values.tolist() == [-6, -4]
    assert by["per_token"].values.tolist() == [-2, -4]
    assert by["per_byte"].values.tolist() == [-1.5, pytest.approx(-4 / 6)]  # ï is two bytes
    assert by["pmi"].values.tolist() == [-5, 5]
    assert {name: (s.predicted, s.margin) for name, s in by.items()} == {
        "raw": (1, 2),
        "per_token": (0, -2),
        "per_byte": (1, pytest.approx(-4 / 6 + 1.5)),
        "pmi": (1, 10),
    }


@given(st.lists(st.floats(-50, -0.01), min_size=2, max_size=6), st.data())
def test_margin_is_positive_exactly_where_gold_is_the_only_best(sums: list[float], data: st.DataObject) -> None:
    gold = data.draw(st.integers(0, len(sums) - 1))
    n = len(sums)
    found = scores(sums, [1] * n, ["x"] * n, [0.0] * n, gold)
    for name in SCORES:
        s = found[name]
        others = np.delete(s.values, gold)
        assert (s.margin > 0) == bool((s.values[gold] > others).all())
        if s.margin > 0:
            assert s.predicted == gold
        if s.margin < 0:
            assert s.predicted != gold


def test_published_predictions_are_the_largest_score() -> None:
    path = shared("published", "pilot_results", "behavioral", "160m_step15000_behavioral.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    checked = 0
    for row in rows:
        if row["task"] == "recognition":
            values = row["log_probs"]  # per-token means: raw of one token each
            found = scores(values, [1] * len(values), ["x"] * len(values), [0.0] * len(values), gold=0)["per_token"]
            assert found.predicted == row["predicted_idx"]
            assert (found.predicted == 0) == row["is_correct"]
            checked += 1
    assert checked == 6


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
def test_join_extends_the_prompt_or_is_an_error(words: PreTrainedTokenizerFast, choice: str) -> None:
    encoded = encode(words, "A screen reader is:", "on")
    try:
        ids = continuation(words, encoded, choice)
    except PromptError as error:
        named = str(error)
        assume(repr(choice) not in named)
        raise
    assert (*encoded.ids, *ids) == encode(words, f"A screen reader is: {choice}", "on").ids


def test_a_merging_tokenizer_is_named() -> None:
    """A tokenizer that joins the prompt's last word with the choice: "new york" is one token."""
    raw = Tokenizer(models.WordLevel({"in": 0, "new": 1, "new york": 2, "[U]": 3}, "[U]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r" (?!york)"), "removed")
    merging = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[U]")
    encoded = encode(merging, "in new", "off")
    with pytest.raises(PromptError, match=r"in new.*york"):
        continuation(merging, encoded, "york")


def test_a_prompt_that_ends_in_a_space_is_named(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(PromptError, match="white space"):
        continuation(words, encode(words, "A screen reader is ", "off"), "software")
