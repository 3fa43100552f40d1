"""Runs that are killed: does a resumed run end as an undisturbed one does?

An experiment of two prompts on the twelve checkpoints of `tiny` runs in a process that is killed with SIGKILL at a
random moment. Half of the kills come just after a shard has appeared, while others are being written. The run is
started and killed again, and then left to finish. The script counts shards that cannot be read after a kill, shards
that were written a second time, and runs whose tables differ from the undisturbed ones in a single byte. Processes are
forked from one that has already loaded torch.

    OMP_NUM_THREADS=1 python benchmarks/survive.py [RUNS] [SEED]
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bindscope import experiment as experiments
from bindscope.execute import local
from bindscope.execute.request import Request, prepare
from bindscope.records import CheckpointRef
from bindscope.store import Store

_PROMPTS = [
    {"term": term, "task": "recognition", "template": f"{term} is", "choices": ["good", "a plan", "a name"],
     "answer_idx": 0, "prompt_id": "r1"}
    for term in ("screen reader", "skip link")
]  # fmt: skip
#: Times that a run is killed, at most: it may end before its moment has come.
_KILLS = 2


class Silent:
    """A watcher that shows nothing."""

    def begin(self, units: int) -> None: ...
    def unit(self, ref: CheckpointRef, steps: int) -> None: ...
    def progress(self, done: float) -> None: ...
    def end(self, ref: CheckpointRef, reason: str | None) -> None: ...
    def note(self, text: str) -> None: ...


def forked(work: Callable[[], int]) -> int:
    """Run it in a process of its own; the process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        code = work()
    finally:
        os._exit(code)


def measured(request: Request, out: Path) -> int:
    store = Store(out)
    with store.lock():
        return 1 if local.run(request, store, Silent()).errors else 0


def shards(out: Path) -> dict[str, tuple[int, int]]:
    """What changes when a shard is written again."""
    found = {}
    for path in (out / "shards").rglob("*.parquet"):
        stat = path.stat()
        found[str(path.relative_to(out))] = (stat.st_ino, stat.st_mtime_ns)
    return found


def contents(out: Path) -> dict[str, str]:
    """Shard -> SHA-256 of its table without metadata; "torn" for one that cannot be read."""
    found = {}
    for path in sorted((out / "shards").rglob("*.parquet")):
        sink = pa.BufferOutputStream()
        try:
            table = pq.read_table(path, page_checksum_verification=True, use_threads=False)
            with pa.ipc.new_stream(sink, table.replace_schema_metadata(None).schema) as stream:
                stream.write_table(table.replace_schema_metadata(None).combine_chunks())
            found[path.relative_to(out).as_posix()] = hashlib.sha256(sink.getvalue()).hexdigest()
        except (OSError, pa.ArrowException):
            found[path.relative_to(out).as_posix()] = "torn"
    return found


def killed(pid: int, out: Path, seconds: float, most: int, pick: random.Random) -> bool:
    """Kill the process at a random moment, or when so many shards are there, `most` at most; false where it ended
    before by itself, and well."""
    start, aimed = time.monotonic(), pick.random() < 0.5
    moment, shard, late = pick.uniform(0, seconds), pick.randrange(1, most), pick.uniform(0, 0.02)
    while time.monotonic() - start < (10 * seconds if aimed else moment):
        if aimed and len(shards(out)) >= shard:
            time.sleep(late)
            break
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0, status
            return False
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def main(folder: Path, runs: int, seed: int) -> None:
    torch.set_num_threads(1)
    pick = random.Random(seed)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _PROMPTS))
    (folder / "experiment.yaml").write_text("name: survive\nsuites: tiny\nprompts: prompts.jsonl\n")
    request = prepare(experiments.load(str(folder / "experiment.yaml")))
    start = time.monotonic()
    _, status = os.waitpid(forked(lambda: measured(request, folder / "whole")), 0)
    assert status == 0
    seconds = time.monotonic() - start
    whole = contents(folder / "whole")
    print(f"undisturbed: {len(whole)} shards in {seconds:.1f} s", flush=True)
    kills, least, torn, again, half, equal = 0, _KILLS, 0, 0, 0, 0
    for n in range(runs):
        out, known = folder / f"run-{n}", dict[str, tuple[int, int]]()

        def resumed(out: Path = out) -> int:
            return measured(request, out)

        mine = 0
        while mine < _KILLS:
            if killed(forked(resumed), out, seconds, len(whole) - 4, pick):
                mine += 1
            elif mine:
                break
            else:  # it ended before its moment had come: not a run that was killed
                shutil.rmtree(out)
                continue
            half += bool(list(out.rglob(".*.tmp")))
            torn += "torn" in contents(out).values()
            now = shards(out)
            again += sum(now.get(name) != value for name, value in known.items())
            known = now
        if mine == _KILLS:
            _, status = os.waitpid(forked(resumed), 0)
            assert status == 0, status
        now = shards(out)
        kills, least = kills + mine, min(least, mine)
        again += sum(now.get(name) != value for name, value in known.items())
        equal += contents(out) == whole and not list(out.rglob(".*.tmp"))
        if (n + 1) % 10 == 0:
            print(
                f"{n + 1} runs, {kills} kills ({least} at least in each, {half} while a file was being written): "
                f"{equal} runs end identical, {torn} kills left a torn shard, {again} shards were written again",
                flush=True,
            )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="survive-") as place:
        main(Path(place), *(int(word) for word in (sys.argv[1:] + ["100", "1"][len(sys.argv) - 1 :])))
