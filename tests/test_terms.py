"""The content: complete, balanced, and not answerable without knowing the terms. Prompts in and out of JSON lines."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from bindscope.errors import PromptError, RequestError, UnknownName
from bindscope.experiment import Experiment
from bindscope.experiment import load as load_study
from bindscope.prompts.build import LETTERS, build
from bindscope.prompts.jsonl import read_jsonl, write_jsonl
from bindscope.prompts.library import library, read
from bindscope.prompts.rubric import matches, rubric_score
from bindscope.prompts.spans import find
from bindscope.records import Order, Prompt, Question, Term
from conftest import shared

DOMAINS = {"a11y": "accessibility", "programming": "programming-12", "medical": "medical-12", "legal": "legal-12"}
TERMS = library().select("accessibility")
KINDS = ["definition", "benefit", "implementation", "failure", "audit"]
ASKED = [(domain, t) for domain, name in DOMAINS.items() for t in library().select(name)]
_ids = [term.name for _, term in ASKED]


def _questions(domain: str) -> list[tuple[Term, Question]]:
    return [(term, question) for d, term in ASKED if d == domain for question in term.questions]


def test_sets_have_the_terms_of_the_study() -> None:
    names = ("pilot-3", "set-A", "set-B", "tier-123", "wave-2", "a11y-41", *DOMAINS.values(), "generic-20")
    assert [len(library().select(name)) for name in names] == [3, 9, 9, 21, 12, 41, 43, 12, 12, 12, 20]
    assert set(library().select(["set-B", "tier-123", "wave-2"])) == set(library().select("a11y-41"))
    assert len(build(library().select("a11y-41"), order="given")) == 451


@pytest.mark.parametrize(("domain", "term"), ASKED, ids=_ids)
def test_every_term_is_complete(domain: str, term: Term) -> None:
    kinds = [q.kind for q in ASKED[0][1].questions] if domain == "a11y" else [q.kind for _, q in _questions(domain)[:5]]
    assert [q.kind for q in term.questions] == kinds
    assert len(set(kinds)) == 5
    assert [o.kind for o in term.openings][:5] == kinds
    assert len({o.kind for o in term.openings}) == 6
    assert term.definition
    assert term.source
    texts = [q.stem for q in term.questions] + [o.text for o in term.openings]
    assert len(set(texts)) == 11
    shown = set()
    for text in texts:
        (span,) = find(text, term.name, term.aliases)
        shown.add(text[slice(*span)])
    assert len(shown) >= 2, f"{term.name}: only {shown}; inflected or recased forms are wanted"


@pytest.mark.parametrize(("domain", "term"), ASKED, ids=_ids)
def test_rubrics_score_the_exemplar_and_not_the_prompt(domain: str, term: Term) -> None:
    assert term.rubric is not None
    assert len(term.rubric.keywords) >= 8
    assert len(term.rubric.contradictions) >= 2
    assert rubric_score(term.exemplar, term.rubric)[0] == 1.0
    assert rubric_score(term.paraphrase, term.rubric)[1] == ()
    for text in (term.name, *term.aliases, *[o.text for o in term.openings]):
        assert rubric_score(text, term.rubric)[1:] == ((), ()), text
    for phrase in term.rubric.contradictions:
        assert not matches(phrase, term.rubric.keywords), phrase
    for a, b in itertools.permutations(term.rubric.keywords, 2):
        assert not matches(a, [b]), f"{a!r} holds {b!r}, so one phrase would count twice"


def test_articles_are_right() -> None:
    """ "an alert dialog", "an ARIA attribute", "a unit test": the sound decides, which only these words hide."""
    vowel = re.compile(r"\b(a|an) ([A-Za-z]+)")
    silent, spelled = (
        {"hour", "honest", "html"},
        {"user", "unit", "use", "uniform", "unique", "useful", "united", "european", "one", "universal"},
    )
    for _, term in ASKED:
        for text in [*(q.stem for q in term.questions), *(q.answer for q in term.questions),
                     *(o.text for o in term.openings), term.exemplar, term.paraphrase, term.definition]:  # fmt: skip
            for article, word in vowel.findall(text):
                w = word.lower()
                sounds = (w[0] in "aeiou" or w in silent) and w not in spelled
                assert (article == "an") == sounds, (term.name, text)


@pytest.mark.parametrize("domain", DOMAINS)
def test_answers_do_not_name_the_term(domain: str) -> None:
    for term, question in _questions(domain):
        content = {w for form in (term.name, *term.aliases) for w in form.split()}
        assert not content & set(re.findall(r"\w+", question.answer.lower())), (term.name, question.answer)


@pytest.mark.parametrize("domain", DOMAINS)
def test_wrong_choices_are_answers_of_other_terms(domain: str) -> None:
    """Within a kind each answer is right once and wrong three times: no choice is likelier than another by itself."""
    members = library().sets["a11y-41" if domain == "a11y" else DOMAINS[domain]]
    for kind in {q.kind for _, q in _questions(domain)}:
        asked = [q for t, q in _questions(domain) if q.kind == kind and t.name in members]
        right = Counter(q.answer for q in asked)
        wrong = Counter(w for q in asked for w in q.wrong)
        assert set(right.values()) == {1}
        assert wrong == Counter(dict.fromkeys(right, 3))


def _interval(hits: int, n: int, chance: float) -> bool:
    return binomtest(hits, n, chance).pvalue > 0.05


@pytest.mark.parametrize("pick", [max, min], ids=["longest", "shortest"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_length_gives_nothing_away(domain: str, pick) -> None:  # type: ignore[no-untyped-def]
    hits = 0.0
    for _, question in _questions(domain):
        lengths = [len(c) for c in (question.answer, *question.wrong)]
        if lengths[0] == pick(lengths):
            hits += 1 / lengths.count(lengths[0])  # among equals the guesser draws lots
    assert _interval(round(hits), len(_questions(domain)), 0.25), hits


@pytest.mark.parametrize("order", ["rotated", "spread"])
def test_the_first_place_gives_nothing_away(order: Order) -> None:
    asked = [p for p in build(TERMS, "listed", order) if p.task == "recognition"]
    assert _interval(sum(p.answer == 0 for p in asked), len(asked), 0.25)


@pytest.mark.parametrize("domain", DOMAINS)
def test_choices_are_of_like_length(domain: str) -> None:
    for _, question in _questions(domain):
        lengths = [len(c) for c in (question.answer, *question.wrong)]
        assert max(lengths) / min(lengths) < 1.4, question


@pytest.mark.parametrize("domain", DOMAINS)
def test_words_shared_with_the_term_give_nothing_away(domain: str) -> None:
    for term, question in _questions(domain):
        words = {w for form in (term.name, *term.aliases) for w in form.split()}
        for choice in (question.answer, *question.wrong):
            assert not words & set(re.findall(r"\w+", choice.lower())), (term.name, choice)


@pytest.mark.parametrize("name", ["accessibility", "medical", "legal", "programming"])
def test_terms_near_each_other_are_never_set_against_each_other(name: str) -> None:
    path = resources.files("bindscope").joinpath(f"data/terms/{name}.yaml")
    rows = {row["name"]: row for row in yaml.safe_load(path.read_text(encoding="utf-8"))["terms"]}
    for row in rows.values():
        for question in row["recognition"]:
            assert not set(question["wrong_from"]) & set(row.get("near", []))
        for other in row.get("near", []):
            assert row["name"] in rows[other]["near"], f"{other} is near {row['name']}, but not the other way round"


@pytest.mark.parametrize("order", ["rotated", "spread", "given"])
def test_gold_stands_equally_often_in_each_place(order: Order) -> None:
    places = Counter(p.answer for p in build(TERMS, "listed", order) if p.task == "recognition")
    if order == "given":  # the published order: the answer first, as the file has it
        assert set(places) == {0}
        return
    assert set(places) == {0, 1, 2, 3}
    assert max(places.values()) - min(places.values()) <= (0 if order == "rotated" else 1)


def test_prompts_are_distinct_and_well_formed() -> None:
    prompts = build(TERMS, "listed", "rotated")
    assert len(prompts) == 43 * (5 * 4 + 6)
    assert len({p.id for p in prompts}) == len({p.text for p in prompts}) == len(prompts)
    for p in prompts:
        if p.task == "recognition":
            assert p.answer is not None
            assert f"{LETTERS[p.answer]}) {p.choices[p.answer]}\n" in p.text
            assert p.text.endswith("Answer:")


def test_rotations_differ_only_behind_the_term() -> None:
    """Binding is measured on one rotation; that is sound only if the others agree up to the term."""
    groups: dict[tuple[str, str], list[Prompt]] = {}
    for p in build(TERMS, "listed", "rotated"):
        if p.task == "recognition":
            groups.setdefault((p.term, p.kind), []).append(p)
    for recognition in groups.values():
        assert len(recognition) == 4
        ends = {p.text[: find(p.text, p.term, p.aliases)[0][1]] for p in recognition}
        assert len(ends) == 1
        assert {p.choices[p.answer] for p in recognition if p.answer is not None} == {
            q.answer for t, q in _questions("a11y") if t.name == recognition[0].term and q.kind == recognition[0].kind
        }


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(UnknownName, match=r"set-C.*did you mean set-[AB]"):
        library().select("set-C")


_HEAD = "name: x\nterms:\n  - {name: a b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("terms: []", "1: name: Field required"),
        ("name: x\nterms:\n  - {definition: d}", "3: terms.0.name"),
        ("name: x\nterms:\n  - a b\n  - name: c d\n    colour: red", "5: unknown field 'colour'; known: name, written"),
        (_HEAD + "}\nsets:\n  y: [c d]", "5: set 'y' names 'c d', which is not a term"),
        (_HEAD + ", recognition: [{kind: k, stem: t, answer: u}]}", "wrong"),
        (
            _HEAD + ", recognition: [{kind: k, stem: the a b is, answer: u, wrong_from: [c]}]}",
            "`wrong_from` names 'c', which has no",
        ),
        (_HEAD + ", recognition: [{kind: k, stem: the a b is, answer: u, wrong: [u]}]}", "occurs twice"),
        ("name: [", "cannot read"),
        ("name: x\nterms:\n  - a b\n  - a b", "4: the term 'a b' is defined twice"),
        ("name: x\nname: y\nterms: [a b]", "2: the key 'name' occurs twice"),
        ("name: x.yaml\nterms: [a b]", "1: name: the name of a term file is the name of a set"),
        (_HEAD + ", generation: [{kind: k, prompt: something else is}]}", "does not occur in 'something else is'"),
        (_HEAD + ", exemplar: This one lacks it.}", "does not occur in 'This one lacks it.'"),
        (_HEAD + ", written: b a}", "does not occur in 'b a'"),
        (_HEAD + ", rubric: {keywords: [fox, Fox]}}", "keywords holds a phrase twice"),
        (_HEAD + ", rubric: {keywords: []}}", "rubric.keywords"),
        (_HEAD + ", rubric: {keywords: [fox]}, paraphrase: An a b is a FOX.}", "paraphrase holds the keyword 'fox'"),
        ("name: x\nterms:\n  - {name: a b, aliases: [c d]}\n  - c d e", "alias 'c d' of 'a b' and 'c d e'"),
        ("name: x\nterms:\n  - {name: a b, aliases: [w c d z]}\n  - c d", "alias 'w c d z' of 'a b' and 'c d'"),
        ("name: x\nterms:\n  - scr\u0435en reader", "3: .*U.0435 CYRILLIC SMALL LETTER IE"),
        ("name: x\nterms:\n  - screen\u200b reader", "3: .*invisible character U.200B"),
        ("name: x\nterms: &a [*a]", "2: terms.0"),
        ("name: x\nterms:\n  - {name: a b, near: [c d]}\n  - c d", "3: 'c d' is near 'a b', but not the other way"),
        (_HEAD + ", rubric: {keywords: [f\u043ex]}}", "U.043E CYRILLIC"),
        (_HEAD + ", rubric: {keywords: [fox], contradictions: [a red fox]}}", "'a red fox' holds a keyword"),
        ("name: x\nterms: [a b, A B]", "'A B' is defined twice"),
    ],
)
def test_bad_term_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "terms.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_alone_and_texts_in_other_scripts_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "terms.yaml"
    path.write_text("name: mine\nterms: [программа экрана, スクリーン 読み, naïve guess]", encoding="utf-8")
    assert len(read(path).select("mine")) == 3


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
    prompts = build(TERMS, "listed", "rotated")
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
        ({"answer_idx": True}, "answer_idx: .*got True"),
        ({"answer": "B"}, "'answer_idx' 0 is 'A'"),
        ({"task": "translation"}, "task: Input should be 'recognition', 'generation' or 'carrier', got 'translation'"),
        ({"template": " "}, "template: must be a non-empty text, got ' '"),
        ({"prompt_id": 3}, "prompt_id: .*got 3"),
        ({"colour": "red"}, "unknown field 'colour'; known: term, task"),
        ({"format": "essay"}, "format: Input should be 'listed' or 'cloze', got 'essay'"),
        ({"rotation": 2**63, "question": "q"}, "rotation: "),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotation": 1}, "needs the 'question'"),
        ({"task": "generation", "shot": "exemplar", "exemplar": "Alt text"}, "needs the 'question'"),
        ({"task": "generation", "shot": "exemplar", "question": "r1"}, "must be part of the template"),
        ({"task": "generation", "exemplar": "Alt text"}, "must be part of the template"),
        ({"task": "generation", "shot": "several", "question": "r1"}, "shot: Input should be 'zero', .*got 'several'"),
        ({"task": "generation", "rubric": {"keywords": []}}, "rubric.keywords: .*at least 1 item"),
        ({"task": "generation", "max_tokens": True}, "max_tokens: .*got True"),
        ({"group": "nonsense"}, "'group' 'nonsense' is for carriers"),
        ({"task": "carrier"}, "names its sentence in 'kind'"),
    ],
)
def test_bad_groups_shots_and_rubrics_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(_GOOD | change) + "\n")
    with pytest.raises(PromptError, match=message):
        read_jsonl(path)


def test_every_kind_of_prompt_round_trips(tmp_path: Path) -> None:
    experiment = load_study("smollm2")
    prompts = experiment.build_prompts()
    assert {p.task for p in prompts} == {"recognition", "generation", "carrier"}
    assert {p.shot for p in prompts} == {"zero", "exemplar", "paraphrase", "mismatched"}
    write_jsonl(prompts, tmp_path / "p.jsonl")
    assert read_jsonl(tmp_path / "p.jsonl") == prompts


def _study(**fields: object) -> Experiment:
    return Experiment.model_validate({"name": "s", "suites": "tiny"} | fields)


def test_names_alone_are_carried_and_nothing_else(tmp_path: Path) -> None:
    prompts = _study(terms=["generic-20", "alt text"]).build_prompts()
    assert Counter(p.task for p in prompts) == {"carrier": 120, "recognition": 20, "generation": 6}
    assert {p.term for p in prompts if p.task == "carrier"} == set(library().sets["generic-20"])


def test_terms_and_sets_collide_loudly(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nterms: [alt text, stone wall]\nsets: {walls: [stone wall]}")
    control = tmp_path / "control.yaml"
    control.write_text("name: mine\nterms: [alt text]")
    assert len(_study(terms=[str(own)]).selected()) == 2
    with pytest.raises(RequestError, match="two different terms have the name 'alt text'"):
        _study(terms=["pilot-3", str(own)]).build_prompts()
    with pytest.raises(RequestError, match="'alt text' is in the terms and in the control group"):
        _study(terms=["pilot-3"], controls=[str(control)]).build_prompts()
    own.write_text("name: a11y-41\nterms: [stone wall]")
    with pytest.raises(RequestError, match="another set with the name 'a11y-41'"):
        _study(terms=["a11y-41", str(own)]).build_prompts()


def test_control_groups_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nterms: [stone wall, old barn, new road]\nsets: {walls: [stone wall], roads: [new road]}")
    groups = {p.group for p in _study(terms="pilot-3", controls=[str(own), "nonsense"]).build_prompts()}
    assert groups == {"real", "walls", "roads", "nonsense"}
    own.write_text("name: own\nterms: [stone wall, old barn]")
    assert {p.group for p in _study(terms="pilot-3", controls=str(own)).build_prompts()} == {"real", "own"}


def test_few_shot_of_a_prompt_file_comes_in_pairs(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    plain = {"term": "alt text", "task": "generation", "template": "Alt text is", "prompt_id": "g"}
    shot = plain | {"template": "Alt text speaks.\nAlt text is", "prompt_id": "x", "shot": "exemplar", "question": "g"}
    shot |= {"exemplar": "Alt text speaks."}
    path.write_text("\n".join(map(json.dumps, [plain, shot])))
    assert len(_study(prompts=path, measures="few_shot").build_prompts()) == 2
    path.write_text("\n".join(map(json.dumps, [plain, plain | {"prompt_id": "h"}, shot])))
    with pytest.raises(RequestError, match="'alt text/h' has either an opening without a 'exemplar' prompt"):
        _study(prompts=path, measures="few_shot").build_prompts()
    path.write_text(json.dumps(plain))
    with pytest.raises(RequestError, match="no prompt has shot 'exemplar'"):
        _study(prompts=path, measures="few_shot").build_prompts()


def test_published_protocol_is_a_preset() -> None:
    experiment = _study(terms="a11y-41", protocol="published")
    prompts = experiment.build_prompts()
    assert len(prompts) == 451
    assert {p.answer for p in prompts if p.task == "recognition"} == {0}
    assert experiment.protocol_of("on").order == "given"
    assert _study(terms="a11y-41").protocol_of("on").order == "rotated"
