"""Faults planted one by one in a sweep: each is named, costs its own unit at most, and no wrong number is ever read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import models
import sweeps
from bindscope.checkpoints import disk
from bindscope.store import Store
from loopback import Hub, hub_fixture  # noqa: F401  the fixture `hub`

STEPS = (0, 10, 20)


@dataclass
class Stage:
    """Where a fault is planted: a hub with three revisions, the same three in a folder, and a finished run of it."""

    hub: Hub
    steps: dict[str, Path]
    folder: Path
    out: Path
    experiment: str
    patch: pytest.MonkeyPatch
    options: list[str] = field(default_factory=list)

    def changed(self, change: Callable[[dict[str, Any]], object], **meta: str) -> Path:
        """The middle checkpoint with other tensors."""
        target = self.folder.parent / "changed"
        shutil.copytree(self.steps["step10"], target)
        tensors = load_file(target / "model.safetensors")
        change(tensors)
        save_file(tensors, target / "model.safetensors", {"format": "pt", **meta})
        return target

    def served(self, folder: Path) -> None:
        """Serve it as the middle checkpoint."""
        self.hub.move(sweeps.REPO, "step10", folder)

    def shard(self) -> Path:
        return next((self.out / "shards").rglob("checkpoint-10/eb_star-*.parquet"))

    def local(self) -> None:
        """Run on the folder, into the finished run."""
        self.experiment = sweeps.experiment(self.folder.parent / "local", str(self.folder))


def twin(s: Stage) -> None:
    s.served(s.steps["step0"])


def final_twin(s: Stage) -> None:
    s.served(s.steps["step20"])


def equal_tensors(s: Stage) -> None:
    tensors = load_file(s.steps["step0"] / "model.safetensors")
    s.served(s.changed(lambda t: t.update(tensors), saved="again"))


def moved_branch(s: Stage) -> None:
    assert sweeps.run(s.experiment, s.out) == 0
    s.served(s.changed(lambda t: t["gpt_neox.final_layer_norm.bias"].add_(1)))


def one_pickle_for_all(s: Stage) -> None:
    for name, folder in s.steps.items():
        copy = Path(shutil.copytree(folder, s.folder.parent / f"blob-{name}"))
        torch.save({"x": torch.ones(3)}, copy / "pytorch_model.bin")
        s.hub.move(sweeps.REPO, name, copy)


def other_pickle(s: Stage) -> None:
    s.local()
    tensors = load_file(s.folder / "checkpoint-10" / "model.safetensors")
    tensors["gpt_neox.final_layer_norm.bias"] += 1
    torch.save(tensors, s.folder / "checkpoint-10" / "pytorch_model.bin")


def flipped_shard(s: Stage) -> None:
    s.local()
    data = bytearray(s.shard().read_bytes())
    data[len(data) // 3] ^= 255
    s.shard().write_bytes(data)


def truncated_shard(s: Stage) -> None:
    s.local()
    s.shard().write_bytes(s.shard().read_bytes()[:-200])


def shard_of_another_checkpoint(s: Stage) -> None:
    s.local()
    other = next((s.out / "shards").rglob("checkpoint-20/eb_star-*.parquet"))
    shutil.copy(other, s.shard())


def foreign_shard(s: Stage) -> None:
    s.local()
    pd.DataFrame({"prompt": ["p"], "eb_star": [0.5]}).to_parquet(s.shard())


def corrupt_download(s: Stage) -> None:
    s.hub.corrupt(f"{s.hub.commit(sweeps.REPO, 'step10')}/model.safetensors", at=100_000, damage=b"\0" * 16)


def file_missing_on_the_hub(s: Stage) -> None:
    s.hub.fail(f"{s.hub.commit(sweeps.REPO, 'step10')}/model.safetensors", times=1000, status=404)


def errors_of_the_hub(s: Stage) -> None:
    s.hub.fail("/revision/step10", times=1000)


def connection_cut(s: Stage) -> None:
    s.hub.cut(f"{s.hub.commit(sweeps.REPO, 'step10')}/model.safetensors", after=20_000, times=1000)


def no_such_revision(s: Stage) -> None:
    del s.hub.repos[sweeps.REPO].branches["step10"]


def full_cache(s: Stage) -> None:
    """Filled by somebody else after room was looked for: the third checkpoint does not fit."""
    s.patch.setattr(disk, "check_room", lambda *_: None)
    _mount(Path(constants.HF_HUB_CACHE), "800k")


def no_room(s: Stage) -> None:
    _mount(Path(constants.HF_HUB_CACHE), "800k")


def full_results(s: Stage) -> None:
    shutil.rmtree(s.out)
    _mount(s.out, "60k")


def missing_tensor(s: Stage) -> None:
    s.served(s.changed(lambda t: t.pop("gpt_neox.layers.1.attention.dense.weight")))


def extra_tensor(s: Stage) -> None:
    s.served(s.changed(lambda t: t.update({"gpt_neox.layers.7.attention.dense.weight": torch.ones(2)})))


def nan_weights(s: Stage) -> None:
    s.served(s.changed(lambda t: t["gpt_neox.final_layer_norm.bias"].__setitem__(0, torch.nan)))


def other_shape(s: Stage) -> None:
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"
    s.served(s.changed(lambda t: t.update({name: t[name][:, :-1].contiguous()})))


def truncated_weights(s: Stage) -> None:
    s.local()
    path = s.folder / "checkpoint-10" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickle_with_code(s: Stage) -> None:
    s.local()
    folder = s.folder / "checkpoint-10"
    (folder / "model.safetensors").unlink()
    torch.save({"x": _Evil(str(folder / "marker"))}, folder / "pytorch_model.bin")


def broken_config(s: Stage) -> None:
    s.local()
    (s.folder / "checkpoint-10" / "config.json").write_text("{")


def foreign_tokenizer(s: Stage) -> None:
    s.local()
    folder = s.folder / "checkpoint-10"
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {text: number + 1000 * (number > 0) for text, number in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


class _Evil:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.marker,)


def _mount(folder: Path, size: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a small disk to fill needs the right to mount one")


#: Fault -> exit code and words of what is said. 2: refused before anything is measured; 1: fails alone; 0: healed.
FAULTS: dict[Callable[[Stage], None], tuple[int, tuple[str, ...]]] = {
    twin: (2, ("step10 holds the same weights as step0", "weight files are equal")),
    final_twin: (2, ("step10 holds the weights of the final checkpoint, step20",)),
    equal_tensors: (1, ("step10 holds the same weights as step0", "all tensors are equal")),
    moved_branch: (2, ("step10 was commit", "other files")),
    one_pickle_for_all: (2, ("step10 and step0 have the same .bin files",)),
    other_pickle: (2, ("checkpoint-10: model.safetensors and pytorch_model.bin hold different weights",)),
    flipped_shard: (0, ("checkpoint-10/eb_star", "torn")),
    truncated_shard: (0, ("checkpoint-10/eb_star", "torn")),
    shard_of_another_checkpoint: (0, ("checkpoint-10/eb_star", "holds another result")),
    foreign_shard: (0, ("checkpoint-10/eb_star", "not a shard")),
    corrupt_download: (1, ("model.safetensors of lab/suite", "arrived damaged")),
    file_missing_on_the_hub: (1, ("downloading lab/suite at", "404")),
    errors_of_the_hub: (1, ("lab/suite at step10", "500")),
    connection_cut: (1, ("downloading lab/suite at", "run again")),
    no_such_revision: (1, ("no revision 'step10'", "step0, step20")),
    full_cache: (1, ("downloading lab/suite", "No space left")),
    no_room: (2, ("room for", "--evict")),
    full_results: (1, ("cannot write", "No space left")),
    missing_tensor: (1, ("lack 1 tensors", "layers.1.attention.dense.weight")),
    extra_tensor: (1, ("no place for", "layers.7.attention.dense.weight")),
    nan_weights: (1, ("not finite", "final_layer_norm.bias")),
    other_shape: (1, ("1 tensors of lab (step 10) have another shape", "dense_4h_to_h.weight")),
    truncated_weights: (1, ("model.safetensors cannot be read",)),
    pickle_with_code: (1, ("pytorch_model.bin cannot be read",)),
    broken_config: (1, ("step 10", "config.json")),
    foreign_tokenizer: (1, ("use the tokenizer that belongs to the weights",)),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerFast) -> Path:
    """Three checkpoints in a folder called suite, and a finished run of them beside it."""
    root = tmp_path_factory.mktemp("sound")
    for n in STEPS:
        models.save(root / "suite" / f"checkpoint-{n}", words, seed=n, num_hidden_layers=2)
    assert sweeps.run(sweeps.experiment(root / "study", str(root / "suite")), root / "out") == 0
    return root


@pytest.fixture
def stage(tmp_path: Path, hub: Hub, sound: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("BINDSCOPE_CACHE", str(tmp_path / "bindscope-cache"))
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    steps = {f"step{n}": tmp_path / "suite" / f"checkpoint-{n}" for n in STEPS}
    hub.add(sweeps.REPO, steps)
    sweeps.catalogue(monkeypatch, STEPS)
    experiment = sweeps.experiment(tmp_path / "study", "lab")
    yield Stage(hub, steps, tmp_path / "suite", tmp_path / "out", experiment, monkeypatch)
    for folder in (tmp_path / "out", Path(constants.HF_HUB_CACHE)):
        if folder.is_mount():
            subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.filterwarnings("ignore:Not enough free disk space")  # the hub's client says so as well
@pytest.mark.parametrize("plant", FAULTS, ids=lambda f: f.__name__)
def test_a_planted_fault_is_named(
    plant: Callable[[Stage], None], stage: Stage, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = FAULTS[plant]
    plant(stage)
    before = sweeps.shards(stage.out) if stage.out.exists() else {}
    capsys.readouterr()
    assert sweeps.run(stage.experiment, stage.out, *stage.options) == code
    err = capsys.readouterr().err
    for word in said:
        assert word in err
    assert "Traceback" not in err
    if code == 2:
        assert sweeps.shards(stage.out) == before
    elif code == 0:
        sweeps.same(sweeps.tables(stage.out), sweeps.tables(sound / "out"))
    elif plant is not full_results:
        bad = 20 if plant is full_cache else 10
        units = {u.checkpoint.step: u for u in Store(stage.out).read_run().units}
        assert [step for step, u in units.items() if u.status == "failed"] == [bad]
        assert (stage.out / str(units[bad].traceback)).is_file()
        expected = sweeps.tables(sound / "out")["recognition"].query(f"step != {bad}")["logprob"].tolist()
        found = sweeps.tables(stage.out)["recognition"]["logprob"].tolist()
        assert [list(x) for x in found] == [list(x) for x in expected]
    assert not list(stage.folder.rglob("marker"))


def test_there_are_twenty_and_more() -> None:
    assert len(FAULTS) >= 20
