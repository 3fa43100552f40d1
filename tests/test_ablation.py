"""Heads taken out: a planted head is found, sets and donors are what they should be, verdicts follow their rules."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import measuring
import models
from bindscope.checkpoints.load import Loaded
from bindscope.engine.engine import Engine
from bindscope.engine.prepare import TokenizedPrompt, prepare
from bindscope.engine.selfcheck import SelfCheck
from bindscope.errors import MeasureError, RequestError
from bindscope.measures import ablation as a
from bindscope.measures.head_sets import HeadSet, scores, sets
from bindscope.measures.procedure import Context, Parts, Rows
from bindscope.prompts.build import build
from bindscope.prompts.library import library
from bindscope.prompts.spans import find
from bindscope.records import Ablation, CheckpointRef, Prompt, Protocol, Rubric
from bindscope.tables.ablation import effects

HEAD = (1, 3)
TERMS, TOLD = 12, 6  # terms in all, and those whose answer only the planted head knows
D, HEADS, SIZE = 384, 64, 6
MODES = ("zero", "mean", "resample", "published", "knockout")
VOCABULARY = [
    "<|endoftext|>", "<unk>", *(f"{letter}{i}" for letter in "abc" for i in range(TERMS)),
    "please", "say", "the", "now", "tell", "me", "about", "it", "goes", "with",
]  # fmt: skip
ID = {word: i for i, word in enumerate(VOCABULARY)}
REF = CheckpointRef("planted", "planted", "step1", 1)


def _planted() -> Loaded:
    """Terms "a0 b0" ... "a11 b11" with answers "c0" ... "c11". The planted head looks from b back to a; of the first
    six it tells the answer, of which b alone suggests a wrong one. Of the others b alone gives the answer."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=D, n_layer=2, n_head=HEADS, n_positions=256, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=False, n_inner=8,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in (model.transformer.wte.weight, model.transformer.wpe.weight, model.lm_head.weight):
            parameter.zero_()
        model.transformer.wte.weight[:, : len(VOCABULARY)] = torch.eye(len(VOCABULARY))
        for block in model.transformer.h:
            block.mlp.c_proj.weight.zero_()
        layer, head = HEAD
        attention, first = model.transformer.h[layer].attn, head * SIZE
        parts = attention.c_attn.weight.view(D, 3, D)[:, :, first : first + SIZE]  # query, key, value
        parts.zero_()
        attention.c_proj.weight[first : first + SIZE] = 0
        for i in range(TERMS):
            parts[ID[f"b{i}"], 0, 0] = parts[ID[f"a{i}"], 1, 0] = 1.0
            told = i < TOLD
            model.lm_head.weight[ID[f"c{(i + 1) % TOLD if told else i}"], ID[f"b{i}"]] = 0.5 if told else 1.0
            if told:
                parts[ID[f"a{i}"], 2, i] = 0.1
                attention.c_proj.weight[first + i, len(VOCABULARY) + i] = 1.0
                model.lm_head.weight[ID[f"c{i}"], len(VOCABULARY) + i] = 1.0
    raw = Tokenizer(tokenizer_models.WordLevel(ID, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", unk_token="<unk>")
    return Loaded(model, words, REF, None, "off")


def _prompts() -> list[Prompt]:
    out = []
    for i in range(TERMS):
        base = 0 if i < TOLD else TOLD
        choices = [f"c{base + (i + n) % TOLD}" for n in range(3)]
        shown, term = (*choices[i % 3 :], *choices[: i % 3]), f"a{i} b{i}"
        gold = shown.index(choices[0])
        for kind, frame in (("x", "please say the"), ("y", "now tell me about the")):
            text, name = f"{frame} {term}", f"{term}/{kind}"
            out.append(Prompt(name, term, text, "recognition", (), kind, shown, gold, question=name))
        rubric = Rubric((choices[0],))
        out.append(Prompt(f"{term}/g", term, f"it goes with {term}", "generation", max_tokens=1, rubric=rubric))
    return out


@pytest.fixture(scope="module")
def planted() -> Loaded:
    return _planted()


@pytest.fixture(scope="module")
def items(planted: Loaded) -> list[TokenizedPrompt]:
    return [prepare(planted, prompt) for prompt in _prompts()]


Progress = Callable[[float], None]
Found = Mapping[str, Mapping[str, Sequence[Any]]]


def _ablate(
    planted: Loaded,
    items: Sequence[TokenizedPrompt],
    spec: Ablation,
    parts: Parts | None = None,
    progress: Progress | None = None,
    packed: bool = True,
) -> Found:
    with Engine(planted, SelfCheck(rows=0.0, logits=0.0, edit=1.0, packed=packed)) as engine:
        context = Context(
            engine=engine,
            prompts=items,
            choices=Protocol(ablation=spec, min_null=1),
            previous_token=np.zeros((planted.layers, planted.heads)),
            parts=parts,
            progress=progress,
        )
        found = a.ablate(context)
    for table in a.ablation.tables:
        table.arrow(found[table.name])  # as it declares
    return found


def _frames(found: Found) -> tuple[pd.DataFrame, pd.DataFrame]:
    place: dict[str, Any] = {"suite": "planted", "revision": "step1", "step": 1}
    one, two = (pd.DataFrame(dict(found[name])).assign(**place) for name in ("ablation", "ablation_sets"))
    return one, two


def _effect(planted: Loaded, items: Sequence[TokenizedPrompt], spec: Ablation) -> pd.DataFrame:
    return effects(*_frames(_ablate(planted, items, spec)), 1 / 3).set_index("outcome")


SPEC = Ablation(k=1, random=99, questions=1)


def test_the_planted_head_is_found(planted: Loaded, items: list[TokenizedPrompt]) -> None:
    steps: list[float] = []
    tables = _ablate(planted, items, SPEC, progress=steps.append)
    assert sum(steps) == pytest.approx(a.steps(SPEC))
    assert a.steps(SPEC) == 102
    ablation, chosen = _frames(tables)
    assert chosen.loc[chosen["set"] == "top", "heads"].tolist() == [[f"{HEAD[0]}.{HEAD[1]}"]]
    found = effects(ablation, chosen, 1 / 3).set_index("outcome").loc["accuracy"]
    assert found["baseline"] == 1
    planted_too = [f"{HEAD[0]}.{HEAD[1]}" in heads for heads in chosen.loc[chosen["set"] == "random", "heads"]]
    assert found["p"] == pytest.approx((sum(planted_too) + 1) / 100)  # a draw of the planted head costs as much
    assert found["p"] <= 0.05
    assert found["verdict"] == "coupled"
    assert found["specificity"] == pytest.approx(TOLD / TERMS * (1 - np.mean(planted_too)))
    assert found["drop_bottom"] == 0
    score = ablation[ablation["set"] == "top"].set_index("term")["score"]
    assert score.to_dict() == {f"a{i} b{i}": float(i >= TOLD) for i in range(TERMS)}
    margin = ablation.pivot_table(index="prompt", columns="set", values="margin")
    assert abs(margin["bottom"] - margin["baseline"]).max() < 0.05 * margin["baseline"].min()
    assert (margin["baseline"] - margin["top"])[:1].item() > 5


def test_modes_agree_where_they_must(planted: Loaded, items: list[TokenizedPrompt]) -> None:
    """Without value biases published is zero. What the head says elsewhere tells no answer: mean and resample too take
    the same terms away, and so does cutting the one edge inside the term."""
    ablation, chosen = _frames(_ablate(planted, items, replace(SPEC, modes=MODES, random=19)))
    keys = ["set", "draw", "prompt"]
    one, other = (ablation[ablation["mode"] == m].set_index(keys)[["score", "margin"]] for m in ("zero", "published"))
    pd.testing.assert_frame_equal(one, other)
    top = ablation[ablation["set"] == "top"].pivot_table(index="prompt", columns="mode", values="score")
    assert top.nunique(axis=1).eq(1).all()
    found = effects(ablation, chosen, 1 / 3)
    assert list(found["mode"].unique()) == list(MODES)
    assert set(found["verdict"]) == {"coupled"}
    loss = found[found["outcome"] == "margin"].set_index("mode")["loss_top"]
    assert abs(loss["knockout"]) < 1e-6  # neutral text has no term
    assert loss["zero"] == loss["published"] != 0


@pytest.mark.parametrize("mode", MODES)
def test_openings_are_continued_under_the_edit(mode: Any, planted: Loaded, items: list[TokenizedPrompt]) -> None:
    spec = replace(SPEC, random=2, generation=True, modes=(mode,))
    ablation, chosen = _frames(_ablate(planted, items, spec))
    score = ablation[ablation["task"] == "generation"].pivot_table(index="term", columns=["set"], values="score")
    right = score["baseline"].max()
    assert (score[["baseline", "bottom", "random"]] == right).all(axis=None)
    others = 0 if mode == "resample" else right  # what the head says elsewhere may be another term's answer
    assert (score.loc[[f"a{i} b{i}" for i in range(TOLD)], "top"] == 0).all()
    assert (score.loc[[f"a{i} b{i}" for i in range(TOLD, TERMS)], "top"] >= others).all()
    assert "generation" in set(effects(ablation, chosen, 1 / 3)["outcome"])


def test_named_heads_are_the_top_set(planted: Loaded, items: list[TokenizedPrompt]) -> None:
    named = ((0, 5), HEAD)
    spec = replace(SPEC, rankings=("named", "bsi"), heads=named, random=19)
    ablation, chosen = _frames(_ablate(planted, items, spec))
    top = chosen[chosen["set"] == "top"].set_index("ranking")
    assert top["heads"].to_dict() == {"named": ["0.5", "1.3"], "bsi": ["1.3"]}
    assert top["k"].to_dict() == {"named": 2, "bsi": 1}
    drawn = chosen[(chosen["set"] == "random") & (chosen["ranking"] == "named")]["heads"]
    assert len(drawn) == 19
    assert all([h.split(".")[0] for h in heads] == ["0", "1"] for heads in drawn)
    found = effects(ablation, chosen, 1 / 3).set_index(["ranking", "outcome"])
    assert found.loc[("named", "accuracy"), "top"] == found.loc[("bsi", "accuracy"), "top"] == 1 - TOLD / TERMS
    with pytest.raises(RequestError, match=r"no head 1\.64: layers go from 0 to 1, heads from 0 to 63"):
        _ablate(planted, items, replace(spec, heads=((1, HEADS),)))


def test_evaluated_and_ranked_on(items: list[TokenizedPrompt]) -> None:
    spec = Ablation(questions=1)
    chosen = a.evaluated(items, spec)
    assert [i.prompt.id for i in chosen] == [f"a{i} b{i}/{'xy'[i % 2]}" for i in range(TERMS)]
    ranked = a.ranked_on(items, chosen, spec)
    assert not {i.prompt.shared for i in ranked} & {i.prompt.shared for i in chosen}
    assert len(ranked) + len(chosen) == len(items)
    assert len(a.ranked_on(items, chosen, replace(spec, held_out=False))) == len(items)
    questions = [i for i in items if i.prompt.task == "recognition"]
    assert len(a.evaluated(items, Ablation())) == len(questions)
    with pytest.raises(RequestError, match="every prompt is evaluated"):
        a.ranked_on(questions, questions, spec)
    with pytest.raises(RequestError, match="recognition questions"):
        a.evaluated([i for i in items if i.prompt.task == "generation"], spec)


def test_donors_are_other_terms_and_long_enough(planted: Loaded, items: list[TokenizedPrompt]) -> None:
    rng = np.random.default_rng(0)
    chosen = [items[i] for i in rng.permutation(len(items)) if items[i].choices]
    neutral = [tuple(range(10)), tuple(range(20)), tuple(range(5))]
    whole = [(i.prompt.term, (*i.encoded.ids, *i.choices[0])) for i in chosen]
    asked = [(i, len(i.encoded.ids)) for i in chosen]
    donors = a._donors(asked, whole, neutral, rng)
    assert len(donors) == 2 * TERMS
    for (item, need), donor in zip(asked, donors, strict=True):
        assert len(donor) >= need
        assert donor[: len(item.encoded.ids)] != item.encoded.ids
        assert item.span is not None
        assert not {item.encoded.ids[t] for t in item.span.tokens} & set(donor)
    texts = a._neutral_donors(neutral, rng)
    assert all(len(donor) >= len(text) for donor, text in zip(texts, neutral, strict=True))
    assert all(donor != text for donor, text in zip(texts, neutral, strict=True))
    one = next(i for i in chosen if i.prompt.id == "a0 b0/y")
    assert a._donors([(one, 29)], whole, neutral, rng) == [(*range(10), *range(1, 20))[:29]]  # neutral text where it is
    with pytest.raises(
        RequestError, match=r"no text about another term is as long as the prompt 'a0 b0/y' \(99 tokens\)"
    ):
        a._donors([(one, 99)], whole, neutral, rng)


class _Memory:
    """Blocks as JSON, as a store keeps them; the process "dies" when asked to keep one more than `room`."""

    def __init__(self, room: int) -> None:
        self.room, self.kept, self.put_now = room, dict[str, str](), list[str]()

    def get(self, name: str) -> Rows | None:
        return json.loads(self.kept[name]) if name in self.kept else None

    def put(self, name: str, rows: Rows) -> None:
        if len(self.kept) == self.room:
            raise KeyboardInterrupt
        self.kept[name] = json.dumps(rows)
        self.put_now.append(name)


@pytest.fixture(scope="module")
def whole(planted: Loaded, items: list[TokenizedPrompt]) -> Any:
    """What an ablation gives that nothing interrupts."""
    return _ablate(planted, items, TWO_MODES)


TWO_MODES = replace(SPEC, modes=("zero", "mean"), random=5)


@pytest.mark.parametrize("room", [0, 1, 4, 8, 14])
def test_an_interrupted_run_goes_on(
    room: int, planted: Loaded, items: list[TokenizedPrompt], whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TWO_MODES
    memory = _Memory(room)
    with pytest.raises(KeyboardInterrupt):
        _ablate(planted, items, spec, memory)
    assert len(memory.kept) == room
    runs: list[int] = []
    edited = Engine.edited
    monkeypatch.setattr(Engine, "edited", lambda *args, **more: runs.append(len(args[2])) or edited(*args, **more))
    memory.room, memory.put_now = 99, []
    steps: list[float] = []
    assert _ablate(planted, items, spec, memory, steps.append) == whole
    assert len(memory.put_now) == sum(runs) == 1 + 2 * 7 - room  # nothing twice, nothing left out
    assert steps[0] == room  # at once, so that the time left is that of what is still to do
    assert sum(steps) == pytest.approx(a.steps(spec))
    runs.clear()
    assert _ablate(planted, items, spec, memory) == whole
    assert runs == []


def test_an_edit_that_changes_nothing_is_an_error(items: list[TokenizedPrompt]) -> None:
    dead = _planted()
    with torch.no_grad():
        dead.model.transformer.h[HEAD[0]].attn.c_proj.weight.zero_()
    with pytest.raises(MeasureError, match=r"heads 1\.3 \(zero\) changes no margin"):
        _ablate(dead, items, replace(SPEC, random=2))
    with pytest.raises(MeasureError, match="packed"):
        _ablate(dead, items, SPEC, packed=False)


# Sets of heads.


@given(st.data())
def test_sets_are_what_was_asked_for(data: st.DataObject) -> None:
    draw = data.draw
    L, groups, per = draw(st.integers(1, 4)), draw(st.integers(2, 6)), draw(st.integers(1, 3))
    unit, scope = draw(st.sampled_from(["head", "kv_group"])), draw(st.sampled_from(["layer", "model"]))
    size = per if unit == "kv_group" else 1
    units = groups * per // size
    k = draw(st.integers(1, L * units // 2))
    values = np.random.default_rng(draw(st.integers(0, 99))).random((L, groups * per)).round(draw(st.integers(1, 5)))
    spec = Ablation(k=k, random=3, unit=unit, scope=scope, seed=draw(st.integers(0, 9)))
    means = values.reshape(L, units, size).mean(2)
    threshold = np.sort(means.ravel())[-k:]
    base, top, bottom, *random = sets({"bsi": values}, spec, groups)
    assert base == HeadSet(None, "baseline", 0, 0, ())
    assert [s.draw for s in random] == [0, 1, 2]
    for s in (top, bottom, *random):
        chosen = {(layer, head // size) for layer, head in s.heads}
        assert len(set(s.heads)) == len(s.heads) == k * size  # whole units only
        assert len(chosen) == s.k == k
        assert all(0 <= layer < L and 0 <= head < groups * per for layer, head in s.heads)
    assert not set(top.heads) & set(bottom.heads)
    for s, expected in ((top, threshold), (bottom, np.sort(means.ravel())[:k])):
        np.testing.assert_allclose(sorted(means[i, h // size] for i, h in s.heads[::size]), expected)
    for s in random:
        if scope == "layer":
            assert sorted(layer for layer, _ in s.heads) == [layer for layer, _ in top.heads]
    assert list(sets({"bsi": values}, spec, groups)) == [base, top, bottom, *random]


def test_sets_depend_on_the_seed_and_not_on_the_sweep() -> None:
    found = {"bsi": np.random.default_rng(0).random((6, 12))}
    spec = Ablation(k=4, random=5)
    alone = list(sets(found, spec, 12))
    swept = list(sets(found, replace(spec, sweep=(2, 4, 8)), 12))
    assert [s for s in swept if s.k in (0, 4)] == alone
    assert [s.k for s in swept[1::7]] == [4, 2, 8]
    other = list(sets(found, replace(spec, seed=1), 12))
    assert other[:3] == alone[:3]
    assert other[3:] != alone[3:]


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_the_top_set_is_one_more_draw(scope: str) -> None:
    """Every head of a layer is drawn equally often, top or not; without that p would be too small."""
    found = {"bsi": np.random.default_rng(3).random((2, 6))}
    spec = Ablation(k=3, random=4000, scope=scope)  # type: ignore[arg-type]
    _, top, _, *random = sets(found, spec, 6)
    counts = Counter(head for s in random for head in s.heads)
    for layer in range(2):
        size = 1.5 if scope == "model" else sum(at == layer for at, _ in top.heads)
        for head in range(6):
            assert counts[layer, head] == pytest.approx(4000 * size / 6, abs=5 * np.sqrt(4000 * size / 6) + 1e-9)


def test_sets_that_cannot_be() -> None:
    values = np.zeros((2, 8))
    values[0, :5] = 1
    for k in (0, 9):
        with pytest.raises(RequestError, match=f"k = {k}: the model has 16 heads; use a k from 1 to 8"):
            list(sets({"bsi": values}, Ablation(k=k), 8))
    with pytest.raises(RequestError, match="k = 5: the model has 8 key-value heads"):
        list(sets({"bsi": values}, Ablation(k=5, unit="kv_group"), 4))
    assert len(list(sets({"bsi": values}, Ablation(k=5, random=7), 8))) == 10
    assert len(list(sets({"bsi": values}, Ablation(k=5, scope="model", random=7), 8))) == 10
    with pytest.raises(RequestError, match="excess"):
        list(sets({"bsi": values}, Ablation(rankings=("excess",)), 8))


def test_scores_by_hand(words: PreTrainedTokenizerFast) -> None:
    kind, config = models.ARCHITECTURES["gpt_neox"]
    model = models.build(kind, config | {"vocab_size": len(words), "max_position_embeddings": 512})
    loaded = Loaded(model, words, REF, None, "on")
    prompts = [p for p in build(library().select("pilot-3"), "cloze") if p.binds]
    items = [prepare(loaded, p) for p in prompts]
    pts = np.random.default_rng(0).random((3, 6))
    with models.engine(model) as engine:
        engine.loaded = loaded
        context = Context(engine=engine, prompts=items, choices=Protocol(min_null=1), previous_token=pts)
        found, lacking = scores(context, items)
        with pytest.raises(RequestError, match="has its term in two tokens"):
            scores(context, [replace(i, span=None) for i in items])
        none, reason = scores(replace(context, choices=Protocol(min_null=10**6)), items)
    assert lacking == ""
    assert set(none) == {"bsi", "previous_token"}
    assert reason.endswith("null windows, 1000000 needed")
    binding = measuring.tables(loaded, prompts, Protocol(min_null=1), ["binding"])["binding"]
    kept_rows = binding[binding["bsi"].notna()]
    np.testing.assert_allclose(found["bsi"].ravel(), np.mean(np.stack(kept_rows["bsi"].to_list()), 0))
    # Excess of a head has one definition: that of the stored table.
    null = np.mean(np.stack(kept_rows["null_bsi"].to_list()), 0)
    np.testing.assert_allclose(found["excess"].ravel(), found["bsi"].ravel() - null, atol=1e-12)
    assert found["previous_token"] is pts
    model.set_attn_implementation("eager")
    kept = [i for i in items if i.span]
    by_k: dict[int, dict[tuple[int, ...], np.ndarray]] = {}
    for item in kept:
        with torch.inference_mode():
            maps = torch.stack(model(torch.tensor([item.encoded.ids]), output_attentions=True).attentions)[:, 0]
        A, n = maps.double().numpy(), len(item.encoded.ids)
        places = find(item.encoded.text, item.prompt.term, item.prompt.aliases)
        mine = {t for t, (i, j) in enumerate(item.encoded.offsets) for start, end in places if i < end and start < j}
        for k in {i.span.k for i in kept}:  # every text has windows for every k
            for start in range(1, n - k + 1):
                window = range(start, start + k)
                if not mine & set(window):
                    pairs = np.mean([A[:, :, i, j] for i in window for j in window if i > j], 0)
                    by_k.setdefault(k, {})[item.encoded.ids[: start + k]] = pairs  # once for each distinct text
    expected = np.mean([np.mean(list(by_k[i.span.k].values()), 0) for i in kept], 0)
    np.testing.assert_allclose(found["bsi"] - found["excess"], expected, atol=1e-6)
