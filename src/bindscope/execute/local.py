"""Run a study on this machine: plan its units, measure what is not yet stored, record what became of each."""

from __future__ import annotations

import platform
import subprocess
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Protocol as Interface

from bindscope.errors import BindscopeError, RequestError, StoreError
from bindscope.measure.attention import NAME
from bindscope.measure.checkpoint import EDITED, READ, key_parts, measure, steps, tables
from bindscope.measure.selfcheck import SelfCheck
from bindscope.models.files import Sources, identify
from bindscope.models.load import Loaded, load, pick_device, pick_dtype
from bindscope.models.suites import Suite, suites
from bindscope.records import CheckpointRef, Prompt, Protocol, Provenance
from bindscope.store import RunFile, Store, Unit, result_key
from bindscope.study import Study


class Watcher(Interface):
    """Told what happens, for a progress display."""

    def begin(self, units: int) -> None: ...
    def unit(self, ref: CheckpointRef, steps: int) -> None: ...
    def progress(self, done: int) -> None: ...
    def end(self, ref: CheckpointRef, reason: str | None) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a run did: its units in order, and how many were measured now rather than found in the store."""

    units: tuple[Unit, ...]
    measured: int
    errors: tuple[BindscopeError, ...]


def run(study: Study, store: Store, watcher: Watcher) -> Outcome:
    """Measure every checkpoint of the study that the store does not hold yet.

    A unit that fails is recorded with its reason and the others go on; StoreError stops the run, since nothing could
    be kept. Interrupting loses at most the checkpoint in work.
    """
    prompts = study.build_prompts()
    plan = _plan(study)
    units = [Unit(ref, "pending", {}) for ref, _ in plan]
    errors: list[BindscopeError] = []
    measured = 0
    watcher.begin(len(plan))
    _record(store, study, units)
    for i, (ref, protocol) in enumerate(plan):
        try:
            sources = identify(ref)
            for note in sources.notes:
                watcher.note(note)
            keys = _keys(study, sources, prompts, protocol)
            faults = {name: store.fault(ref, name, key) for name, key in keys.items()}
            for fault in filter(None, faults.values()):
                watcher.note(fault)
            missing = {name: keys[name] for name, fault in faults.items() if fault is not None}
            watcher.unit(ref, steps(missing, prompts, protocol))
            if missing:
                _measure(study, store, ref, sources, protocol, prompts, missing, watcher)
                measured += 1
            units[i] = Unit(ref, "done", keys)
        except StoreError:
            raise
        except BindscopeError as error:
            errors.append(error)
            units[i] = Unit(ref, "failed", {}, str(error))
        watcher.end(ref, units[i].reason)
        _record(store, study, units)
    return Outcome(tuple(units), measured, tuple(errors))


def _plan(study: Study) -> list[tuple[CheckpointRef, Protocol]]:
    """Checkpoints in order, each once. Raises RequestError where two different suites go by one name."""
    chosen: dict[str, Suite] = {}
    for found in (found for asked in study.suites for found in suites(asked)):
        if (known := chosen.setdefault(found.name, found)) != found:
            places = f"{known.checkpoints[0].repo} and {found.checkpoints[0].repo}"
            raise RequestError(f"two suites are called {found.name!r} ({places}); rename one, or name it once")
    return [(ref, study.protocol_of(found.bos)) for found in chosen.values() for ref in found.checkpoints]


def _record(store: Store, study: Study, units: list[Unit]) -> None:
    store.write_run(RunFile(study.model_dump(mode="json"), tuple(units)))


def _keys(study: Study, sources: Sources, prompts: tuple[Prompt, ...], protocol: Protocol) -> dict[str, str]:
    device = pick_device()
    dtype = str(pick_dtype(study.dtype, device)).removeprefix("torch.")
    return {
        name: result_key(sources.identity, dtype, device, *key_parts(name, prompts, protocol))
        for name in tables(study.measures)
    }


def _measure(
    study: Study,
    store: Store,
    ref: CheckpointRef,
    sources: Sources,
    protocol: Protocol,
    prompts: tuple[Prompt, ...],
    keys: dict[str, str],
    watcher: Watcher,
) -> None:
    """Measure and store what is missing, a pass after the other, so that a later fault loses nothing."""
    loaded = load(ref, bos=protocol.bos, dtype=study.dtype, sources=sources)
    together = (READ, EDITED)
    passes = [[name for name in group if name in keys] for group in together]
    passes[1:1] = [[name] for name in keys if not any(name in group for group in together)]
    for names in filter(None, passes):
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        parts = store.parts(ref, keys["ablation"]) if "ablation" in names else None
        results, check = measure(loaded, prompts, protocol, names, watcher.progress, parts)
        provenance = _provenance(loaded, sources, protocol, check, started, time.monotonic() - clock)
        for result in results:
            notes = (*provenance.notes, *result.notes)
            store.write(ref, keys[result.measure], result, replace(provenance, notes=notes))
        if parts is not None:
            parts.clear()


def _provenance(
    loaded: Loaded, sources: Sources, protocol: Protocol, check: SelfCheck, started: str, seconds: float
) -> Provenance:
    commit, dirty = _git()
    return Provenance(
        versions=versions(),
        git_commit=commit,
        git_dirty=dirty,
        device=loaded.device.type,
        dtype=loaded.dtype,
        bos=loaded.bos,
        attention=f"{NAME} ({'packed rows' if check.packed else 'shared cache'})",
        identity=sources.identity,
        checkpoint=loaded.ref,
        protocol=protocol,
        started=started,
        seconds=round(seconds, 3),
        notes=(
            f"self-check: rows within {check.rows:.1e} and logits within {check.logits:.1e} of eager attention",
            *sources.notes,
        ),
    )


@cache
def versions() -> dict[str, str]:
    """Versions of what computes: recorded with every result."""
    libraries = ("bindscope", "torch", "transformers", "tokenizers", "numpy")
    return {name: version(name) for name in libraries} | {"python": platform.python_version()}


@cache
def _git() -> tuple[str | None, bool | None]:
    """Commit of the bindscope that runs, and whether its tree differs from it; None outside a checkout of its own."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None, None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain").strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None
