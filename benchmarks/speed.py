"""What measuring costs, compared with the model alone and with other programs; see docs/performance.md.

    make bench                                        # or: python benchmarks/speed.py --tokenizer tokenizer.json

Each program (benchmarks/peers) runs in its own process, which keeps its model loaded. Within a comparison the programs
take turns, in an order that rotates from round to round. A ratio is the median of the ratios of the rounds. Results
are compared in value before anything is compared in speed.
--tokenizer: GPT-NeoX's, for random weights in the shape of Pythia-160M; without it only SmolLM2-135M is measured.
About an hour on two quiet cores. --only takes some of the comparisons; --rounds takes fewer rounds, for a trial.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))

import performance
from environments import CONTESTANTS, python_of
from tasks import folders, write_work

from bindscope.errors import BindscopeError

PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Comparison:
    """Who does what ("CONTESTANT JOB") on which prompts; the first is ours, with which the others are compared."""

    name: str
    work: str
    entries: tuple[str, ...]
    models: tuple[str, ...] = ("pythia-160m", "smollm2-135m")


_PYTHIA, _SMOLLM2 = ("pythia-160m",), ("smollm2-135m",)
_LONG = ("ours binding", "plain forward", "plain forward_neutral", "eager binding")
_BINDING = (*_LONG, "eager binding_neutral")
_READ = ("ours read", "plain read", "plain read_controls")
_PEERS = tuple(
    f"{name} {job}"
    for name in ("transformer_lens_2", "transformer_lens_4")
    for job in ("binding_demo", "binding", "binding_batched")
)
COMPARISONS = (
    Comparison("binding", "all", _BINDING, _PYTHIA),
    Comparison("read", "all", _READ, _PYTHIA),
    Comparison("long-512", "long-512", _LONG, _PYTHIA),
    Comparison("long-2048", "long-2048", _LONG, _PYTHIA),
    Comparison("long-4096", "long-4096", _LONG, _PYTHIA),
    Comparison("recognition", "all", ("ours recognition", "lm_eval_mc recognition"), _PYTHIA),
    Comparison("generation", "quarter", ("ours generation", "plain generation"), _PYTHIA),
    Comparison(
        "peers", "quarter", ("ours binding", *_PEERS, "nnsight_trace binding", "nnsight_trace binding_batched"), _PYTHIA
    ),
    Comparison("study", "quarter", ("ours binding", "study binding"), _PYTHIA),
    Comparison("binding", "eighth", _BINDING, _SMOLLM2),
    Comparison("read", "eighth", _READ, _SMOLLM2),
    Comparison("peers", "eighth", ("ours binding", "transformer_lens_4 binding", "nnsight_trace binding"), _SMOLLM2),
    Comparison(
        "recognition", "sixteenth", ("ours recognition", "lm_eval_mc recognition", "lm_eval_mc recognition_1"), _SMOLLM2
    ),
    Comparison("battery", "half", ("ours battery", "study battery"), _PYTHIA),
)


class Program:
    """A process that holds a model and runs jobs when asked."""

    def __init__(self, name: str, model: Path, work: Path, cache: Path) -> None:
        environment = CONTESTANTS[name]
        python = Path(sys.executable) if environment is None else python_of(environment, cache)
        self.name = name
        self.errors = (cache / f"{name}.log").open("w")
        command = [python, PEERS / f"{name}.py", "--model", model, "--work", work]
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.versions: dict[str, str] = self._heard()["versions"]

    def run(self, job: str, out: Path | None, threads: int) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"job": job, "out": out and str(out), "threads": threads}) + "\n")
        self.process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = json.loads(line) if line else {"error": "it ended"}
        if "error" in found:
            raise RuntimeError(f"{self.name}: {found['error']} (see {self.errors.name})")
        return dict(found)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


@dataclass
class Outcome:
    """What came of a comparison on one model: for each entry, what each round measured, and how far its results are
    from ours (None where it has none to compare)."""

    comparison: str
    model: str
    rounds: dict[str, list[dict[str, float]]]
    apart: dict[str, float | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)


def run(comparison: Comparison, model: str, folder: Path, work: Path, options: argparse.Namespace) -> Iterator[Outcome]:
    """Every entry once a round, and what is known after each; the first round's results are compared."""
    cache = options.cache.absolute()
    outcome = Outcome(comparison.name, model, {entry: [] for entry in comparison.entries}, counts=_counts(work))
    arrays: dict[str, Mapping[str, np.ndarray]] = {}
    with ExitStack() as stack:
        names = dict.fromkeys(entry.split()[0] for entry in comparison.entries)
        running = {name: stack.enter_context(_started(name, folder, work, cache)) for name in names}
        outcome.versions = {name: c.versions for name, c in running.items()}
        for n in range(options.rounds):
            turn = n % len(comparison.entries)
            for entry in (*comparison.entries[turn:], *comparison.entries[:turn]):
                name, job = entry.split()
                out = cache / "out.npz" if n == 0 else None
                found = running[name].run(job, out, options.threads)
                outcome.rounds[entry].append(found)
                if out is not None:
                    arrays[entry] = dict(np.load(out))
                print(f"{comparison.name} {model} round {n + 1}: {entry} {found['seconds']:.2f} s", flush=True)
            if n == 0:
                ours = arrays[comparison.entries[0]]
                outcome.apart = {entry: _apart(ours, arrays[entry]) for entry in comparison.entries[1:]}
            yield outcome


@contextmanager
def _started(name: str, folder: Path, work: Path, cache: Path) -> Iterator[Program]:
    program = Program(name, folder, work, cache)
    try:
        yield program
    finally:
        program.end()


def _counts(work: Path) -> dict[str, int]:
    raw = json.loads(work.read_text())
    return {name: len(raw[name]) for name in ("binding", "recognition", "generation")}


def _apart(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float | None:
    """Largest difference of what both have; for tokens, the number of texts that differ."""
    found: list[float] = []
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            raise ValueError(f"{name}: {a.shape} here, {b.shape} there")
        found.append(float((a != b).any(-1).sum()) if name == "tokens" else float(np.abs(a - b).max()))
    return max(found, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json of GPT-NeoX")
    parser.add_argument("--cache", type=Path, default=Path(".bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=sorted({c.name for c in COMPARISONS} | set(performance.ALONE)))
    parser.add_argument("--out", type=Path, default=Path("performance.md"))
    arguments = parser.parse_args()
    cache = arguments.cache.absolute()
    cache.mkdir(exist_ok=True)
    kept = cache / "speed.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    failed: list[str] = []
    for model, folder in folders(cache, arguments.tokenizer).items():
        for comparison in COMPARISONS:
            if model not in comparison.models or (arguments.only and comparison.name not in arguments.only):
                continue
            place = folders_for(comparison.work, folder)
            try:
                work = write_work(comparison.work, model, place, cache)
                for found in run(comparison, model, place, work, arguments):
                    known[f"{comparison.name} {model}"] = vars(found) | performance.circumstances()
                    kept.write_text(json.dumps(known, indent=1))
            except (RuntimeError, ValueError, BindscopeError) as error:  # the others go on
                failed.append(f"{comparison.name} {model}: {error}")
    for name, measure in performance.ALONE.items():
        if not arguments.only or name in arguments.only:
            known[name] = measure(cache) | performance.circumstances()
            kept.write_text(json.dumps(known, indent=1))
    arguments.out.write_text(performance.tables(known), encoding="utf-8")
    print(f"{arguments.out} is written")
    if failed:
        sys.exit("not measured:\n" + "\n".join(failed))


def folders_for(work: str, folder: Path) -> Path:
    """Long texts need a model whose config allows them."""
    return folder.with_name(f"{folder.name}-long") if work.startswith("long") else folder


if __name__ == "__main__":
    main()
