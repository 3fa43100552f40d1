"""Measurements without a second program, and the tables of all of them for docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

BINDSCOPE = Path(sys.executable).with_name("bindscope")


@dataclass(frozen=True)
class Limit:
    """A target. way: "cost" limits our seconds over theirs, "gain" theirs over ours. memory: (which, limit) of our
    memory over theirs, or none."""

    way: str
    ratio: float
    memory: tuple[str, float] | None = None


def _binding(gain: float, extra: float | None = None) -> dict[str, Limit]:
    """Targets of binding alone; gain and extra: of time and memory compared with eager attention."""
    floor = Limit("cost", 1.05, ("peak_mb", 1.10))
    eager = Limit("gain", gain, None if extra is None else ("extra_mb", extra))
    return {
        "plain forward": floor,
        "plain forward_neutral": floor,
        "eager binding": eager,
        "eager binding_neutral": eager,
    }


#: comparison -> (title, entry -> target).
LIMITS: dict[str, tuple[str, dict[str, Limit]]] = {
    "binding": ("Binding alone", _binding(1.0)),
    "read": (
        "Binding and recognition in one pass",
        {"plain read": Limit("cost", 1.15), "plain read_controls": Limit("cost", 1.15)},
    ),
    "long-512": ("Texts of 512 tokens", _binding(1.0)),
    "long-2048": ("Texts of 2,048 tokens", _binding(1.5, 0.1)),
    "long-4096": ("Texts of 4,096 tokens", _binding(1.5, 0.1)),
    "peers": (
        "Binding in other programs",
        {
            "transformer_lens_2 binding_demo": Limit("gain", 3.0),
            "transformer_lens_2 binding": Limit("gain", 3.0),
            "transformer_lens_2 binding_batched": Limit("gain", 3.0),
            "transformer_lens_4 binding_demo": Limit("gain", 3.0),
            "transformer_lens_4 binding": Limit("gain", 3.0),
            "transformer_lens_4 binding_batched": Limit("gain", 3.0),
            "nnsight_trace binding": Limit("gain", 2.0),
            "nnsight_trace binding_batched": Limit("gain", 2.0),
        },
    ),
    "study": ("Binding in the study's protocol", {"study binding": Limit("gain", 12.0)}),
    "recognition": (
        "Recognition in lm-evaluation-harness",
        {"lm_eval_mc recognition": Limit("gain", 3.0), "lm_eval_mc recognition_1": Limit("gain", 3.0)},
    ),
    "generation": ("Generation", {"plain generation": Limit("gain", 3.0)}),
    "battery": ("A whole checkpoint", {"study battery": Limit("gain", 10.0)}),
}
#: Entry -> what it is, in words.
WORDS = {
    "plain forward": "plain forward pass (SDPA), the same prompts",
    "plain forward_neutral": "the same, with the neutral text of the previous-token scores",
    "plain read": "plain forward pass, each prompt and choice once",
    "plain read_controls": "the same, with the texts of the controls (neutral text, premises of PMI)",
    "plain generation": "`generate()`, one prompt at a time",
    "eager binding": "eager attention, `output_attentions=True`, the same batches",
    "eager binding_neutral": "the same, with the neutral text",
    "transformer_lens_2 binding_demo": "TransformerLens 2, HookedTransformer, a prompt at a time, as in its main demo",
    "transformer_lens_2 binding": "the same, keeping the patterns only",
    "transformer_lens_2 binding_batched": "the same in our batches",
    "transformer_lens_4 binding_demo": "TransformerLens 4, bridge, a prompt at a time, as in its main demo",
    "transformer_lens_4 binding": "the same, keeping the patterns only",
    "transformer_lens_4 binding_batched": "the same in our batches",
    "nnsight_trace binding": "nnsight, a prompt at a time",
    "nnsight_trace binding_batched": "the same in our batches",
    "lm_eval_mc recognition": "lm-eval, batch 16",
    "lm_eval_mc recognition_1": "lm-eval, batch 1",
    "study binding": "the study's protocol: a truncated pass per layer and prompt",
    "study battery": "the study's protocol: two scripts, a load each",
}


def circumstances() -> dict[str, str]:
    """Machine and date of a measurement."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {"machine": f"{cpu}, {len(os.sched_getaffinity(0))} cores", "date": datetime.now(UTC).date().isoformat()}


def start(cache: Path) -> dict[str, Any]:
    """Seconds of `bindscope --help`, and what importing bindscope loads."""
    seconds = [_timed([BINDSCOPE, "--help"]) for _ in range(11)][1:]
    code = "import sys, bindscope; print(int('torch' in sys.modules or 'transformers' in sys.modules))"
    torch = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    return {"seconds": seconds, "torch": torch == "1"}


_GROW = """
import json, resource, sys, time
from dataclasses import replace
from bindscope import experiment as experiments
from bindscope.checkpoints.load import load
from bindscope.checkpoints.suites import suite
from bindscope.engine.engine import Engine
from bindscope.execute.measuring import measure
from bindscope.measures import registry
from bindscope.records import Protocol
times = int(sys.argv[1])
loaded = load(suite("tiny").checkpoints[-1], dtype="float32", device="cpu")
prompts = experiments.changed(experiments.load("canonical-41"), "published").build_prompts()
many = [replace(p, id=f"{p.id}#{n}") for n in range(times) for p in prompts]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
measures, _ = registry.chosen(["binding", "recognition"])
with Engine(loaded) as engine:
    measure(engine, many, Protocol(bos=loaded.bos), list(measures.values()))
print(json.dumps({"prompts": len(many), "seconds": time.perf_counter() - start,
                  "before": before / 1e3, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
"""


def growth(cache: Path) -> dict[str, Any]:
    """451 prompts, ten times and a hundred times as many, on the last checkpoint of `tiny`; each in a process."""
    found = []
    for times in (1, 10, 100):
        command = [sys.executable, "-c", _GROW, str(times)]
        found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    return {"rows": found}


def afterwards(cache: Path) -> dict[str, Any]:
    """`analyse` and `report` on 24 checkpoints of 451 prompts: both seeds of `tiny`."""
    with tempfile.TemporaryDirectory() as folder:
        suites = ["--suites", "tiny", "--suites", "tiny-seed-21"]
        run = [BINDSCOPE, "run", "canonical-41", "--protocol", "published", *suites, "--out", folder]
        subprocess.run(run, check=True, capture_output=True)
        rounds = [[_timed([BINDSCOPE, command, folder]) for command in ("analyse", "report")] for _ in range(5)]
    return {"analyse": [a for a, _ in rounds], "report": [b for _, b in rounds]}


#: (folder of weights, prompts, job) whose time is taken apart.
_PROFILES = (
    ("pythia-160m", "pythia-160m-all", "binding"),
    ("pythia-160m", "pythia-160m-all", "read"),
    ("pythia-160m-long", "pythia-160m-long-512", "binding"),
)


def profile(cache: Path) -> dict[str, Any]:
    """Where the time goes, on the prompts that comparisons have written."""
    from parts import seconds

    return {
        "jobs": {
            f"{job}, {prompts}": seconds(cache / folder, cache / f"{prompts}.json", job, 2)
            for folder, prompts, job in _PROFILES
            if (cache / f"{prompts}.json").is_file()
        }
    }


def monitor(cache: Path) -> dict[str, Any]:
    """What watching a training run costs."""
    from monitor import RUNS, overhead

    return {"runs": {name: overhead(name) for name in RUNS}}


ALONE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "start": start,
    "growth": growth,
    "afterwards": afterwards,
    "monitor": monitor,
    "profile": profile,
}


def _timed(command: list[Any]) -> float:
    begun = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return time.perf_counter() - begun


def tables(known: Mapping[str, Any]) -> str:
    """Everything that was measured, as the section "speed" of docs/performance.md."""
    parts = [_comparison(found) for name, found in known.items() if name not in ALONE]
    alone = [_ALONE[name](known[name]) for name in ALONE if name in known]
    return "\n".join([*parts, *alone, _versions(known)])


def _versions(known: Mapping[str, Any]) -> str:
    """The versions that every program ran with."""
    found: dict[str, dict[str, set[str]]] = {}
    for outcome in (known[name] for name in known if name not in ALONE):
        for program, versions in outcome["versions"].items():
            for package, version in versions.items():
                found.setdefault(program, {}).setdefault(package, set()).add(version)
    in_words = {
        program: ", ".join(f"{package} {' and '.join(sorted(v))}" for package, v in sorted(packages.items()))
        for program, packages in found.items()
    }
    rows = [f" `benchmarks/peers/{program}.py` | {versions} " for program, versions in sorted(in_words.items())]
    return _section("Versions", "Of every program.", " program | versions ", "---|---", rows)


def _comparison(found: Mapping[str, Any]) -> str:
    title, limits = LIMITS[found["comparison"]]
    rounds: Mapping[str, Any] = found["rounds"]
    ours, *others = rounds
    count = found["counts"]
    asked = {"recognition": "questions", "generation": "openings"}
    key = found["comparison"] if found["comparison"] in asked else "binding"
    rows = [f" bindscope | {_middle(rounds[ours], 'seconds'):.2f} | {_memory(rounds[ours])} | | | "]
    for entry in others:
        limit = limits[entry]
        cost, (ratio, low, high) = limit.way == "cost", _ratio(rounds[ours], rounds[entry], limit.way)
        compared = f"bindscope takes {ratio:.3f} of it" if cost else f"bindscope is {ratio:.2f} times as fast"
        compared += f" [{low:.2f}, {high:.2f}]"
        target = _target("≤" if cost else "≥", limit.ratio, ratio <= limit.ratio if cost else ratio >= limit.ratio)
        if limit.memory is not None:
            which, most = limit.memory
            share = _middle(rounds[ours], which) / _middle(rounds[entry], which)
            compared += f"; {share:.2f} of its {'peak' if which == 'peak_mb' else 'extra'} memory"
            target += f"; {_target('≤', most, share <= most)}"
        apart = found["apart"].get(entry)
        differ = "" if apart is None else f"{apart:.0f} texts" if key == "generation" else f"{apart:.1e}"
        rows.append(
            f" {WORDS[entry]} | {_middle(rounds[entry], 'seconds'):.2f} | {_memory(rounds[entry])} "
            f"| {compared} | {target} | {differ} "
        )
    what = asked.get(key, "prompts")
    texts = f"{count[key]:,} {what if count[key] != 1 else what.removesuffix('s')}"
    about = f"{texts}, float32, {len(rounds[ours])} rounds. {_when(found)}"
    head = " | seconds | peak memory | extra | compared with bindscope | target | results differ by "
    return _section(f"{title}: {found['model']}", about, head, "---|---:|---:|---:|---:|---:|---:", rows)


def _target(sign: str, limit: float, met: bool) -> str:
    return f"{sign} {limit:g}{'' if met else ' **missed**'}"


def _middle(rounds: list[dict[str, float]], key: str) -> float:
    return median(r[key] for r in rounds)


def _memory(rounds: list[dict[str, float]]) -> str:
    return f"{_middle(rounds, 'peak_mb'):,.0f} MB | {_middle(rounds, 'extra_mb'):,.0f} MB"


def _ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], way: str) -> tuple[float, float, float]:
    """Median, lowest and highest of the rounds' ratios."""
    found = [a["seconds"] / b["seconds"] for a, b in zip(ours, theirs, strict=True)]
    found = found if way == "cost" else [1 / r for r in found]
    return median(found), min(found), max(found)


def _section(title: str, about: str, head: str, align: str, rows: Iterable[str]) -> str:
    """A heading, a sentence, a table; head, align and rows: cells with bars between them."""
    table = "\n".join(f"|{line}|" for line in (head, align, *rows))
    return f"### {title}\n\n{about}\n\n{table}\n"


def _when(found: Mapping[str, Any]) -> str:
    return f"{found['date']}, {found['machine']}."


def _start(found: Mapping[str, Any]) -> str:
    seconds = found["seconds"]
    loads = "torch" if found["torch"] else "neither torch nor transformers"
    return (
        f"### Start\n\n`bindscope --help` takes {median(seconds):.2f} s (median of {len(seconds)}; target 0.3 s); "
        f"importing bindscope loads {loads}. {_when(found)}\n"
    )


def _growth(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        each, memory = 1000 * row["seconds"] / row["prompts"], f"{row['before']:,.0f} MB | {row['peak']:,.0f} MB"
        rows.append(f" {row['prompts']:,} | {row['seconds']:.1f} | {each:.2f} | {memory} ")
    about = f"Binding and recognition on the last checkpoint of `tiny`, a process each. {_when(found)}"
    head = " prompts | seconds | ms a prompt | resident before | peak "
    return _section("More prompts", about, head, "---:|---:|---:|---:|---:", rows)


def _afterwards(found: Mapping[str, Any]) -> str:
    both = median(a + b for a, b in zip(found["analyse"], found["report"], strict=True))
    analyse, report = median(found["analyse"]), median(found["report"])
    return (
        f"### Statistics and report\n\n24 checkpoints x 451 prompts (both seeds of `tiny`): `analyse` {analyse:.1f} s, "
        f"`report` {report:.1f} s, together {both:.1f} s (target 20 s; median of {len(found['report'])}). "
        f"{_when(found)}\n"
    )


def _monitor(found: Mapping[str, Any]) -> str:
    rows = []
    for name, run in found["runs"].items():
        seconds = f"{run['step']:.3f} | {run['measurement']:.2f} | {run['share']:.2%}"
        rows.append(f" {name} | {run['parameters']:,} | {run['tokens']:,} | {seconds} ")
    about = "A measurement every 500 steps at pilot-3, all else by default, target at most 2% of the training. "
    about += _when(found)
    head = " model | parameters | tokens a step | seconds a step | seconds a measurement | share of 500 steps "
    return _section("Watching a training run", about, head, "---|---:|---:|---:|---:|---:", rows)


def _profile(found: Mapping[str, Any]) -> str:
    from parts import CONTROLS, PARTS

    jobs = found["jobs"]
    named = [(name, name) for name in PARTS] + [(name, f"of all that: {name}") for name in CONTROLS]
    rows = [f" {label} | " + " | ".join(f"{part[name]:.2f} s" for part in jobs.values()) + " " for name, label in named]
    whole = [f"{part['whole']:.2f} s" for part in jobs.values()]
    rest = [f"{part['whole'] - sum(part[name] for name in PARTS):.2f} s" for part in jobs.values()]
    rows.insert(len(PARTS), f" all else | {' | '.join(rest)} ")
    rows.insert(0, f" the whole | {' | '.join(whole)} ")
    about = f"One run of bindscope's jobs under cProfile, two threads. {_when(found)}"
    return _section("Parts", about, f" | {' | '.join(jobs)} ", "---|" + "|".join(["---:"] * len(jobs)), rows)


_ALONE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "start": _start,
    "growth": _growth,
    "afterwards": _afterwards,
    "monitor": _monitor,
    "profile": _profile,
}
