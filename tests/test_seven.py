"""The seven models of the reference study run their studies here, as small random models of the same architectures with
their own tokenizers, from a hub that serves them under their real names."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from bindscope.checkpoints.load import load
from bindscope.checkpoints.suites import suite
from bindscope.cli import main
from bindscope.experiment import load as load_study
from bindscope.records import CheckpointRef
from bindscope.store import Store
from loopback import Hub, hub_fixture  # noqa: F401  the fixture `hub`
from seven import serve

SUITES = [
    "pythia-160m@0,143000",
    "pythia-1b@143000",
    "pythia-2.8b@143000",
    "olmo-1b@1000,738020",
    "crfm-gpt2-small-x21@0,400000",
    "smollm3-3b@3440000",
    "qwen2.5-1.5b",
]


def test_the_pilot_of_the_seven_models(hub: Hub, tmp_path: Path) -> None:
    folders = serve(hub, tmp_path / "zoo", SUITES)
    out = tmp_path / "out"
    command = ["run", "pilot", "--protocol", "published", "--out", str(out)]
    assert main([*command, *[word for name in SUITES for word in ("--suites", name)]]) == 0
    store = Store(out, create=False)
    units = store.read_run().units
    assert [unit.checkpoint for unit in units] == list(folders)
    assert all(unit.status == "done" for unit in units)
    binding, recognition = store.read("binding"), store.read("recognition")
    assert binding.groupby("suite").size().to_dict() == {
        suite(name).name: 33 * len(suite(name).checkpoints) for name in SUITES
    }
    assert binding["eb_star"].notna().all()
    assert (recognition["gold"] == 0).all()
    for ref, folder in {ref.suite: (ref, folder) for ref, folder in folders.items()}.values():
        of = {"suite": ref.suite, "revision": binding.loc[binding["suite"] == ref.suite, "revision"].iloc[-1]}
        _as_eager(
            ref, folder, *(table[(table[list(of)] == of).all(axis=1)].iloc[0] for table in (binding, recognition))
        )
    page = (out / "report.html").read_text(encoding="utf-8")
    for name in SUITES:
        assert suite(name).name in page
    assert "HuggingFaceTB/SmolLM3-3B" in hub.repos
    assert hub.asked("GET /HuggingFaceTB/SmolLM3-3B/resolve")
    assert "pytorch_model.bin" in hub.fetched()


def _prompts() -> dict[str, str]:
    return {p.id: p.text for p in load_study("pilot").model_copy(update={"protocol": "published"}).build_prompts()}


def _as_eager(ref: CheckpointRef, folder: Path, binding: pd.Series, recognition: pd.Series) -> None:
    """A prompt has the tokens that the tokenizer gives, with BOS in front where the row of the catalogue says so; the
    stored log-probabilities are those of transformers' eager attention on the files that the hub served."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    words, prompts = load(ref).tokenizer, _prompts()
    front = [words.bos_token_id] if suite(ref.suite).bos == "on" else []
    assert binding["n_tokens"] == len(front) + len(words(prompts[binding["prompt"]])["input_ids"])
    text, choices = prompts[recognition["prompt"]], recognition["choices"]
    expected = [_score(model, words, front, text, choice) for choice in choices]
    assert recognition["logprob"] == pytest.approx(expected, abs=2e-3)
    if ref.suite.startswith("crfm"):
        assert model.config.scale_attn_by_inverse_layer_idx
        for block in model.transformer.h:
            block.attn.scaling = block.attn.head_dim**-0.5  # what a loader that drops the scaling computes
        dropped = [_score(model, words, front, text, choice) for choice in choices]
        assert max(abs(a - b) for a, b in zip(dropped, expected, strict=True)) > 0.05


def _score(model: torch.nn.Module, words: object, front: list[int], text: str, choice: str) -> float:
    assert callable(words)
    whole, start = words(f"{text} {choice}")["input_ids"], len(words(text)["input_ids"])
    ids = torch.tensor([[*front, *whole]])
    with torch.inference_mode():
        logs = model(ids).logits[0].float().log_softmax(-1)
    at = range(len(front) + start, ids.shape[1])
    return math.fsum(float(logs[i - 1, ids[0, i]]) for i in at)


def _bos_is_the_rows(ref: CheckpointRef, rows: pd.DataFrame) -> None:
    """Prompts have the tokens that the tokenizer gives, and one more in front where the row says so."""
    words = load(ref).tokenizer
    row = rows.iloc[0]
    added = 1 if suite(ref.suite).bos == "on" else 0
    assert row["n_tokens"] == len(words(_prompts()[row["prompt"]])["input_ids"]) + added


@pytest.mark.slow
def test_canonical_41(hub: Hub, tmp_path: Path) -> None:
    """The whole of it: 81 checkpoints, 41 terms, 451 prompts."""
    folders = serve(hub, tmp_path / "zoo", list(load_study("canonical-41").suites))
    assert len(folders) == 81
    out = tmp_path / "out"
    assert main(["run", "canonical-41", "--protocol", "published", "--out", str(out)]) == 0
    store = Store(out, create=False)
    binding = store.read("binding")
    assert len(binding) == 81 * 451
    assert binding.groupby(["suite", "revision"]).ngroups == 81
    assert binding["term"].nunique() == 41
    assert (out / "report.html").is_file()
