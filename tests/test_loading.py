"""What is loaded, and how: devices, memory, remote code, pickles, and a scaling that old libraries drop."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, PreTrainedTokenizerFast
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

import measuring
import models
import sweeps
from bindscope.checkpoints import load as loading
from bindscope.checkpoints.load import Loaded, load
from bindscope.checkpoints.suites import from_folder
from bindscope.cli import main
from bindscope.errors import ModelError
from bindscope.prompts.build import build, few_shot
from bindscope.prompts.library import library
from bindscope.records import Ablation, Prompt, Protocol

MEASURES = ("binding", "recognition", "generation", "ablation")
PROTOCOL = Protocol(bos="on", ablation=Ablation(modes=("zero", "mean", "resample", "knockout"), k=2, random=1))


def _prompts() -> list[Prompt]:
    terms = (*library().select("skip link"), *library().select("alt text"))
    return [*build(terms, "listed", "given"), *few_shot(terms)]


def _load(folder: Path, **options: Any) -> Loaded:
    return load(from_folder(folder).checkpoints[0], bos="on", dtype="float32", device="cpu", **options)


def _measured(loaded: Loaded) -> dict[str, pd.DataFrame]:
    return measuring.tables(loaded, _prompts(), PROTOCOL, MEASURES)


def _equal(a: dict[str, pd.DataFrame], b: dict[str, pd.DataFrame]) -> None:
    """All columns: numbers to 1e-5 of themselves or absolutely, everything else exactly."""
    assert a.keys() == b.keys() == {"binding", *sweeps.stored(*MEASURES)}
    for name, table in a.items():
        assert len(table)
        pd.testing.assert_frame_equal(table, b[name], check_exact=False, rtol=1e-5, atol=1e-5, obj=name)


def _without_memory(loaded: Loaded, tokens: int) -> Callable[[], int]:
    """Make every forward pass over more than so many tokens run out of memory; gives a count of those that did."""
    forward, refused = loaded.model.forward, 0

    def small(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal refused
        if input_ids.numel() > tokens:
            refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(input_ids, *args, **kwargs)

    loaded.model.forward = small
    return lambda: refused


def test_where_memory_runs_out_batches_are_halved_and_nothing_changes(
    tmp_path: Path, words: PreTrainedTokenizerFast
) -> None:
    loaded = _load(models.save(tmp_path / "model", words, num_hidden_layers=2))
    plenty = _measured(loaded)
    longest = max(len(loaded.tokenizer(p.text)["input_ids"]) for p in _prompts())
    refused = _without_memory(loaded, 5 * longest)
    _equal(_measured(loaded), plenty)
    assert refused() > 4  # reading, decoding and edits have each met it


def test_a_prompt_that_memory_cannot_hold_is_an_error(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    loaded = _load(models.save(tmp_path / "model", words, num_hidden_layers=2))
    _without_memory(loaded, 70)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        _measured(loaded)


def _spread(loaded: Loaded) -> dict[str, str | int]:
    """Everything in memory but the last two layers."""
    base = loaded.model.base_model_prefix
    parts = [name for name, _ in loaded.model.named_children() if name != base]
    parts += [f"{base}.{name}" for name, _ in loaded.model.base_model.named_children() if name != "layers"]
    layers = {f"{base}.layers.{i}": place for i, place in enumerate(["cpu", "disk", "disk"])}
    return dict.fromkeys(parts, "cpu") | layers


def test_a_model_that_is_spread_over_devices_gives_the_same(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    """Two layers on the disk, the rest in memory: the hook, the edits and the checks reach both."""
    folder = models.save(tmp_path / "model", words, architecture="qwen2")
    whole = _load(folder)
    parts = _load(folder, spread=_spread(whole))
    assert any(p.is_meta for p in parts.model.parameters())
    assert "disk (2 parts)" in parts.notes[0]
    _equal(_measured(parts), _measured(whole))


def test_damage_on_the_disk_part_is_found(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    folder = models.save(tmp_path / "model", words)
    spread = _spread(_load(folder))
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.2.attention.dense.weight"][0, 0] = torch.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.2\.attention\.dense\.weight"):
        _load(folder, spread=spread)


def _with_code(folder: Path, words: PreTrainedTokenizerFast, marker: Path) -> Path:
    """A model whose class comes with it, and leaves a mark when its code is run."""
    models.save(folder, words, architecture="llama")
    (folder / "modeling_own.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(marker)!r}).write_text('run')\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own_llama",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _study(tmp_path: Path, folder: Path, **changes: object) -> str:
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps({"name": "s", "suites": [str(folder)], "terms": ["skip link"], "bos": "on"} | changes))
    return str(path)


def test_remote_code_is_run_only_where_the_study_says_so_in_words(
    tmp_path: Path, words: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker = tmp_path / "marker"
    folder = _with_code(tmp_path / "own", words, marker)
    out = tmp_path / "out"
    assert main(["run", _study(tmp_path, folder), "--out", str(out)]) == 2
    assert f"I have read the code of {folder} and trust it" in capsys.readouterr().err
    assert not marker.exists()
    assert main(["run", _study(tmp_path, folder, remote_code="yes"), "--out", str(out)]) == 2
    assert "I have read the code of ORG/NAME" in capsys.readouterr().err
    other = _study(tmp_path, folder, remote_code="I have read the code of org/other and trust it")
    assert main(["run", other, "--out", str(out)]) == 2
    assert not marker.exists()
    trusting = _study(tmp_path, folder, remote_code=f"I have read the code of {folder} and trust it")
    assert main(["run", trusting, "--out", str(out)]) == 0
    assert marker.read_text() == "run"
    assert "Python code from" in (out / "report.html").read_text()


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    """With peft installed transformers would load it, without peft not: two results under one key."""
    folder = models.save(tmp_path / "model", words)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds a PEFT adapter"):
        _load(folder)


class _Evil:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.marker,)


def test_a_pickle_that_runs_code_is_refused(
    tmp_path: Path, words: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = models.save(tmp_path / "model", words), tmp_path / "marker"
    tensors: dict[str, Any] = dict(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {"x": _Evil(str(marker))}, folder / "pytorch_model.bin")
    assert main(["run", _study(tmp_path, folder), "--out", str(tmp_path / "out")]) == 2
    assert "pytorch_model.bin" in capsys.readouterr().err
    assert not marker.exists()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert main(["run", _study(tmp_path, folder), "--out", str(tmp_path / "out")]) == 0


def test_auto_is_float32_on_a_cpu_and_bfloat16_where_the_gpu_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.pick_dtype("auto", "cpu") == torch.float32
    for real in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated=True, real=real: emulated or real)
        assert loading.pick_dtype("auto", "cuda") == (torch.bfloat16 if real else torch.float32)
    assert loading.pick_dtype("float16", "cpu") == torch.float16


def test_scaling_by_layer_is_refused_where_the_library_drops_it(
    tmp_path: Path, words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.save(tmp_path / "scaled", words, architecture="gpt2-inverse-layer")
    assert _load(folder).model.config.scale_attn_by_inverse_layer_idx
    make = GPT2Attention.__init__

    def old(self: GPT2Attention, config: GPT2Config, *args: Any, **kwargs: Any) -> None:
        """What the SDPA path did before the fix: the plain scaling, whatever the config says."""
        make(self, config, *args, **kwargs)
        if config._attn_implementation == "sdpa":
            self.scaling = self.head_dim**-0.5

    monkeypatch.setattr(GPT2Attention, "__init__", old)
    loading._scaling_reaches.cache_clear()
    try:
        with pytest.raises(ModelError, match=r"inverse layer index.*install transformers"):
            _load(folder)
        shutil.rmtree(folder)
        _load(models.save(folder, words, architecture="gpt2"))  # whose config asks for nothing of the kind
    finally:
        loading._scaling_reaches.cache_clear()
