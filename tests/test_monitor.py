"""A model that somebody else trains: measured through its wrappers, given back as it was, its training unaltered."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments, set_seed

import measuring
import models
from bindscope.checkpoints.borrow import borrowed, inner
from bindscope.checkpoints.load import load
from bindscope.checkpoints.suites import suite
from bindscope.cli import main
from bindscope.engine.capture import TextInput
from bindscope.engine.data import Needs
from bindscope.errors import ModelError, RequestError
from bindscope.monitor import Monitor, checksum, watch
from bindscope.prompts.build import build
from bindscope.prompts.library import library
from bindscope.records import Protocol
from bindscope.store import Store
from bindscope.tables.early import early_warnings

#: Said by other packages, of their own code.
other_warnings = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",  # peft
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning",  # torch.compile
)
PROMPTS = [p for p in build(library().select("alt text"), "cloze") if p.binds]


def _model(words: PreTrainedTokenizerFast, architecture: str = "gpt_neox", **config: Any) -> PreTrainedModel:
    kind, base = models.ARCHITECTURES[architecture]
    more = {"vocab_size": len(words), "max_position_embeddings": 512}
    return models.build(kind, base | more | config)


def _tables(model: torch.nn.Module, words: PreTrainedTokenizerFast) -> dict[str, pd.DataFrame]:
    with borrowed(model, words) as loaded:
        return measuring.tables(loaded, PROMPTS, Protocol(format="cloze"))


def _close(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame], atol: float = 1e-5) -> None:
    for column in ("eb_star", "excess", "eb_star_value"):
        a, b = (t["binding"][column].astype(float) for t in (one, other))
        np.testing.assert_allclose(a, b, atol=atol)
    logs = [np.concatenate(t["recognition"]["logprob"].to_list()) for t in (one, other)]
    np.testing.assert_allclose(*logs, atol=100 * atol)  # sums over some ten tokens


# Given back as it was.


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma3"])
def test_the_model_is_given_back(architecture: str, implementation: str, words: PreTrainedTokenizerFast) -> None:
    model = _model(words, architecture, attention_dropout=0.1)
    model.set_attn_implementation(implementation)
    model.train()
    next(iter(model.children())).eval()  # part of it is frozen
    model.activation_checkpointing_enable()
    model.get_input_embeddings().register_forward_hook(lambda *_: None)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    set_seed(3)
    before = _state(model)
    with pytest.raises(ZeroDivisionError):
        _fail_inside(model, words)
    after = _state(model)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key], key
    assert all(bool((p.grad == 0.5).all()) for p in model.parameters())
    model.train()
    loss = model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()  # nothing that was made without gradients is left in it


def _fail_inside(model: PreTrainedModel, words: PreTrainedTokenizerFast) -> None:
    with borrowed(model, words) as loaded:
        measuring.tables(loaded, PROMPTS, Protocol(format="cloze"))
        torch.rand(5)
        raise ZeroDivisionError


def _state(model: PreTrainedModel) -> dict[str, Any]:
    return {
        **{f"weight {k}": v.clone() for k, v in model.state_dict().items()},
        **{f"buffer {k}": v.clone() for k, v in model.named_buffers()},
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()],
        "attention": model.config._attn_implementation,
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "generation": model.generation_config.to_dict(),
        "torch": torch.get_rng_state(),
        "numpy": json.dumps(np.random.get_state()[1].tolist()),
        "python": random.getstate(),
        "gradients": torch.is_grad_enabled(),
    }


@other_warnings
def test_the_same_numbers_whatever_stands_around(words: PreTrainedTokenizerFast) -> None:
    """Training mode, autocast, torch.compile and a data-parallel wrapper change nothing."""
    model = _model(words, attention_dropout=0.5)
    plain = _tables(model, words)
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _close(_tables(model, words), plain, 0)
    _close(_tables(torch.compile(model), words), plain, 0)
    _close(_tables(torch.nn.DataParallel(model), words), plain, 0)
    model.compile()
    call = model._compiled_call_impl
    _close(_tables(model, words), plain, 0)
    assert model._compiled_call_impl is call is not None


def test_what_is_no_language_model_is_refused(words: PreTrainedTokenizerFast) -> None:
    for wrong in (torch.nn.Linear(2, 2), _model(words).gpt_neox):
        with pytest.raises(ModelError, match="language model"):
            inner(wrong)


# Adapters and quantised weights.


@pytest.fixture
def adapted(words: PreTrainedTokenizerFast) -> tuple[Any, PreTrainedModel]:
    """A model with LoRA adapters that do something, and the same with the adapters merged into the weights."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], lora_dropout=0.3)
    made = []
    for _ in range(2):
        wrapped = peft.get_peft_model(_model(words, "llama"), config)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0, 0.2)
        made.append(wrapped)
    return made[0], made[1].merge_and_unload()


@other_warnings
def test_adapters_are_measured_as_active(adapted: Any, words: PreTrainedTokenizerFast) -> None:
    wrapped, merged = adapted
    wrapped.train()
    found = _tables(wrapped, words)
    _close(found, _tables(merged, words))
    bare = _tables(_model(words, "llama"), words)
    assert abs(found["binding"]["eb_star"] - bare["binding"]["eb_star"]).max() > 1e-3
    text, needs = TextInput(tuple(range(5, 25)), span=(3, 4, 5)), Needs(norm_weighted=True)
    with borrowed(wrapped, words) as loaded, models.engine(loaded.model) as engine:
        (mine,) = engine.read([text], needs)
    with models.engine(merged) as engine:
        (theirs,) = engine.read([text], needs)
    assert mine.norm_weighted is not None
    np.testing.assert_allclose(mine.norm_weighted, theirs.norm_weighted, atol=1e-5)


@other_warnings
def test_a_learned_prompt_is_refused(words: PreTrainedTokenizerFast) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ModelError, match="learned prompt"):
        inner(peft.get_peft_model(_model(words, "llama"), config))


@other_warnings
def test_quantised_weights_are_measured_as_they_compute(words: PreTrainedTokenizerFast) -> None:
    ao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantised, plain = _model(words, "llama"), _model(words, "llama")
    ao.quantize_(quantised, ao.Int8WeightOnlyConfig())
    with torch.no_grad():  # the same model in full precision, with the rounded weights
        for (name, module), (_, other) in zip(quantised.named_modules(), plain.named_modules(), strict=True):
            if isinstance(module, torch.nn.Linear):
                assert name
                unit = torch.eye(module.in_features)
                other.weight.copy_((module(unit) - module(torch.zeros(1, module.in_features))).T)
    _close(_tables(quantised, words), _tables(plain, words), 1e-4)


# Training.


class _Texts(Dataset):  # type: ignore[type-arg]
    def __init__(self, vocabulary: int) -> None:
        self.ids = torch.randint(0, vocabulary, (64, 24), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


class _Losses(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.seen.append((state.global_step, dict(more["logs"])))


def _trainer(folder: Path, words: PreTrainedTokenizerFast) -> tuple[Trainer, _Losses]:
    set_seed(5)
    model = _model(words, attention_dropout=0.2, hidden_dropout=0.2)
    arguments = TrainingArguments(
        str(folder), max_steps=8, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-3,
        logging_steps=1, save_strategy="steps", save_steps=4, report_to=[], use_cpu=True, seed=5, disable_tqdm=True,
        activation_checkpointing=True,
    )  # fmt: skip
    losses = _Losses()
    trainer = Trainer(model, arguments, train_dataset=_Texts(len(words)), processing_class=words, callbacks=[losses])
    return trainer, losses


def test_training_is_the_same_to_the_bit(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    plain, expected = _trainer(tmp_path / "plain", words)
    plain.train()
    watched, seen = _trainer(tmp_path / "watched", words)
    monitor = watch(watched, ["alt text", "skip link", "screen reader"], tmp_path / "out", every=2)
    watched.train()

    def losses(logged: _Losses) -> list[tuple[int, float, float]]:
        return [(step, logs["loss"], logs["grad_norm"]) for step, logs in logged.seen if "loss" in logs]

    assert losses(seen) == losses(expected)
    assert len(losses(seen)) == 8
    ours, theirs = watched.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    looks = [json.loads(line) for line in (tmp_path / "out" / "monitor.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [0, 2, 4, 6, 8]
    reported = {step: logs for step, logs in seen.seen if "bindscope/eb_star" in logs}
    assert {step: logs["bindscope/eb_star"] for step, logs in reported.items()} == {
        look["step"]: look["eb_star"] for look in looks
    }
    assert [bool(look["no_flags"]) for look in looks] == [True] * 4 + [False]

    # The saved checkpoint, measured as any other, gives the same numbers.
    saved = next(ref for ref in suite(str(tmp_path / "watched")).checkpoints if ref.step == 4)
    again = measuring.tables(load(saved), monitor._request.prompts, monitor._protocol)["binding"]
    stored = Store(tmp_path / "out", create=False).read("binding")
    np.testing.assert_array_equal(stored.loc[stored["step"] == 4, "eb_star"].to_numpy(float), again["eb_star"])
    assert main(["report", str(tmp_path / "out")]) == 0


def test_a_resumed_training_goes_on(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    sunk: list[tuple[int, dict[str, float]]] = []
    model = _model(words)

    def monitor(**settings: Any) -> Monitor:
        sink = lambda values, step: sunk.append((step, dict(values)))  # noqa: E731
        return Monitor(words, settings.pop("terms", "alt text"), tmp_path, every=10, sinks=[sink], **settings)

    first = monitor()
    assert [step for step in range(35) if first(model, step)] == [0, 10, 20, 30]
    second = monitor()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    second(model, 20)  # back to step 20, the rest was given up
    store = Store(tmp_path, create=False)
    assert list(store.read("binding")["step"].unique()) == [0, 10, 20]
    assert sorted(second._series["step"].unique()) == [0, 10, 20]
    assert [step for step, _ in sunk] == [0, 10, 20, 30, 20]
    for settings in ({"terms": "skip link"}, {"format": "listed"}, {"name": "other"}):
        with pytest.raises(RequestError, match="holds another run"):
            monitor(**settings)
    with pytest.raises(RequestError, match="every is 0"):
        Monitor(words, "alt text", tmp_path / "new", every=0)


def test_the_checksum_sees_every_weight(words: PreTrainedTokenizerFast) -> None:
    model = _model(words)
    seen = {checksum(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        seen.add(checksum(model))
    assert len(seen) == 1 + len(list(model.parameters()))


_DDP = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
import models
from bindscope.monitor import Monitor, checksum
from bindscope.checkpoints.tokenizer import tokenizer_by_name
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:{port}", rank=rank, world_size=2)
words = tokenizer_by_name({words!r})
kind, base = models.ARCHITECTURES["gpt_neox"]
size = {{"vocab_size": len(words), "max_position_embeddings": 512}}
model = torch.nn.parallel.DistributedDataParallel(models.build(kind, base | size))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
monitor = Monitor(words, "alt text", {out!r}, every=1)
for step in range(3):
    ids = torch.randint(0, 60, (2, 8), generator=torch.Generator().manual_seed(10 * step + rank))
    model(ids, labels=ids).loss.backward()
    optimizer.step(); optimizer.zero_grad()
    print("look" if monitor(model, step) else "none")
print(checksum(model.module))
dist.destroy_process_group()
"""


def test_only_the_first_process_measures(tmp_path: Path, suite_folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = {"tests": str(Path(__file__).parent), "words": str(suite_folder), "out": str(tmp_path / "out")}
    code = _DDP.format(port=port, **here)
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen([*command, str(r)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for r in (0, 1)
    ]
    ended = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    first, second = (out.split() for out, _ in ended)
    assert (first[:3], second[:3]) == (["look"] * 3, ["none"] * 3)
    assert first[3] == second[3]  # both have the same weights still
    assert len((tmp_path / "out" / "monitor.jsonl").read_text().splitlines()) == 3


# Early warnings, by hand.


def _series(excess: list[list[float]], margin: list[list[float]]) -> pd.DataFrame:
    """Rows by step; each inner list holds the values of terms."""
    rows = [
        {"step": 100 * s, "term": f"t{t}", "excess": e, "margin": m}
        for s, (es, ms) in enumerate(zip(excess, margin, strict=True))
        for t, (e, m) in enumerate(zip(es, ms, strict=True))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("excess", "margin", "flags"),
    [
        ([[0, 0, 0], [0.3, 0.4, 0.5]], [[0, 0, 0], [-0.1, 0.1, 0.0]], ["binding ahead"]),
        ([[0, 0, 0], [0.3, 0.4, 0.5]], [[0, 0, 0], [0.3, 0.4, 0.5]], []),
        ([[0, 0, 0], [-0.3, -0.4, -0.5]], [[0, 0, 0], [0.3, 0.4, 0.5]], ["decoupling"]),
        ([[0, 0, 0], [-0.3, 0.4, -0.5]], [[0, 0, 0], [0.3, 0.4, 0.5]], []),
    ],
)
def test_flags_by_hand(excess: Any, margin: Any, flags: list[str]) -> None:
    found, reason = early_warnings(_series(excess, margin), window=1)
    assert [w.flag for w in found] == flags
    assert reason is None
    if flags:
        assert "since step 0 excess" in found[0].text


def test_no_flag_without_looks_or_terms() -> None:
    found, reason = early_warnings(_series([[0, 0, 0]] * 4, [[0, 0, 0]] * 4))
    assert (found, reason) == ((), "4 measurements so far, 5 are needed")
    found, reason = early_warnings(_series([[0, np.nan, 0]] * 2, [[0, 0, 0]] * 2), window=1)
    assert (found, reason) == ((), "2 terms have an excess and a margin at both steps, 3 are needed")
