"""Which weights a checkpoint holds: equal ones under two names, other ones under one name, and what a run does then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import models
import sweeps
from bindscope.checkpoints import fingerprint
from bindscope.checkpoints.files import fetch, identify
from bindscope.checkpoints.fingerprint import Fingerprint, weight_flags
from bindscope.cli import main
from bindscope.records import CheckpointRef
from bindscope.store import Store
from loopback import Hub, hub_fixture  # noqa: F401  the fixture `hub`
from sweeps import STEPS, own_cache, steps_fixture  # noqa: F401  a cache of its own, the fixture `steps`


def _print(folder: Path) -> Fingerprint:
    ref = CheckpointRef("s", str(folder))
    files = identify(ref)
    return fingerprint.fingerprint(ref, files.weights, files.identity.fingerprint, compute=True)


def _copy(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object] | None = None) -> Path:
    shutil.copytree(folder, target)
    if change is not None:
        tensors = load_file(target / "model.safetensors")
        change(tensors)
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def test_sharding_format_config_and_tokenizer_have_no_part_in_it(tmp_path: Path, steps: dict[str, Path]) -> None:
    one = _print(steps["step10"])
    model = AutoModelForCausalLM.from_pretrained(steps["step10"])
    shards, pickle, other = tmp_path / "shards", tmp_path / "pickle", _copy(steps["step10"], tmp_path / "other")
    model.save_pretrained(shards, max_shard_size="50kB")
    shutil.copytree(steps["step10"], pickle)
    torch.save(load_file(pickle / "model.safetensors"), pickle / "pytorch_model.bin")
    (pickle / "model.safetensors").unlink()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(steps["step10"] / name, shards / name)
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert {_print(f).tensors for f in (shards, pickle, other)} == {one.tensors}
    assert len({_print(f).files for f in (shards, pickle)} | {one.files}) == 3
    assert _print(other).files == one.files
    assert _print(other).content != one.content


def _swap(tensors: dict[str, torch.Tensor]) -> None:
    a, b = (f"gpt_neox.layers.{i}.attention.dense.weight" for i in (0, 1))
    tensors[a], tensors[b] = tensors[b].clone(), tensors[a].clone()


def _bit(tensors: dict[str, torch.Tensor]) -> None:
    tensors["gpt_neox.layers.1.attention.dense.weight"].view(torch.int32)[3, 3] ^= 1


def _reshape(tensors: dict[str, torch.Tensor]) -> None:
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    tensors[name] = tensors[name].reshape(tensors[name].shape[::-1])


def _retype(tensors: dict[str, torch.Tensor]) -> None:
    tensors["gpt_neox.final_layer_norm.bias"] = tensors["gpt_neox.final_layer_norm.bias"].view(torch.int32)


def _drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["gpt_neox.final_layer_norm.bias"]


@pytest.mark.parametrize("change", [_swap, _bit, _reshape, _retype, _drop])
def test_it_changes_with_name_shape_dtype_and_every_bit(
    tmp_path: Path, steps: dict[str, Path], change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    assert _print(_copy(steps["step10"], tmp_path / "changed", change)).tensors != _print(steps["step10"]).tensors


def test_a_tied_projection_may_be_stored_or_not(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    folder = models.save(tmp_path / "tied", words, architecture="gpt2")
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    before = _print(folder).tensors
    buffers = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}
    torch.save(tensors | buffers | {"lm_head.weight": tensors["transformer.wte.weight"]}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert _print(folder).tensors == before
    torch.save(tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}, folder / "pytorch_model.bin")
    assert _print(folder).tensors != before
    changed = {"transformer.h.0.attn.c_attn.bias": tensors["transformer.h.0.attn.c_attn.bias"] + 1}
    torch.save(tensors | changed, folder / "pytorch_model.bin")
    assert _print(folder).tensors != before


def test_it_is_kept_and_read_back(tmp_path: Path, steps: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = _print(steps["step0"])
    monkeypatch.setattr(fingerprint, "_tensors", lambda *_: pytest.fail("read again"))
    assert _print(steps["step0"]) == first
    for kept in (tmp_path / "bindscope-cache" / "fingerprints").iterdir():
        kept.write_text("torn")
    monkeypatch.undo()
    monkeypatch.setenv("BINDSCOPE_CACHE", str(tmp_path / "bindscope-cache"))
    assert _print(steps["step0"]) == first


def _of(revision: str, files: str, tensors: str | None = None, bin_files: str | None = None) -> Fingerprint:
    return Fingerprint(CheckpointRef("s", "org/s", revision), "c" * 40, "", files, tensors, bin_files)


def test_each_pair_is_named_once_and_the_final_checkpoint_by_its_role() -> None:
    found = weight_flags(
        [_of("a", "1"), _of("b", "2"), _of("c", "2"), _of("d", "9", "t"), _of("e", "3", "t"), _of("f", "1")]
    )
    assert [[ref.revision for ref in flag.refs] for flag in found] == [["a", "f"], ["b", "c"], ["d", "e"]]
    for flag, words in zip(found, ("final checkpoint, f", "weight files are equal", "files differ"), strict=True):
        assert words in flag.text
    assert weight_flags([_of("a", "1"), _of("b", "2")]) == []
    (blob,) = weight_flags([_of("a", "1", bin_files="x"), _of("b", "2", bin_files="x"), _of("c", "3", bin_files="y")])
    assert "same .bin files" in blob.text
    assert not weight_flags(
        [_of("a", "1"), Fingerprint(CheckpointRef("another suite", "org/t", "a"), "c" * 40, "", "1")]
    )


@pytest.mark.parametrize("twin", ["step10", "step20"])
def test_twin_revisions_are_refused_before_a_download(
    tmp_path: Path, hub: Hub, steps: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], twin: str,
) -> None:  # fmt: skip
    sweeps.catalogue(monkeypatch, STEPS)
    hub.add(sweeps.REPO, steps | {"step0": steps[twin]})
    out, experiment = tmp_path / "out", sweeps.experiment(tmp_path / "study", "lab")
    assert sweeps.run(experiment, out) == 2
    said = capsys.readouterr().err
    assert "step0" in said
    assert twin in said
    assert "--accept-flags" in said
    assert ("final checkpoint" in said) == (twin == "step20")
    assert not hub.fetched()
    assert not list(out.rglob("*.parquet"))
    assert sweeps.run(experiment, out, "--accept-flags") == 0
    units = {unit.checkpoint.revision: unit for unit in Store(out).read_run().units}
    assert all(twin in flag for flag in units["step0"].flags)
    assert units["step0"].flags == units[twin].flags
    (clean,) = units.keys() - {"step0", twin}
    assert units[clean].flags == ()
    unit = units["step0"]
    notes = Store(out).provenance(unit.checkpoint, "eb_star", unit.keys["eb_star"])["notes"]
    assert unit.flags[0] in notes
    assert unit.weights is not None
    page = (out / "report.html").read_text()
    assert unit.weights[:16] in page
    assert unit.flags[0].split("(")[0].replace("'", "&#39;") in page


def test_equal_tensors_in_other_files_are_found_when_both_are_here(
    tmp_path: Path, hub: Hub, steps: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The hub's hashes differ; the second one is refused when it has arrived, the next run at its start."""
    sweeps.catalogue(monkeypatch, STEPS)
    twin = _copy(steps["step0"], tmp_path / "twin")
    save_file(load_file(twin / "model.safetensors"), twin / "model.safetensors", {"format": "pt", "saved": "again"})
    hub.add(sweeps.REPO, steps | {"step10": twin})
    out, experiment = tmp_path / "out", sweeps.experiment(tmp_path / "study", "lab")
    assert sweeps.run(experiment, out) == 1
    assert "step10 holds the same weights as step0" in capsys.readouterr().out
    assert sorted({p.parent.name for p in out.rglob("*.parquet")}) == ["step0", "step20"]
    assert sweeps.run(experiment, out) == 2
    assert "all tensors are equal" in capsys.readouterr().err
    assert sweeps.run(experiment, out, "--accept-flags") == 0
    flagged = [unit.checkpoint.revision for unit in Store(out).read_run().units if unit.flags]
    assert flagged == ["step0", "step10"]


def test_a_revision_that_became_another_commit_is_named(
    tmp_path: Path, hub: Hub, steps: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sweeps.catalogue(monkeypatch, STEPS[:2])
    hub.add(sweeps.REPO, {name: steps[name] for name in ("step0", "step10")})
    out, experiment = tmp_path / "out", sweeps.experiment(tmp_path / "study", "lab")
    assert sweeps.run(experiment, out) == 0
    before = hub.commit(sweeps.REPO, "step10")
    after = hub.move(sweeps.REPO, "step10", steps["step20"])
    kept = sweeps.shards(out)
    capsys.readouterr()
    assert sweeps.run(experiment, out) == 2
    said = capsys.readouterr().err
    for word in ("step10", before[:12], after[:12], "other files"):
        assert word in said
    assert sweeps.shards(out) == kept
    assert sweeps.run(experiment, out, "--accept-flags") == 0
    unit = Store(out).read_run().units[1]
    assert before[:12] in unit.flags[0]
    assert Store(out).provenance(unit.checkpoint, "eb_star", unit.keys["eb_star"])["identity"]["commit"] == after
    hub.move(sweeps.REPO, "step0", steps["step0"], salt="a new commit of the same files")
    capsys.readouterr()
    assert sweeps.run(experiment, tmp_path / "out") == 2
    assert "the same files" in capsys.readouterr().err


def _with_pickle(folder: Path, target: Path, shift: float) -> Path:
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    tensors["gpt_neox.final_layer_norm.bias"] += shift
    torch.save(tensors, target / "pytorch_model.bin")
    return target


def test_safetensors_that_differ_from_the_pickle_beside_them(
    tmp_path: Path, steps: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "suite"
    _with_pickle(steps["step0"], suite / "checkpoint-0", 0.0)
    _with_pickle(steps["step10"], suite / "checkpoint-10", 1.0)
    experiment = sweeps.experiment(tmp_path / "study", str(suite))
    assert sweeps.run(experiment, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "checkpoint-10: model.safetensors and pytorch_model.bin hold different weights (1 tensors" in said
    assert "final_layer_norm.bias" in said
    assert "checkpoint-0:" not in said
    assert sweeps.run(experiment, tmp_path / "out", "--accept-flags") == 0
    assert main(["suites", str(suite), "--verify"]) == 1
    assert "checkpoint-10: model.safetensors and pytorch_model.bin" in capsys.readouterr().out


def test_verify_lists_every_revision_and_can_bring_both_formats(
    tmp_path: Path, hub: Hub, steps: dict[str, Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sweeps.catalogue(monkeypatch, STEPS)
    both = {name: _with_pickle(folder, tmp_path / name, 0.0) for name, folder in steps.items()}
    hub.add(sweeps.REPO, both)
    assert main(["suites", "lab", "--verify"]) == 0
    shown = capsys.readouterr().out
    for name in steps:
        assert hub.commit(sweeps.REPO, name)[:12] in shown
    assert "not on this machine" in shown
    assert not hub.fetched()
    shutil.copy(both["step0"] / "pytorch_model.bin", both["step20"] / "pytorch_model.bin")
    hub.add(sweeps.REPO, both)
    assert main(["suites", "lab", "--verify"]) == 1
    assert "step20 and step0 have the same .bin files" in capsys.readouterr().out
    assert main(["suites", "lab", "--verify", "--download"]) == 1
    shown = capsys.readouterr().out
    assert "step20: model.safetensors and pytorch_model.bin hold different weights" in shown
    assert "step10: model" not in shown
    assert "not on this machine" not in shown
    hub.stop()
    ref = CheckpointRef("lab", sweeps.REPO, "step0", 0)
    assert fetch(identify(ref).weights).is_dir()


def test_verify_needs_a_suite_that_is_there(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites", "--verify"]) == 2
    assert main(["suites", "lab/none", "--verify"]) == 1
    assert "no model 'lab/none'" in capsys.readouterr().out
