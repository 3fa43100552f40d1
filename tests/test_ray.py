"""The same study on a Ray cluster: the same records, to the bit, whatever is lost on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

import models
import sweeps
from bindscope.cli import _with_ray_address
from bindscope.store import Store

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'bindscope[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

from bindscope.execute import ray as cluster  # noqa: E402  needs Ray

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves files of its processes open


@pytest.fixture
def suite(tmp_path: Path, words: PreTrainedTokenizerFast) -> Path:
    for n in (0, 1, 2):
        models.save(tmp_path / "suite" / f"checkpoint-{n}", words, seed=n)
    return tmp_path / "suite"


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_cluster_of_its_own_gives_the_tables_of_a_local_run(
    tmp_path: Path, suite: Path, one_thread: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three checkpoints, one of them damaged. Then healed: only that one is measured, by workers that do not see the
    run folder, so that its shards come back through the driver."""
    path = suite / "checkpoint-1" / "model.safetensors"
    whole, tensors = path.read_bytes(), load_file(path)
    tensors["gpt_neox.final_layer_norm.bias"][0] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    experiment, out = sweeps.experiment(tmp_path / "study", str(suite)), tmp_path / "out"
    assert sweeps.run(experiment, out, "--ray") == 1
    units = Store(out).read_run().units
    assert [u.status for u in units] == ["done", "failed", "done"]
    assert "not finite" in str(units[1].reason)
    assert "Traceback" in (out / str(units[1].traceback)).read_text()
    assert not [p.name for p in out.iterdir() if p.name.startswith(".ray")]
    kept = sweeps.shards(out)
    path.write_bytes(whole)
    capsys.readouterr()
    place = cluster._Place
    monkeypatch.setattr(cluster, "_Place", lambda root, *rest: place(tmp_path / "elsewhere", *rest))
    assert sweeps.run(experiment, out, "--ray") == 0
    assert "1 measured, 2 found in the store" in capsys.readouterr().out
    assert sweeps.shards(out).items() > kept.items()
    assert not (tmp_path / "elsewhere").exists()
    assert sweeps.run(experiment, tmp_path / "local") == 0
    sweeps.same(sweeps.tables(out), sweeps.tables(tmp_path / "local"))
    assert {p.name for p in out.rglob("*.parquet")} == {p.name for p in (tmp_path / "local").rglob("*.parquet")}


def test_an_address_without_a_cluster_is_a_wrong_request(
    tmp_path: Path, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = sweeps.experiment(tmp_path / "study", str(suite))
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:x"):
        assert sweeps.run(experiment, tmp_path / "out", "--ray", address) == 2
        assert f"no Ray cluster at {address}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_node_that_is_killed_costs_nothing_but_time(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    """Two raylets on this machine, and a head without cores; one raylet is killed with SIGKILL in the middle."""
    suite = tmp_path / "suite"
    for n in range(10):
        models.save(suite / f"checkpoint-{n}", words, seed=n)
    experiment, out = sweeps.experiment(tmp_path / "study", str(suite)), tmp_path / "out"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        victim, _ = (nodes.add_node(num_cpus=1) for _ in range(2))
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "bindscope", "run", experiment, "--out", str(out), "--ray", nodes.address]
        driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        deadline = time.monotonic() + 300
        while len(sweeps.shards(out)) < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        (raylet,) = victim.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        before = sweeps.shards(out)
        _, said = driver.communicate(timeout=400)
    finally:
        nodes.shutdown()
    assert driver.returncode == 0, said
    whole = 10 * len(sweeps.stored("binding", "recognition"))
    assert len(before) < whole
    after = sweeps.shards(out)
    assert len(after) == whole
    assert after.items() >= before.items()  # nothing that was stored is measured again
    assert sweeps.run(experiment, tmp_path / "local") == 0
    sweeps.same(sweeps.tables(out), sweeps.tables(tmp_path / "local"))


def test_the_address_may_be_left_out() -> None:
    assert _with_ray_address(["run", "tiny", "--ray"]) == ["run", "tiny", "--ray", "local"]
    assert _with_ray_address(["run", "--ray", "--out", "x", "tiny"]) == ["run", "--ray", "local", "--out", "x", "tiny"]
    assert _with_ray_address(["run", "tiny", "--ray", "10.0.0.1:6379"]) == ["run", "tiny", "--ray", "10.0.0.1:6379"]
