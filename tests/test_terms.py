"""The content: complete, balanced, and not answerable without knowing the terms. Prompts in and out of JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from bindscope.errors import PromptError, RequestError, UnknownName
from bindscope.records import Prompt, Question
from bindscope.terms.library import library, read
from bindscope.terms.prompts import LETTERS, build, read_jsonl, write_jsonl
from bindscope.terms.spans import find
from conftest import shared

TERMS = library().select(["set-A", "set-B"])
QUESTIONS = [(term, question) for term in TERMS for question in term.questions]
KINDS = ["definition", "benefit", "implementation", "failure", "audit"]


def test_sets_have_the_terms_of_the_study() -> None:
    sizes = {name: len(library().select(name)) for name in ("pilot-3", "set-A", "set-B")}
    assert sizes == {"pilot-3": 3, "set-A": 9, "set-B": 9}
    assert len(TERMS) == 11


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.name)
def test_every_term_is_complete(term) -> None:  # type: ignore[no-untyped-def]
    assert [q.kind for q in term.questions] == KINDS
    assert [o.kind for o in term.openings] == [*KINDS, "tutorial"]
    assert term.definition
    assert term.source
    texts = [q.stem for q in term.questions] + [o.text for o in term.openings]
    for text in texts:
        assert find(text, term.name, term.aliases), f"{term.name!r} is not in {text!r}"
    shown = {text[slice(*find(text, term.name, term.aliases)[0])] for text in texts}
    assert len(shown) >= 2, f"{term.name}: only {shown}; inflected or recased forms are wanted"


def test_answers_do_not_name_the_term() -> None:
    for term, question in QUESTIONS:
        content = set(term.name.split())
        assert not content & set(question.answer.lower().replace(",", "").split()), (term.name, question.answer)


def test_wrong_choices_are_answers_of_other_terms() -> None:
    """Within a kind each answer is right once and wrong three times: no choice is likelier than another by itself."""
    for kind in KINDS:
        right = Counter(q.answer for _, q in QUESTIONS if q.kind == kind)
        wrong = Counter(w for _, q in QUESTIONS if q.kind == kind for w in q.wrong)
        assert set(right.values()) == {1}
        assert wrong == Counter(dict.fromkeys(right, 3))


def _interval(hits: int, n: int, chance: float) -> bool:
    return binomtest(hits, n, chance).pvalue > 0.05


@pytest.mark.parametrize("pick", [max, min], ids=["longest", "shortest"])
def test_length_gives_nothing_away(pick) -> None:  # type: ignore[no-untyped-def]
    hits = 0.0
    for _, question in QUESTIONS:
        lengths = [len(c) for c in (question.answer, *question.wrong)]
        if lengths[0] == pick(lengths):
            hits += 1 / lengths.count(lengths[0])  # among equals the guesser draws lots
    assert _interval(round(hits), len(QUESTIONS), 0.25), hits


def test_choices_are_of_like_length() -> None:
    for _, question in QUESTIONS:
        lengths = [len(c) for c in (question.answer, *question.wrong)]
        assert max(lengths) / min(lengths) < 1.5, question


def test_words_shared_with_the_term_give_nothing_away() -> None:
    def overlap(term: str, choice: str) -> int:
        return len(set(term.split()) & set(choice.lower().split()))

    assert not any(overlap(term.name, q.answer) for term, q in QUESTIONS)


@pytest.mark.parametrize("rotate", [True, False])
def test_gold_stands_equally_often_in_each_place(rotate: bool) -> None:
    places = Counter(p.answer for p in build(TERMS, "listed", rotate) if p.task == "recognition")
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) - min(places.values()) <= (0 if rotate else 1)


def test_prompts_are_distinct_and_well_formed() -> None:
    prompts = build(TERMS, "listed", rotate=True)
    assert len(prompts) == 11 * (5 * 4 + 6)
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == len(prompts)
    for p in prompts:
        if p.task == "recognition":
            assert p.answer is not None
            assert f"{LETTERS[p.answer]}) {p.choices[p.answer]}\n" in p.text
            assert p.text.endswith("Answer:")


def test_rotations_differ_only_behind_the_term() -> None:
    """Binding is measured on one rotation; that is sound only if the others agree up to the term."""
    groups: dict[tuple[str, str], list[Prompt]] = {}
    for p in build(TERMS, "listed", rotate=True):
        if p.task == "recognition":
            groups.setdefault((p.term, p.kind), []).append(p)
    for recognition in groups.values():
        assert len(recognition) == 4
        ends = {p.text[: find(p.text, p.term, p.aliases)[0][1]] for p in recognition}
        assert len(ends) == 1
        assert {p.choices[p.answer] for p in recognition if p.answer is not None} == {
            q.answer for t, q in QUESTIONS if t.name == recognition[0].term and q.kind == recognition[0].kind
        }


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(UnknownName, match=r"set-C.*did you mean set-[AB]"):
        library().select("set-C")


_HEAD = "name: x\nterms:\n  - {name: a b, definition: d, source: s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("terms: []", "name"),
        ("name: x\nterms:\n  - {name: a b, definition: d}", "terms.0.source"),
        (_HEAD + ", colour: red}", "terms.0.colour"),
        (_HEAD + "}\nsets: {y: [c d]}", "'c d', which is not a term"),
        (_HEAD + ", recognition: [{kind: k, stem: t, answer: u}]}", "wrong"),
        (_HEAD + ", recognition: [{kind: k, stem: t, answer: u, wrong_from: [c]}]}", "'c' has no answer"),
        (_HEAD + ", recognition: [{kind: k, stem: t, answer: u, wrong: [u]}]}", "occurs twice"),
        ("name: [", "cannot read"),
    ],
)
def test_bad_term_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "terms.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message.replace("[", r"\[")) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


_text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@given(
    st.lists(
        st.tuples(_text, _text, st.lists(_text, min_size=2, max_size=5, unique=True), st.data()),
        min_size=1,
        max_size=4,
        unique_by=lambda row: row[0],
    )
)
def test_jsonl_gives_prompts_back(tmp_path_factory: pytest.TempPathFactory, rows) -> None:  # type: ignore[no-untyped-def]
    prompts = []
    for term, text, choices, data in rows:
        gold = data.draw(st.integers(0, len(choices) - 1))
        prompts.append(
            Prompt(
                f"{term}/r",
                term,
                text,
                "recognition",
                ("other",),
                "k",
                tuple(choices),
                gold,
                format="cloze",
                rotation=0,
            )
        )
        prompts.append(Prompt(f"{term}/g", term, text, "generation", (), "k", max_tokens=7))
    path = tmp_path_factory.mktemp("jsonl") / "p.jsonl"
    write_jsonl(prompts, path)
    assert read_jsonl(path) == tuple(prompts)


def test_library_prompts_round_trip(tmp_path: Path) -> None:
    prompts = build(TERMS, "listed", rotate=True)
    write_jsonl(prompts, tmp_path / "p.jsonl")
    assert read_jsonl(tmp_path / "p.jsonl") == prompts


def test_published_prompts_are_read() -> None:
    prompts = read_jsonl(shared("published", "pilot_prompts", "pilot_terms.jsonl"))
    assert len(prompts) == 12
    assert Counter(p.task for p in prompts) == {"recognition": 6, "generation": 6}
    assert all(find(p.text, p.term, p.aliases) for p in prompts)  # "alternative text" is an alias of ours
    assert {p.answer for p in prompts if p.task == "recognition"} == {0}


_GOOD = {
    "term": "alt text",
    "task": "recognition",
    "template": "Alt text is",
    "choices": ["a", "b"],
    "answer_idx": 0,
    "prompt_id": "r1",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": []}, "at least two"),
        ({"choices": ["a", ""]}, "empty"),
        ({"choices": ["a", "a"]}, "twice"),
        ({"answer_idx": 2}, "0 to 1"),
        ({"answer_idx": True}, "0 to 1"),
        ({"answer": "B"}, "'answer_idx' 0 is 'A'"),
        ({"task": "translation"}, "'task' must be"),
        ({"template": " "}, "'template' must be"),
        ({"prompt_id": 3}, "'prompt_id' must be"),
        ({"colour": "red"}, "unknown keys colour"),
        ({"format": "essay"}, "'format'"),
    ],
)
def test_bad_prompt_lines_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(_GOOD) + "\n\n" + json.dumps(_GOOD | {"prompt_id": "r2"} | change) + "\n")
    with pytest.raises(PromptError, match=message) as caught:
        read_jsonl(path)
    assert f"{path}:3:" in str(caught.value)


def test_broken_json_empty_file_and_repeated_ids(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("{not json}\n")
    with pytest.raises(PromptError, match=":1:"):
        read_jsonl(path)
    path.write_text("\n")
    with pytest.raises(PromptError, match="no prompts"):
        read_jsonl(path)
    path.write_text(json.dumps(_GOOD) + "\n" + json.dumps(_GOOD) + "\n")
    with pytest.raises(PromptError, match="unique"):
        read_jsonl(path)
    with pytest.raises(PromptError, match="cannot read"):
        read_jsonl(tmp_path / "absent.jsonl")


def test_cloze_shows_no_options() -> None:
    question = Question("k", "A screen reader is", "right", ("wrong",))
    prompts = build([TERMS[0].__class__("screen reader", questions=(question,))], "cloze")
    assert [p.text for p in prompts] == ["A screen reader is"]
