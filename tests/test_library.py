"""`import bindscope as bs`: its names, what they return, and that a model which was measured is exactly as it was."""

from __future__ import annotations

import ast
import doctest
import json
import logging
import pkgutil
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import bindscope as bs
import measuring
import models
from bindscope import api
from bindscope.checkpoints.load import Loaded
from bindscope.cli import main
from bindscope.errors import (
    BindscopeError,
    ModelError,
    PromptError,
    RequestError,
    SpanError,
    StoreError,
    UnknownName,
    UnsupportedArchitecture,
)
from bindscope.prompts.build import carriers
from bindscope.records import Protocol, Term
from bindscope.tables.heads import by_head

TERMS = ["screen reader", "alt text"]
PAGE = Path(__file__).parents[1] / "docs" / "library.md"


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return bs.load("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run that the examples read."""
    out = tmp_path_factory.mktemp("library") / "mine"
    bs.run(bs.Experiment(name="mine", suites="tiny@0,6000", terms="pilot-3"), out)
    return out


# Names.


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_loads_nothing_heavy(folder: Path) -> None:
    heavy = ("torch", "transformers", "pandas", "numpy", "pydantic", "altair")
    assert _python(f"import sys, bindscope; print([m for m in {heavy} if m in sys.modules])") == "[]\n"
    reading = (
        f"found = bs.read({str(folder)!r}); bs.analyse(found); bs.figures(found); bs.Experiment; bs.measure; bs.run"
    )
    assert _python(f"import sys, bindscope as bs; {reading}; print('torch' in sys.modules)") == "False\n"


def test_no_module_has_the_name_of_a_function() -> None:
    """Once imported, it would be an attribute of the package in place of the function."""
    modules = {module.name for module in pkgutil.iter_modules(bs.__path__)}
    assert len(modules) > 10
    assert not modules & set(bs.__all__)


def test_every_name_is_there_for_people_and_type_checkers() -> None:
    tree = ast.parse(Path(bs.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    told = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == {name: f"bindscope.{home}" for name, home in bs._HOME.items()}
    assert sorted(told) == bs.__all__
    assert set(bs.__all__) <= set(dir(bs))
    for name in bs.__all__:
        assert getattr(bs, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'meassure'; it offers BindscopeError, "):
        bs.meassure  # noqa: B018


def test_every_name_is_documented() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not [name for name in bs.__all__ if f"bs.{name}" not in text]


def test_examples(folder: Path) -> None:
    with pd.option_context("display.width", 120):
        found = doctest.testmod(api, extraglobs={"bs": bs, "folder": folder}, raise_on_error=False)
    assert (found.failed, found.attempted > 8) == (0, True)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python block of the page, one after the other; what it prints is what the page says."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), space)
    stated = [text for block in blocks for text in re.findall(r"^ *print\(.*\)  # (.+)$", block, re.M)]
    assert capsys.readouterr().out.splitlines() == stated != []
    assert len(list(tmp_path.glob("runs/*/run.json"))) >= 2  # of a run and of a training


# What is measured.


def test_the_numbers_are_those_of_the_command(tiny: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "tiny", *TERMS, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = bs.measure(tiny, terms=TERMS)
    assert json.loads(json.dumps([term.plain()["bsi"] for term in found.terms])) == [t["bsi"] for t in said["terms"]]
    for row, told in zip(found.frame.to_dict("records"), said["terms"], strict=True):
        assert {key: list(row[key]) if key == "tokens" else row[key] for key in row} == {key: told[key] for key in row}
    assert (found.bos, said["bos"]) == ("on", "on")


def test_a_held_model_gives_the_numbers_of_its_checkpoint(tiny: Loaded) -> None:
    whole = bs.measure(tiny, terms=TERMS)
    held = bs.measure(tiny.model, tiny.tokenizer, TERMS, bos="on")
    assert held.terms == whole.terms
    assert held.checkpoint.label == "in memory"
    assert bs.measure(tiny.model, tiny.tokenizer, TERMS, bos="off").terms != whole.terms
    one = bs.measure(tiny, terms="alt text", prompt="Every image needs alt text.")
    assert one.frame["prompts"].item() == 1


def test_heads_are_those_of_the_statistics(tiny: Loaded) -> None:
    terms = bs.terms(TERMS)
    measured = measuring.tables(tiny, carriers(terms, "carriers"), Protocol(bos=tiny.bos))
    tables = {name: table.assign(suite="s", revision="r", step=0) for name, table in measured.items()}
    found = bs.measure(tiny, terms=terms)
    for term, part in found.heads.groupby("term"):
        rows = tables["binding"][tables["binding"]["term"] == term]
        expected = by_head(rows, tables["previous_token"])
        for column in ("layer", "head", "bsi", "null_bsi", "excess", "previous_token_score", "rank"):
            np.testing.assert_allclose(part[column], expected[column], atol=1e-12, err_msg=column)
    drawn = found.figure.data.set_index(["layer", "head"])["excess"]
    pd.testing.assert_series_equal(drawn, found.heads.groupby(["layer", "head"])["excess"].mean())


def test_what_is_missing_says_why(tiny: Loaded) -> None:
    single = bs.audit(tiny.tokenizer, [Term(word) for word in ("the", "screen")])
    assert single["reason"].tolist() == ["one token"] * 2
    found = bs.measure(tiny, terms=[Term("screen"), Term("screen reader")])
    missing, whole = found.frame.to_dict("records")
    assert missing["reason"] == "one token"
    assert whole["reason"] is None
    assert all(pd.isna(missing[key]) for key in ("k", "eb_star", "null_mean", "excess", "percentile", "best_layer"))
    assert set(found.heads["term"]) == {"screen reader"}
    assert "one token" in repr(found)
    assert "one token" in found._repr_html_()
    with pytest.raises(PromptError, match=r"nothing to draw, since no term has a value \(first: one token"):
        _ = bs.measure(tiny, terms=[Term("screen")]).figure


def test_shown_in_a_notebook(tiny: Loaded) -> None:
    found = bs.measure(tiny, terms="alt text")
    assert repr(found).splitlines()[0] == "tiny, step 6,000: float32 on cpu, BOS on"
    assert "<td>alt text</td>" in found._repr_html_()
    drawing = found.figure._repr_svg_()
    assert ElementTree.fromstring(drawing).attrib["aria-label"] == repr(found.figure)
    assert "layer.head from 0: 1.4 has BSI" in repr(found.figure)
    assert len(drawing) < 100_000


# What is refused.


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"model": "tiny"}, ModelError, r"the model is the text 'tiny'; load it: bs.measure\(bs.load\('tiny'\)"),
        ({"model": torch.nn.Linear(2, 2)}, ModelError, "Linear is not a language model"),
        ({"tokenizer": None}, RequestError, "no tokenizer; pass the model's own"),
        ({"tokenizer": ["alt text"]}, RequestError, "the tokenizer is a list; pass one of transformers"),
        ({"terms": []}, RequestError, "no term is given"),
        ({"terms": ()}, RequestError, "no term is given"),
        ({"terms": "pilot-4"}, UnknownName, "unknown term set 'pilot-4'; did you mean pilot-3"),
        ({"terms": " "}, PromptError, "a term is empty"),
        ({"terms": [3]}, RequestError, "3 is not a term"),
        ({"terms": "nothing.yaml"}, RequestError, "nothing.yaml"),
        ({"prompt": " "}, PromptError, "the prompt is empty"),
        ({"prompt": "Nothing of the kind."}, SpanError, "'alt text' does not occur"),
    ],
)
def test_what_is_refused(tiny: Loaded, asked: dict[str, Any], error: type[BindscopeError], words: str) -> None:
    call = {"model": tiny.model, "tokenizer": tiny.tokenizer, "terms": "alt text"} | asked
    with pytest.raises(error, match=words):
        bs.measure(**call)


def test_a_tokenizer_of_the_other_package_is_refused(tiny: Loaded) -> None:
    inside = tiny.tokenizer.backend_tokenizer
    assert isinstance(inside, Tokenizer)
    with pytest.raises(RequestError, match="PreTrainedTokenizerFast"):
        bs.measure(tiny.model, inside, "alt text")
    found = bs.measure(tiny.model, PreTrainedTokenizerFast(tokenizer_object=inside), "alt text", bos="off")
    assert found.terms == bs.measure(tiny.model, tiny.tokenizer, "alt text", bos="off").terms


# Given back as it was.

#: Said by other packages, of their own code.
other_warnings = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",  # peft
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",  # torch.compile
    "ignore:torch.quantize_per_tensor:UserWarning",  # torch.ao
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
)


def _held(words: PreTrainedTokenizerFast, **config: Any) -> PreTrainedModel:
    kind, base = models.ARCHITECTURES["llama"]
    return models.build(kind, base | {"vocab_size": len(words), "attention_dropout": 0.2} | config)


def _adapted(model: PreTrainedModel) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(1)
    targets = ["q_proj", "v_proj", "o_proj"]
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=targets, lora_dropout=0.3, init_lora_weights=False)
    )


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.model.layers[0].requires_grad_(False)
    model.model.layers[0].eval()
    return model


def _hooks(model: PreTrainedModel) -> PreTrainedModel:
    layer = model.model.layers[1]
    layer.register_forward_hook(lambda _m, _a, out: out)
    layer.self_attn.register_forward_pre_hook(lambda *_: None)
    layer.mlp.register_full_backward_hook(lambda *_: None)
    return model


def _eager(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


def _recomputing(model: PreTrainedModel) -> PreTrainedModel:
    model.activation_checkpointing_enable()
    return model


def _compiled_in_place(model: PreTrainedModel) -> PreTrainedModel:
    model.compile(backend="eager")
    return model


KINDS: dict[str, Callable[[PreTrainedModel], Any]] = {
    "plain": lambda model: model,
    "frozen": _frozen,
    "hooks": _hooks,
    "eager": _eager,
    "recomputing": _recomputing,
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "adapters": _adapted,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": _compiled_in_place,
}

IDS = torch.arange(24).reshape(2, 12)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")


def _step(model: Any) -> list[torch.Tensor]:
    """Logits and loss of a training step with dropout, every gradient, and the weights behind it."""
    torch.manual_seed(7)
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.optim.SGD(trained, 0.1).step()
    return [out.logits.detach(), out.loss.detach(), *(p.grad.clone() for p in trained), *(p.detach() for p in trained)]


def _snapshot(model: Any) -> dict[str, Any]:
    """Everything about a model and its surroundings that a measurement could leave behind."""
    parts = dict(model.named_modules())
    whole = {name: part for name, part in parts.items() if isinstance(part, PreTrainedModel)}
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "buffers": {name: value.clone() for name, value in model.named_buffers()},
        "identity": {name: (id(p), p.requires_grad, p.is_leaf) for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "modes": {name: part.training for name, part in parts.items()},
        "hooks": {name: [list(getattr(part, table).items()) for table in HOOKS] for name, part in parts.items()},
        "attributes": {name: sorted(vars(part)) for name, part in parts.items()},
        "forward": {name: getattr(part.forward, "__func__", part.forward) for name, part in parts.items()},
        "compiled": {name: part._compiled_call_impl for name, part in parts.items()},
        "configs": {name: part.config.to_dict() for name, part in whole.items()},
        "attention": {name: part.config._attn_implementation_internal for name, part in whole.items()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "modes of torch": (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype()),
    }


def _same(one: Any, other: Any, at: str = "") -> None:
    assert type(one) is type(other), at
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one:
            _same(one[key], other[key], f"{at}/{key}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
    else:
        assert one == other, at


@other_warnings
@pytest.mark.parametrize("kind", KINDS)
def test_the_next_training_step_is_the_same_to_the_bit(kind: str, words: PreTrainedTokenizerFast) -> None:
    measured, other = (KINDS[kind](_held(words)) for _ in range(2))
    for model in (measured, other):
        if kind != "frozen":
            model.train()
        _step(model)  # gradients of a step that came before stand in it
    before = _snapshot(measured)
    found = bs.measure(measured, words, TERMS)
    _same(_snapshot(measured), before)
    for ours, theirs in zip(_step(measured), _step(other), strict=True):
        assert torch.equal(ours, theirs)
    assert found.frame["eb_star"].between(0.01, 1).all()
    assert bs.measure(other, words, TERMS).terms != found.terms  # the step has moved it: what was measured is the model


@other_warnings
def test_a_compiled_call_is_not_compiled_again(words: PreTrainedTokenizerFast) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = _held(words)
    compiled = torch.compile(model, backend=backend)
    with torch.no_grad():
        before = compiled(input_ids=IDS).logits
        count = len(graphs)
        bs.measure(compiled, words, TERMS)
        assert torch.equal(compiled(input_ids=IDS).logits, before)
    assert len(graphs) == count > 0


@other_warnings
def test_dynamic_int8_is_refused_and_left_alone(words: PreTrainedTokenizerFast) -> None:
    """It rounds activations by the largest of a batch, so a number would depend on what was measured beside it."""
    model = torch.ao.quantization.quantize_dynamic(_held(words), {torch.nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        before = model(IDS).logits
        with pytest.raises(UnsupportedArchitecture, match=r"differ by .* from those of separate passes"):
            bs.measure(model, words, TERMS)
        assert torch.equal(model(IDS).logits, before)
    assert model.config._attn_implementation != "bindscope"


@other_warnings
def test_weights_of_torchao_are_left_alone(words: PreTrainedTokenizerFast) -> None:
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model = _held(words)
    ao.quantize_(model, ao.Int8WeightOnlyConfig())
    with torch.no_grad():
        before = model(IDS).logits
        bs.measure(model, words, TERMS)
        assert torch.equal(model(IDS).logits, before)


# Studies.


def test_a_run_goes_on_and_is_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    with caplog.at_level(logging.INFO, "bindscope"):
        store = bs.run(bs.Experiment(name="mine", suites="tiny@0,6000", terms="pilot-3"), str(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == shards
    assert "tiny, step 6,000: done" in caplog.messages
    pd.testing.assert_frame_equal(store.read("binding"), bs.read(folder).read("binding"))
    pd.testing.assert_frame_equal(bs.analyse(store).results, bs.analyse(folder).results)
    assert bs.figures(store).keys() == bs.figures(str(folder)).keys()
    assert "EB*" in repr(bs.figures(store)["emergence-log"])


def test_a_checkpoint_that_fails_is_said(suite_folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(suite_folder, tmp_path / "suite")
    (broken / "checkpoint-10" / "model.safetensors").write_bytes(b"nothing")
    experiment = bs.Experiment(name="s", suites=str(broken), terms="alt text")
    with pytest.warns(UserWarning, match="1 of 2 checkpoints failed, first suite, step 10: ") as said:
        store = bs.run(experiment, tmp_path / "out")
    assert Path(said[0].filename) == Path(__file__)
    assert set(store.read("binding")["step"]) == {0}
    (broken / "checkpoint-0" / "model.safetensors").write_bytes(b"nothing either")
    with pytest.raises(RequestError, match="checkpoint-0"):
        bs.run(experiment, tmp_path / "other")


def test_a_wrong_study_leaves_no_folder(tmp_path: Path) -> None:
    wrong = [{"suites": "tinny", "terms": "alt text"}, {"suites": "tiny", "terms": "pilot-4"}]
    for experiment in ("tinny", *(bs.Experiment(name="s", **asked) for asked in wrong)):
        with pytest.raises(UnknownName, match=r"'tinny'|'pilot-4'"):
            bs.run(experiment, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(StoreError, match="not a results folder"):
        bs.read(tmp_path)
