"""What a run needs is made once: prompts, suites, and each stored table read once after it was written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bindscope.checkpoints import suites
from bindscope.cli import main
from bindscope.execute import request
from bindscope.experiment import Experiment
from bindscope.store import Store


def _counted(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, counts: Counter[str], key: Any = None) -> None:
    original = getattr(where, name)

    def wrapper(*args: Any, **more: Any) -> Any:
        counted = name if key is None else key(*args, **more)
        if counted:
            counts[counted] += 1
        return original(*args, **more)

    monkeypatch.setattr(where, name, wrapper)


def test_prompts_suites_and_shards(tmp_path: Path, suite_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    reads: Counter[str] = Counter()

    def existing(store: Store, ref: Any, name: str, key: str) -> str:
        path = store.path(ref, name, key)
        return str(path) if path.exists() else ""

    _counted(monkeypatch, Experiment, "build_prompts", counts)
    _counted(monkeypatch, request, "suites", counts)
    _counted(monkeypatch, Store, "_shard", reads, existing)
    (tmp_path / "x.yaml").write_text(
        f"name: x\nsuites: ['{suite_folder}']\nterms: [pilot-3]\nmeasures: [binding, recognition, generation]\n"
    )
    assert main(["run", str(tmp_path / "x.yaml"), "--out", str(tmp_path / "out")]) == 0
    assert counts == {"build_prompts": 1, "suites": 1}
    shards = {str(path) for path in (tmp_path / "out" / "shards").rglob("*.parquet")}
    assert len(shards) == 13 * len(suites.suite(str(suite_folder)).checkpoints)
    assert set(reads) <= shards
    assert set(reads.values()) == {1}  # windows are stored for others, and not read again
