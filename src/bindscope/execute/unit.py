"""Measures and stores one checkpoint of an experiment; local runs and Ray workers call it."""

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

#: The remedy in the error for flagged weights.
REMEDY = "--accept-flags measures them anyway and stores the flags with the results"


@dataclass(frozen=True)
class Job:
    """A checkpoint to measure, with everything that this needs besides the prompts and a store.

    ref: the checkpoint
    protocol: the protocol of its suite
    sources: its files
    dtype: the dtype that the experiment asks for
    hardware: device and dtype that are part of the keys
    keys: missing table -> key of its result
    measures: the measures that fill these tables
    suite: fingerprints of the weights of all checkpoints of its suite
    flags: flags on its weights, which are stored with the results
    accept: whether to measure it if loading the weights raises further flags
    remote: whether to run Python code from its repository
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
    """The result of a job.

    weights: fingerprint of the weights, None where the job failed
    error: why the job failed, else None
    traceback: the traceback of the error
    lacking: measure -> why this measure failed while the job did not
    """

    weights: Fingerprint | None
    error: BindscopeError | None = None
    traceback: str = ""
    lacking: dict[str, str] = field(default_factory=dict)


def hardware(dtype: Dtype) -> tuple[str, str]:
    """Device kind and dtype of computations on this machine; they are part of the keys of results."""
    device = pick_device()
    return device, str(pick_dtype(dtype, device)).removeprefix("torch.")


def attempt(
    job: Job,
    prompts: Sequence[Prompt],
    store: Store,
    progress: Callable[[float], None] | None = None,
    arrive: Callable[[], None] | None = None,
) -> Result:
    """Measure a checkpoint and store its missing tables after each pass, so that a later error loses no finished pass.

    job: the checkpoint
    prompts: all prompts of the experiment
    store: the results folder
    progress: called with the number of finished steps, or the fraction of a step
    arrive: waits until the files of the checkpoint are downloaded; None where they are there
    Every error of the checkpoint is returned in the result. Raises StoreError where results cannot be written.
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
            message = f"memory does not suffice for a single prompt ({error}); use a larger device, or a shorter dtype"
        return Result(None, kind(" ".join(message.split())), trace)


def _measure(
    job: Job, prompts: Sequence[Prompt], store: Store, progress: Callable[[float], None] | None
) -> tuple[Fingerprint | None, dict[str, str]]:
    """The fingerprint of the weights, and measure -> why it failed."""
    if (here := hardware(job.dtype)) != job.hardware:
        raise MeasureError(
            f"{platform.node()} computes on {' in '.join(here)}, and the run was planned for "
            f"{' in '.join(job.hardware)}; give it machines of one kind"
        )
    for source in (job.sources.weights, job.sources.tokenizer):
        fetch(source)
    weights = fingerprint.fingerprint(job.ref, job.sources.weights, job.sources.identity.fingerprint, compute=True)
    flags = tuple(dict.fromkeys((*job.flags, *[flag.text for flag in fingerprint.flags_of(weights, job.suite)])))
    if len(flags) > len(job.flags) and not job.accept:
        raise ModelError(f"{flags[len(job.flags)]}; {REMEDY}")
    if not job.keys:
        return weights, {}
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
    return weights, lacking


def provenance(
    engine: Engine, identity: Identity, notes: tuple[str, ...], protocol: Protocol, started: str, seconds: float
) -> Provenance:
    """The provenance of a shard.

    engine: the model
    identity: content of weights and tokenizer
    notes: notes on the checkpoint
    protocol: the protocol of its suite
    started: date and time at which the pass started, ISO 8601
    seconds: how long it took
    """
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
    """Library -> version; the provenance of every result holds them."""
    libraries = ("bindscope", "torch", "transformers", "tokenizers", "numpy")
    return {name: version(name) for name in libraries} | {"python": platform.python_version()}


@cache
def _git() -> tuple[str | None, bool | None]:
    """Commit of the running bindscope, and whether its working tree differs; None where it is not a git checkout."""
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None, None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip(), bool(git("status", "--porcelain").strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None
