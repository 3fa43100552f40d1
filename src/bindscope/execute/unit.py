"""One checkpoint of an experiment: the function that the local loop and Ray's workers call alike."""

from __future__ import annotations

import platform
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

from bindscope.checkpoints import fingerprint
from bindscope.checkpoints.files import CheckpointFiles, fetch
from bindscope.checkpoints.fingerprint import Fingerprint
from bindscope.checkpoints.load import load, pick_device, pick_dtype
from bindscope.engine.attention import NAME
from bindscope.engine.batches import out_of_memory
from bindscope.engine.engine import Engine
from bindscope.errors import BindscopeError, MeasureError, ModelError, RequestError, StoreError
from bindscope.execute.measuring import Session
from bindscope.measures.base import Measure
from bindscope.records import CheckpointRef, Dtype, Identity, Prompt, Protocol, Provenance
from bindscope.store import Store

#: What a run says to whoever wants to go on although weights are flagged.
REMEDY = "--accept-flags measures them all the same, and the results carry the flags"


@dataclass(frozen=True)
class Job:
    """A checkpoint to be measured, with all that this needs beside prompts and a store.

    keys: the tables that are missing -> their result keys
    measures: those that fill them
    hardware: device and dtype that the keys were made for
    suite: what is known of the weights of its suite, its own among them
    flags: what the results must say of the weights
    accept: measure it whatever its weights turn out to be
    remote: run Python code from its repository
    """

    ref: CheckpointRef
    protocol: Protocol
    sources: CheckpointFiles
    dtype: Dtype
    hardware: tuple[str, str]
    keys: dict[str, str]
    measures: tuple[Measure, ...]
    suite: tuple[Fingerprint, ...]
    flags: tuple[str, ...]
    accept: bool
    remote: bool


@dataclass(frozen=True)
class Result:
    """What became of a job.

    weights: fingerprint of its weights
    error, traceback: why it failed
    lacking: measure -> why that measure has no results, although the others have
    """

    weights: Fingerprint | None
    error: BindscopeError | None = None
    traceback: str = ""
    lacking: dict[str, str] = field(default_factory=dict)


def hardware(dtype: Dtype) -> tuple[str, str]:
    """Device kind and dtype that results are made with on this machine: part of their keys."""
    device = pick_device()
    return device, str(pick_dtype(dtype, device)).removeprefix("torch.")


def attempt(
    job: Job,
    prompts: Sequence[Prompt],
    store: Store,
    progress: Callable[[float], None] | None = None,
    arrive: Callable[[], None] | None = None,
) -> Result:
    """Measure a checkpoint and store what is missing, a pass after the other, so that a later fault loses nothing.

    arrive: waits for its files, where they are downloaded elsewhere. Whatever goes wrong with the checkpoint is in the
    result; StoreError is raised, since nothing could be kept.
    """
    try:
        if arrive is not None:
            arrive()
        weights, lacking = _measure(job, prompts, store, progress)
        return Result(weights, lacking=lacking)
    except StoreError:
        raise
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        kind = RequestError if isinstance(error, RequestError) else MeasureError
        message = str(error) if isinstance(error, BindscopeError) else f"unexpected {type(error).__name__}: {error}"
        if out_of_memory(error):
            message = f"there is no memory for a single prompt ({error}); use a larger device, or a shorter dtype"
        return Result(None, kind(" ".join(message.split())), trace)


def _measure(
    job: Job, prompts: Sequence[Prompt], store: Store, progress: Callable[[float], None] | None
) -> tuple[Fingerprint | None, dict[str, str]]:
    """The fingerprint of the weights, and why measures have no results."""
    if (here := hardware(job.dtype)) != job.hardware:
        raise MeasureError(
            f"{platform.node()} computes on {' in '.join(here)}, and the run was planned for "
            f"{' in '.join(job.hardware)}; give it machines of one kind"
        )
    for source in (job.sources.weights, job.sources.tokenizer):
        fetch(source)
    mine = fingerprint.fingerprint(job.ref, job.sources.weights, job.sources.identity.fingerprint, compute=True)
    flags = tuple(dict.fromkeys((*job.flags, *[flag.text for flag in fingerprint.flags_of(mine, job.suite)])))
    if len(flags) > len(job.flags) and not job.accept:
        raise ModelError(f"{flags[len(job.flags)]}; {REMEDY}")
    if not job.keys:
        return mine, {}
    loaded = load(job.ref, bos=job.protocol.bos, dtype=job.dtype, files=job.sources, remote=job.remote)
    notes = (*job.sources.notes, *loaded.notes, *flags)
    lacking: dict[str, str] = {}
    with Engine(loaded) as engine:
        parts = {
            m.name: store.parts(job.ref, job.keys[t.name])
            for m in job.measures
            for t in m.tables
            if m.own_pass and t.name in job.keys
        }
        session = Session(engine=engine, prompts=prompts, protocol=job.protocol, progress=progress, parts=parts)
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        for outcome in session.passes(job.measures):
            lacking |= outcome.failures
            seconds = time.monotonic() - clock
            origin = provenance(engine, job.sources.identity, notes, job.protocol, started, seconds)
            for table in outcome.tables:
                if table.name in job.keys:
                    store.write(job.ref, job.keys[table.name], table, origin)
            for table in outcome.tables:
                if table.name in parts:
                    parts[table.name].clear()
            started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    return mine, lacking


def provenance(
    engine: Engine, identity: Identity, notes: tuple[str, ...], protocol: Protocol, started: str, seconds: float
) -> Provenance:
    """How a shard comes to be, to be written beside it."""
    commit, dirty = _git()
    loaded, check = engine.loaded, engine.check
    return Provenance(
        versions=versions(),
        git_commit=commit,
        git_dirty=dirty,
        device=loaded.device.type,
        dtype=loaded.dtype,
        bos=loaded.bos,
        attention=f"{NAME} ({'packed rows' if check.packed else 'shared cache'})",
        identity=identity,
        checkpoint=loaded.ref,
        protocol=protocol,
        started=started,
        seconds=round(seconds, 3),
        notes=(
            f"self-check: rows within {check.rows:.1e} and logits within {check.logits:.1e} of eager attention",
            *notes,
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
