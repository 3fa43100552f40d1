"""Sweeps over a hub's revisions: downloads ahead, eviction, room, failures that stay with their unit, two at a time."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, scan_cache_dir, snapshot_download
from rich.filesize import decimal
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import models
import sweeps
from bindscope.checkpoints import disk
from bindscope.checkpoints.files import DownloadStopped, identify
from bindscope.execute import unit
from bindscope.execute.downloads import Downloads
from bindscope.execute.measuring import Outcome, Session
from bindscope.measures.base import Measure
from bindscope.records import CheckpointRef
from bindscope.store import Store
from loopback import Hub, hub_fixture  # noqa: F401  the fixture `hub`
from sweeps import STEPS, own_cache, steps_fixture  # noqa: F401  a cache of its own, the fixture `steps`


@pytest.fixture
def experiment(tmp_path: Path, hub: Hub, steps: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """A study of three revisions on the hub."""
    hub.add(sweeps.REPO, steps)
    sweeps.catalogue(monkeypatch, STEPS)
    return sweeps.experiment(tmp_path / "study", "lab")


def _cached() -> dict[str, set[str]]:
    """Repository -> commits of which the hub's cache holds a snapshot."""
    return {repo.repo_id: {r.commit_hash for r in repo.revisions} for repo in scan_cache_dir().repos}


def test_the_next_checkpoint_arrives_while_this_one_is_measured(
    tmp_path: Path, hub: Hub, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than one ahead: while a checkpoint is measured the next is there, and the one after it is not."""
    seen: list[set[str]] = []
    load = unit.load

    def watching(*args: object, **kwargs: object) -> object:
        deadline = time.monotonic() + 20
        while len(_asked(hub)) < min(len(seen) + 2, 3) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(_asked(hub))
        return load(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(unit, "load", watching)
    assert sweeps.run(experiment, tmp_path / "out") == 0
    commits = [hub.commit(sweeps.REPO, f"step{n}") for n in STEPS]
    assert seen == [set(commits[:2]), set(commits), set(commits)]


def _asked(hub: Hub) -> set[str]:
    return {r.path.split("/")[4] for r in hub.asked("GET /lab/suite/resolve/") if "safetensors" in r.path}


def test_a_download_that_fails_fails_its_own_unit(
    tmp_path: Path, hub: Hub, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail(f"GET /{sweeps.REPO}/resolve/{hub.commit(sweeps.REPO, 'step10')}/model", times=1000, status=403)
    out = tmp_path / "out"
    assert sweeps.run(experiment, out) == 1
    assert "step 10 failed: downloading lab/suite" in capsys.readouterr().err
    assert [u.status for u in Store(out).read_run().units] == ["done", "failed", "done"]
    kept = sweeps.shards(out)
    hub.heal()
    assert sweeps.run(experiment, out) == 0
    assert sweeps.shards(out).items() > kept.items()


def test_evict_removes_what_the_run_downloaded_and_nothing_else(
    tmp_path: Path, hub: Hub, steps: dict[str, Path], experiment: str
) -> None:
    mine, other = hub.commit(sweeps.REPO, "step10"), hub.commit(sweeps.REPO, "step20")
    snapshot_download(sweeps.REPO, revision=other)  # another program's
    hub.add("lab/other", {"main": steps["step0"]})  # the same blobs in another repository
    snapshot_download("lab/other")
    hub.requests.clear()
    out = tmp_path / "out"
    assert sweeps.run(experiment, out, "--evict") == 0
    assert _cached() == {sweeps.REPO: {other}, "lab/other": {hub.commit("lab/other")}}
    snapshot = Path(snapshot_download(sweeps.REPO, revision=other, local_files_only=True))
    for name in ("model.safetensors", "tokenizer.json"):  # the tokenizer was shared with the revisions that went
        assert (snapshot / name).read_bytes() == (steps["step20"] / name).read_bytes()
    blobs = Path(constants.HF_HUB_CACHE) / "models--lab--suite" / "blobs"
    assert {b.name for b in blobs.iterdir()} == {p.resolve().name for p in snapshot.iterdir()}
    assert not list((out / "downloads").iterdir())
    assert hub.fetched().count("model.safetensors") == 2
    assert sweeps.run(experiment, out, "--evict") == 0  # nothing is downloaded again for what is in the store
    assert hub.fetched().count("model.safetensors") == 2
    assert mine not in _cached()[sweeps.REPO]


def test_evict_leaves_a_revision_to_which_somebody_has_added(tmp_path: Path, hub: Hub, experiment: str) -> None:
    ref = CheckpointRef("lab", sweeps.REPO, "step0", 0)
    files = identify(ref)
    store = Store(tmp_path / "out")
    with Downloads(store) as downloads:
        downloads.fetch(files).result()
        folder = Path(snapshot_download(sweeps.REPO, revision=files.weights.commit))
        (folder / "notes.txt").write_text("another program's")
        downloads.remove(files).result()
    assert (folder / "model.safetensors").is_file()
    assert disk.evict(files.weights) is False
    for name in ("notes.txt", "generation_config.json"):  # of no use to us, but the other program fetched it
        (folder / name).unlink()
    assert disk.evict(files.weights) is True
    assert not folder.exists()


def test_evict_takes_what_an_interrupted_run_left(tmp_path: Path, hub: Hub, experiment: str) -> None:
    """The run folder remembers what was its own download."""
    hub.fail("/model.safetensors", status=403, times=1000)
    out = tmp_path / "out"
    assert sweeps.run(experiment, out, "--evict") == 2
    assert _cached()[sweeps.REPO]
    hub.heal()
    assert sweeps.run(experiment, out, "--evict") == 0
    assert not _cached().get(sweeps.REPO)


def test_what_a_killed_run_downloaded_is_checked_by_the_next(
    tmp_path: Path, hub: Hub, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed behind the last byte and before the comparison: the damaged file lies in the cache under a good name."""
    out, commit = tmp_path / "out", hub.commit(sweeps.REPO, "step10")
    mark = Path("downloads") / f"{platform.node()}-lab--suite-{commit}.txt"
    hub.corrupt(f"{commit}/model.safetensors", at=100_000, damage=b"\0" * 16)
    snapshot_download(sweeps.REPO, revision=commit)  # as the client does it, without a look at the hash
    Store(out).write_text(str(mark), "")
    hub.heal()
    assert sweeps.run(experiment, out) == 1
    assert "arrived damaged" in capsys.readouterr().out
    assert sweeps.run(experiment, out) == 0


def test_leaving_gives_up_the_download_in_work(
    tmp_path: Path, hub: Hub, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = identify(CheckpointRef("lab", sweeps.REPO, "step0", 0))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.trickle("model.safetensors", bytes_at_a_time=1000, seconds=0.05)
    downloads = Downloads(Store(tmp_path / "out"))
    coming = downloads.fetch(files)
    deadline = time.monotonic() + 20
    while "model.safetensors" not in hub.fetched() and time.monotonic() < deadline:
        time.sleep(0.01)
    downloads.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert isinstance(coming.exception(timeout=60), DownloadStopped)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("model.safetensors"))


def test_slow_bytes_are_waited_for(tmp_path: Path, hub: Hub, experiment: str) -> None:
    hub.trickle("model.safetensors", bytes_at_a_time=40_000, seconds=0.05)
    assert sweeps.run(experiment, tmp_path / "out") == 0


def test_room_is_looked_for_before_anything_is_downloaded(
    tmp_path: Path, hub: Hub, experiment: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = disk.download_size(identify(CheckpointRef("lab", sweeps.REPO, "step0", 0)))
    assert size > 100_000
    usage = shutil.disk_usage(tmp_path)._replace(free=int(2.5 * size))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    out = tmp_path / "out"
    assert sweeps.run(experiment, out) == 2
    said = capsys.readouterr().err
    for word in (decimal(3 * size), decimal(usage.free), decimal(2 * size), "--evict", constants.HF_HUB_CACHE):
        assert word in said
    assert not hub.fetched()
    assert sweeps.run(experiment, out, "--evict") == 0
    assert not _cached().get(sweeps.REPO)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size))
    assert sweeps.run(experiment, tmp_path / "other", "--evict") == 2
    assert "HF_HUB_CACHE" in capsys.readouterr().err


def test_an_error_that_nobody_foresaw_stays_with_its_unit(
    tmp_path: Path, experiment: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Session.passes

    def broken(session: Session, measures: Sequence[Measure]) -> Iterator[Outcome]:
        if session.loaded.ref.step == 10:
            raise ZeroDivisionError("by accident")
        return passes(session, measures)

    monkeypatch.setattr(Session, "passes", broken)
    out = tmp_path / "out"
    assert sweeps.run(experiment, out) == 1
    assert "unexpected ZeroDivisionError: by accident" in capsys.readouterr().out
    failed = Store(out).read_run().units[1]
    assert failed.status == "failed"
    assert failed.traceback == "failures/lab-step10.txt"
    assert 'raise ZeroDivisionError("by accident")' in (out / failed.traceback).read_text()
    assert "by accident" in (out / "report.html").read_text()


def test_only_what_failed_is_tried_again(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    suite = tmp_path / "suite"
    for n in STEPS:
        models.save(suite / f"checkpoint-{n}", words, seed=n)
    path = suite / "checkpoint-10" / "model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    tensors["gpt_neox.final_layer_norm.bias"][0] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    out, experiment = tmp_path / "out", sweeps.experiment(tmp_path / "study", str(suite))
    assert sweeps.run(experiment, out) == 1
    trace = out / str(Store(out).read_run().units[1].traceback)
    assert "not finite" in trace.read_text()
    kept = sweeps.shards(out)
    path.write_bytes(whole)
    assert sweeps.run(experiment, out) == 0
    assert not trace.exists()
    assert sweeps.shards(out).items() > kept.items()
    assert Store(out).read_run().units[1].traceback is None


def test_more_models_and_steps_extend_a_run(
    tmp_path: Path, words: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, n in ((one, 0), (two, 1)):
        models.save(folder / f"checkpoint-{n}", words, seed=n)
    out = tmp_path / "out"
    assert sweeps.run(sweeps.experiment(tmp_path / "study", str(one)), out) == 0
    kept = sweeps.shards(out)
    models.save(one / "checkpoint-5", words, seed=5)
    capsys.readouterr()
    assert sweeps.run(sweeps.experiment(tmp_path / "study", [str(one), str(two)]), out) == 0
    assert "2 measured, 1 found in the store" in capsys.readouterr().out
    assert len(sweeps.shards(out)) == 3 * len(kept)
    assert sweeps.shards(out).items() > kept.items()
    steps = Store(out).read("binding")[["suite", "step"]].drop_duplicates().to_numpy().tolist()
    assert steps == [["one", 0], ["one", 5], ["two", 1]]


def test_two_processes_on_one_folder(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    """One of them is refused, whichever comes second, and what the other writes is whole."""
    suite = tmp_path / "suite"
    for n in range(2):
        models.save(suite / f"checkpoint-{n}", words, seed=n)
    out, experiment = tmp_path / "out", sweeps.experiment(tmp_path / "study", str(suite))
    command = [sys.executable, "-m", "bindscope", "run", experiment, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
    codes = sorted(code for _, code in ends)
    assert codes == [0, 2], ends
    (refused,) = [text for text, code in ends if code == 2]
    assert refused.strip() == f"bindscope: another run is writing to {out}; wait for it or take another folder"
    assert sweeps.run(experiment, tmp_path / "alone") == 0
    sweeps.same(sweeps.tables(out), sweeps.tables(tmp_path / "alone"))


def test_what_a_killed_run_left_half_written_goes(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    ours = [store.root / name / f".x.{'0a' * 16}.tmp" for name in (".", "shards", "shards/suite/step0", "failures")]
    others = [store.root / name for name in (".mine.tmp", "shards/.mine.tmp")]
    for path in (*ours, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with store.lock():
        assert not any(path.exists() for path in ours)
        assert all(path.exists() for path in others)
