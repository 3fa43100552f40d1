"""Decoding in batches gives the tokens of `generate` on one prompt; sampling follows the softmax; scores by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

import models
from bindscope.cli import main
from bindscope.engine.generate import _batches, _padding_holds, _plain, complete
from bindscope.errors import MeasureError, RequestError
from bindscope.experiment import Experiment
from bindscope.measures.variability import SEEDS, TEMPERATURES
from bindscope.prompts.build import SHOTS, few_shot
from bindscope.prompts.library import library
from bindscope.prompts.rubric import matches, rubric_score
from bindscope.prompts.spans import find
from bindscope.records import Opening, Rubric, Sampling, Term
from bindscope.store import Store

PROMPTS = [(3, 4, 5), (9, 8, 7), (11, 2, 30), (6, 5), (40, 41, 42, 43, 44, 45, 46), (3, 4)]
LIMITS = [6, 6, 9, 6, 4, 9]


def _alone(model: PreTrainedModel, ids: tuple[int, ...], limit: int) -> list[int]:
    """The tokens of transformers' own greedy decoding, cut at the end token."""
    model.generation_config = GenerationConfig(eos_token_id=model.config.eos_token_id, pad_token_id=0)
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=limit)[0, len(ids) :].tolist()
    ends = model.config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return out[: next((i for i, token in enumerate(out) if token in ends), len(out))]


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_batches_give_the_tokens_of_generate(name: str) -> None:
    model = models.build(*models.ARCHITECTURES[name])
    before = model.generation_config
    found = complete(model, PROMPTS, LIMITS, [Sampling()] * len(PROMPTS))
    assert model.generation_config is before
    assert [list(w.ids) for w in found] == [_alone(model, p, n) for p, n in zip(PROMPTS, LIMITS, strict=True)]


@pytest.fixture(scope="module")
def neox() -> PreTrainedModel:
    return models.build(*models.ARCHITECTURES["gpt_neox"])


@pytest.mark.parametrize("padded", [True, False])
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), max_size=30), st.integers(1, 300))
def test_batches_hold_each_prompt_once_and_stay_within_their_budget(
    padded: bool, sizes: list[tuple[int, int]], budget: int
) -> None:
    ids, limits = [[0] * n for n, _ in sizes], [m for _, m in sizes]
    found = list(_batches(ids, limits, budget, padded))
    assert sorted(i for batch in found for i in batch) == list(range(len(sizes)))
    for batch in found:
        lengths = [len(ids[i]) for i in batch]
        assert limits[batch[0]] == max(limits[i] for i in batch)
        assert len(batch) == 1 or len(batch) * (max(lengths) + limits[batch[0]]) <= budget
        assert padded or len(set(lengths)) == 1


def test_where_padding_is_felt_prompts_of_one_length_go_together(
    neox: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that forgets the mask writes other tokens behind padding; the probe sees it."""
    expected = [_alone(neox, p, n) for p, n in zip(PROMPTS, LIMITS, strict=True)]
    plain = neox.forward

    def maskless(*args: object, attention_mask: object = None, position_ids: object = None, **kwargs: object) -> object:
        return plain(*args, **kwargs)

    monkeypatch.setattr(neox, "forward", maskless)
    with _plain(neox):
        assert not _padding_holds(neox)
    found = complete(neox, PROMPTS, LIMITS, [Sampling()] * len(PROMPTS))
    assert [list(w.ids) for w in found] == expected


def test_penalties_and_sampling_of_the_checkpoint_are_left_out(neox: PreTrainedModel) -> None:
    plain = complete(neox, PROMPTS, LIMITS, [Sampling()] * 6)
    before = neox.generation_config
    neox.generation_config = GenerationConfig(
        do_sample=True, repetition_penalty=5.0, temperature=3.0, max_new_tokens=2, eos_token_id=before.eos_token_id
    )
    try:
        assert complete(neox, PROMPTS, LIMITS, [Sampling()] * 6) == plain
    finally:
        neox.generation_config = before


def test_nearly_equal_logits_are_decoded_alone() -> None:
    """Every token is nearly as likely as every other: batches and single rows agree only because ties are found."""
    model = models.build(*models.ARCHITECTURES["llama"])
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight.copy_(weight[:1] + 1e-7 * weight)
    found = complete(model, PROMPTS, LIMITS, [Sampling()] * 6)
    assert [w.alone for w in found] == [True, True, True, True, False, True]  # one prompt has no other of its length
    assert [list(w.ids) for w in found] == [_alone(model, p, n) for p, n in zip(PROMPTS, LIMITS, strict=True)]


def test_the_end_token_ends_a_text_and_is_left_out(neox: PreTrainedModel) -> None:
    (free,) = complete(neox, PROMPTS[:1], [6], [Sampling()])
    before = neox.generation_config
    neox.generation_config = GenerationConfig(eos_token_id=[free.ids[2], 7])
    try:
        (cut, other) = complete(neox, [PROMPTS[0], PROMPTS[1]], [6, 6], [Sampling()] * 2)
    finally:
        neox.generation_config = before
    stop = next(i for i, token in enumerate(free.ids) if token in (free.ids[2], 7))
    assert cut.ids == free.ids[:stop]
    assert cut.ended
    assert not set(other.ids) & {free.ids[2], 7}


def test_a_model_without_end_and_pad_tokens_writes() -> None:
    kind, config = models.ARCHITECTURES["gpt_neox"]
    model = models.build(kind, config | {"eos_token_id": None, "pad_token_id": None, "bos_token_id": None})
    found = complete(model, PROMPTS, LIMITS, [Sampling()] * 6)
    assert [len(w.ids) for w in found] == LIMITS
    assert not any(w.ended for w in found)


@pytest.mark.parametrize("budget", [8, 40, 10_000])
def test_sampling_depends_on_the_seed_and_not_on_the_batch(neox: PreTrainedModel, budget: int) -> None:
    samplings = [Sampling(t, s) for t in (0.3, 0.7) for s in (1, 2)]
    jobs = [(p, n, d) for d in samplings for p, n in zip(PROMPTS, LIMITS, strict=True)]
    ids, limits, each = zip(*jobs, strict=True)
    once = complete(neox, ids, limits, each, batch_tokens=10_000)
    again = complete(neox, ids[::-1], limits[::-1], each[::-1], batch_tokens=budget)[::-1]
    assert [w.ids for w in again] == [w.ids for w in once]
    assert len({w.ids for w in once}) > len(PROMPTS)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.5])
def test_samples_follow_the_softmax(neox: PreTrainedModel, temperature: float) -> None:
    n, ids = 3000, PROMPTS[0]
    found = Counter(
        w.ids[0] for w in complete(neox, [ids] * n, [1] * n, [Sampling(temperature, s) for s in range(n)]) if w.ids
    )
    with torch.inference_mode():
        logits = neox(torch.tensor([ids])).logits[0, -1].double()
    p = (logits / temperature).softmax(-1).numpy()
    p[neox.config.eos_token_id] = 0  # an end token is left out of the text
    top = np.argsort(-p)[:12]
    seen = np.array([*[found[int(i)] for i in top], sum(found.values()) - sum(found[int(i)] for i in top)])
    share = np.array([*p[top], p.sum() - p[top].sum()]) / p.sum()
    assert chisquare(seen, share * seen.sum()).pvalue > 1e-3


def test_logits_that_are_not_finite_are_an_error() -> None:
    model = models.build(*models.ARCHITECTURES["gpt_neox"])
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(MeasureError, match="not finite during decoding"):
        complete(model, [(3, 4)], [2], [Sampling()])


RUBRIC = Rubric(("read aloud", "speech", "braille", "blind"), ("for deaf people", "a camera"))


@pytest.mark.parametrize(
    ("text", "score", "good", "bad"),
    [
        ("", 0.0, (), ()),
        ("it turns text into SPEECH", 1 / 3, ("speech",), ()),
        ("speech speech speech", 1 / 3, ("speech",), ()),
        ("it can read\n aloud, in Braille.", 2 / 3, ("read aloud", "braille"), ()),
        ("read aloud, speech, braille and blind", 1.0, ("read aloud", "speech", "braille", "blind"), ()),
        ("speeches, unblind, brailled", 0.0, (), ()),
        ("speech for deaf people", 1 / 3 - 0.2, ("speech",), ("for deaf people",)),
        ("a camera for deaf people", 0.0, (), ("for deaf people", "a camera")),
        (
            "read aloud, speech, braille, blind: a camera",
            0.8,
            ("read aloud", "speech", "braille", "blind"),
            ("a camera",),
        ),
    ],
)
def test_rubric_by_hand(text: str, score: float, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    found = rubric_score(text, RUBRIC)
    assert found == (pytest.approx(score), good, bad)


@given(st.text(max_size=40), st.lists(st.sampled_from(RUBRIC.keywords), max_size=5))
def test_rubric_score_is_a_share(text: str, extra: list[str]) -> None:
    score, good, _ = rubric_score(" ".join([text, *extra]), RUBRIC)
    assert 0 <= score <= 1
    assert set(extra) <= set(good)


def test_few_shot_prompts() -> None:
    terms = library().select("a11y-41")
    prompts = few_shot(terms)
    assert len(prompts) == 41 * 6 * 3
    by_name = {term.name: term for term in terms}
    for p in prompts:
        exemplar, opening = p.text.split("\n")
        assert exemplar == p.exemplar
        assert opening in {o.text for o in by_name[p.term].openings}
        assert p.rubric == by_name[p.term].rubric
        if p.shot == "mismatched":
            assert p.exemplar == by_name[p.exemplar_term].exemplar
            assert not find(p.exemplar, p.term, p.aliases)
        else:
            assert p.exemplar == getattr(by_name[p.term], p.shot)
        assert p.shot != "paraphrase" or not matches(p.exemplar, p.rubric.keywords)
        assert not p.binds
    assert Counter(p.shot for p in prompts) == dict.fromkeys(SHOTS, 246)


def _term(name: str, **more: object) -> Term:
    opening = Opening("k", f"The {name} is")
    return Term(name, openings=(opening,), rubric=RUBRIC, **more)  # type: ignore[arg-type]


def test_few_shot_says_what_it_lacks() -> None:
    full = {"exemplar": "A {} speech.", "paraphrase": "A {}."}

    def term(name: str) -> Term:
        return _term(name, **{k: v.format(name) for k, v in full.items()})

    with pytest.raises(RequestError, match="paraphrase of 'a b'"):
        few_shot([_term("a b", exemplar="a b"), term("c d")])
    with pytest.raises(RequestError, match="exemplar of 'a b'"):
        few_shot([_term("a b")])
    with pytest.raises(RequestError, match="second term"):
        few_shot([term("a b")])
    assert len(few_shot([term("a b"), term("c d")])) == 6


def test_generation_without_a_rubric_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nterms:\n  - {name: a b, generation: [{kind: k, prompt: An a b is}]}")
    experiment = Experiment(name="s", suites=("tiny",), terms=(str(path),))
    assert len(experiment.build_prompts()) == 1
    with pytest.raises(RequestError, match="'a b' has no rubric"):
        experiment.model_copy(update={"measures": ("binding", "recognition", "generation")}).build_prompts()
    path.write_text("name: mine\nterms: [a b]")
    with pytest.raises(RequestError, match="no term has a generation prompt"):
        experiment.model_copy(update={"measures": ("binding", "recognition", "generation")}).build_prompts()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, suite_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("written")
    experiment = f"name: s\nsuites: {suite_folder}\nterms: [skip link, alt text]\nmeasures: [few_shot, variability]\n"
    (folder / "s.yaml").write_text(experiment)
    assert main(["run", str(folder / "s.yaml"), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_tables_hold_every_prompt_and_draw(written: Path, words: PreTrainedTokenizerFast) -> None:
    store = Store(written, create=False)
    generation, few, grid = (store.read(name) for name in ("generation", "few_shot", "variability"))
    assert generation.groupby("step").size().tolist() == [12, 12]
    assert few.groupby(["step", "shot"]).size().unique().tolist() == [12]
    assert grid.groupby(["step", "temperature", "seed"]).size().to_dict() == {
        (step, t, s): 12 for step in (0, 10) for t in TEMPERATURES for s in SEEDS
    }
    cold = grid[grid["temperature"] == 0].merge(generation, on=["step", "prompt"])
    assert (cold["text_x"] == cold["text_y"]).all()
    terms = {term.name: term for term in library().select("pilot-3")}
    for row in pd.concat([generation, few, grid]).to_dict("records"):
        rubric = terms[row["term"]].rubric
        assert rubric is not None
        score, good, bad = rubric_score(row["text"], rubric)
        assert (row["score"], list(row["matched"]), list(row["contradicted"])) == (score, list(good), list(bad))
        assert row["new_tokens"] <= 20


def test_a_longer_study_measures_only_what_is_new(
    written: Path, suite_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"name: s\nsuites: {suite_folder}\nterms: [skip link, alt text]\n"
    (tmp_path / "s.yaml").write_text(text)
    out = tmp_path / "out"
    run = ["run", str(tmp_path / "s.yaml"), "--out", str(out)]
    assert main(run) == 0
    before = {p: p.stat().st_mtime_ns for p in (out / "shards").rglob("*.parquet")}
    (tmp_path / "s.yaml").write_text(text + "measures: generation\n")
    assert main(run) == 0
    after = {p: p.stat().st_mtime_ns for p in (out / "shards").rglob("*.parquet")}
    assert before.items() <= after.items()
    assert {p.name.split("-")[0] for p in after.keys() - before.keys()} == {"generation"}
    capsys.readouterr()
    pd.testing.assert_frame_equal(Store(out).read("generation"), Store(written).read("generation"))
