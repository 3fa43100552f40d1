"""Keys that change with everything that changes a number, and shards that are whole or absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bindscope.errors import StoreError
from bindscope.records import CheckpointRef, Identity, Prompt, Protocol, Provenance, canonical, digest
from bindscope.schema import Column, Measurement, Table
from bindscope.store import RunFile, Store, Unit, result_key

REF = CheckpointRef("suite", "org/name", "step10", 10)
IDENTITY = Identity("org/name", "c" * 40, "f" * 64)
PROMPTS = [Prompt("alt text/r", "alt text", "Alt text is", "recognition", (), "k", ("a", "b"), 0, format="listed")]
TABLE = Table(
    "numbers",
    "a prompt",
    (
        Column("prompt", "text", "its id"),
        Column("eb_star", "number", "a number", missing="no reason is needed here"),
        Column("bsi", "list of numbers", "numbers", missing="no reason is needed here"),
    ),
)
RESULT = Measurement(TABLE, TABLE.arrow({"prompt": ["p", "q"], "eb_star": [0.5, None], "bsi": [[0.1, 0.2], None]}))
PROVENANCE = Provenance({"torch": "2"}, None, None, "cpu", "float32", "on", "x", IDENTITY, REF, Protocol(), "now", 1.0)


def _key(**changes: object) -> str:
    parts: dict[str, object] = {
        "identity": IDENTITY,
        "dtype": "float32",
        "device": "cpu",
        "measure": "binding",
        "prompts": PROMPTS,
        "protocol": Protocol(),
    }
    return result_key(**(parts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"identity": replace(IDENTITY, repo="org/other")},
        {"identity": replace(IDENTITY, commit="d" * 40)},
        {"identity": replace(IDENTITY, fingerprint="0" * 64)},
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"measure": "recognition"},
        {"prompts": [replace(PROMPTS[0], text="Alt text is:")]},
        {"prompts": [replace(PROMPTS[0], answer=1)]},
        {"prompts": [replace(PROMPTS[0], aliases=("alternative text",))]},
        {"prompts": [*PROMPTS, replace(PROMPTS[0], id="alt text/s")]},
        {"protocol": Protocol(bos="off")},
        {"protocol": Protocol(premise="Reply:")},
        {"protocol": Protocol(order="spread")},
    ],
    ids=str,
)
def test_key_changes_with_everything_that_changes_a_number(change: dict[str, object]) -> None:
    assert _key(**change) != _key()


def test_canonical_form_does_not_depend_on_order() -> None:
    assert canonical({"b": 1, "a": (1, 2)}) == '{"a":[1,2],"b":1}'


@given(st.lists(st.text(max_size=5), max_size=3), st.lists(st.text(max_size=5), max_size=3))
def test_digests_of_different_lists_differ(a: list[str], b: list[str]) -> None:
    assert (digest(a) == digest(b)) == (a == b)
    assert digest(a, b) != digest([*a, *b])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def test_write_then_read(store: Store) -> None:
    key = _key()
    assert store.fault(REF, "numbers", key) == ""
    store.write(REF, key, RESULT, PROVENANCE)
    assert store.fault(REF, "numbers", key) is None
    store.write_run(RunFile({"name": "s"}, (Unit(REF, "done", {"numbers": key}), Unit(REF, "failed", {}, "why"))))
    frame = store.read("numbers")
    assert frame[["suite", "revision", "step", "prompt"]].to_numpy().tolist() == [
        ["suite", "step10", 10, "p"],
        ["suite", "step10", 10, "q"],
    ]
    assert frame["eb_star"][0] == 0.5
    assert pd.isna(frame["eb_star"][1])
    assert store.read_run().units[1].reason == "why"
    assert store.provenance(REF, "numbers", key)["identity"]["commit"] == "c" * 40


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_torn_shard_is_reported_and_not_read(store: Store, damage: str) -> None:
    key = _key()
    columns = {"prompt": [f"prompt {i}" for i in range(5000)], "eb_star": [i / 7 for i in range(5000)]}
    big = Measurement(TABLE, TABLE.arrow(columns | {"bsi": [None] * 5000}))
    path = store.write(REF, key, big, PROVENANCE)
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncate": data[: len(data) // 2],
            "empty": b"",
            "text": b"hello",
            "flip": data[:2000] + bytes([data[2000] ^ 255]) + data[2001:],
        }[damage]
    )
    fault = store.fault(REF, "numbers", key)
    assert fault is not None
    assert "torn" in fault
    store.write_run(RunFile({}, (Unit(REF, "done", {"numbers": key}),)))
    with pytest.raises(StoreError, match="torn"):
        store.read("numbers")


def test_every_single_byte_counts(store: Store) -> None:
    """Pages have checksums, but what stands between them and in the footer has none of its own."""
    path = store.write(REF, _key(), RESULT, PROVENANCE)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert store.fault(REF, "numbers", _key()), at
    path.write_bytes(data)
    assert store.fault(REF, "numbers", _key()) is None


def test_a_shard_of_another_revision_is_never_returned(store: Store) -> None:
    """What caches by name get wrong: the right file name over another checkpoint's numbers."""
    key, other = _key(), _key(identity=replace(IDENTITY, commit="e" * 40))
    wrong = store.write(REF, other, RESULT, PROVENANCE)
    wrong.rename(store.path(REF, "numbers", key))
    fault = store.fault(REF, "numbers", key)
    assert fault is not None
    assert other[:16] in fault


def test_a_failed_write_leaves_the_old_shard(store: Store) -> None:
    path = store.write(REF, _key(), RESULT, PROVENANCE)
    before = path.read_bytes()
    full = replace(PROVENANCE, notes=(object(),))  # cannot be written as JSON
    with pytest.raises(TypeError, match="object"):
        store.write(REF, _key(), RESULT, full)
    assert path.read_bytes() == before
    assert not [p for p in path.parent.iterdir() if p.name.endswith(".tmp")]


def test_unused_shards_are_counted(store: Store) -> None:
    store.write(REF, _key(), RESULT, PROVENANCE)
    store.write(REF, _key(dtype="bfloat16"), RESULT, PROVENANCE)
    store.write_run(RunFile({}, (Unit(REF, "done", {"numbers": _key()}),)))
    assert store.unused() == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        Store(file / "run")
    with pytest.raises(StoreError, match="not a results folder"):
        Store(tmp_path, create=False)
    with pytest.raises(StoreError, match=r"run\.json"):
        Store(tmp_path / "empty").read_run()
