"""Estimates what an experiment would cost: checkpoints, prompts, tokens, downloads, memory, time.

A plan measures and stores nothing. It asks the hub for metadata and downloads config and tokenizer files, a few
megabytes for each suite, into the hub's cache. A number that cannot be known beforehand is None, with a reason.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from bindscope.checkpoints.disk import cached_contents
from bindscope.checkpoints.files import CheckpointFiles, HubNotAsked, fetch, identify
from bindscope.checkpoints.load import load, pick_device, pick_dtype
from bindscope.checkpoints.loading import loading
from bindscope.checkpoints.memory import Batch, Memory, memory
from bindscope.checkpoints.suites import SuiteEntry
from bindscope.checkpoints.tokenizer import WEIGHT_ENDINGS, load_tokenizer
from bindscope.engine.generate import BATCH_TOKENS
from bindscope.engine.prepare import tokenized
from bindscope.errors import BindscopeError, ModelError
from bindscope.execute.request import Request, prepare
from bindscope.execute.work import Work, rates, work
from bindscope.experiment import Experiment
from bindscope.records import CheckpointRef, Protocol

#: Number of checkpoints that are looked up on the hub at the same time.
_LOOKUPS = 8
#: Errors that a hub returns, as opposed to errors of a hub that cannot be reached.
_DENIED = (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)


@dataclass(frozen=True)
class Cost:
    """The cost of one suite; None for what is not known.

    suite: name of the suite
    checkpoints: number of checkpoints
    at_hand: number of checkpoints that need no download
    download: bytes that the other checkpoints need
    largest: bytes that the largest of these downloads needs
    by: source of the sizes: "hub", or "catalogue" (number of parameters times bytes of each)
    work: tokens of one checkpoint
    memory: memory of one checkpoint
    seconds: time for all checkpoints, without downloads
    reasons: why numbers are missing
    """

    suite: str
    checkpoints: int
    at_hand: int
    download: int | None
    largest: int | None
    by: str | None
    work: Work | None
    memory: Memory
    seconds: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The cost of an experiment.

    experiment, protocol: their names
    device, dtype: what the model would run on and in
    terms: number of terms
    prompts: task -> number of prompts
    tables: names of the tables
    units: number of checkpoints times number of tables
    suites: the cost of each suite
    cache: the folder of downloads
    free: free bytes on the disk of that folder
    """

    experiment: str
    protocol: str
    device: str
    dtype: str
    terms: int
    prompts: dict[str, int]
    tables: tuple[str, ...]
    units: int
    suites: tuple[Cost, ...]
    cache: str
    free: int

    @property
    def download(self) -> int | None:
        """Bytes that all suites need; None where those of one suite are not known."""
        known = [cost.download for cost in self.suites]
        return None if None in known else sum(n or 0 for n in known)

    @property
    def seconds(self) -> float | None:
        """Time for all suites, in seconds; None where that of one suite is not known."""
        known = [cost.seconds for cost in self.suites]
        return None if None in known else sum(n or 0.0 for n in known)


#: The files of a checkpoint, None where it is a local folder, or the error where it cannot be identified.
Known = CheckpointFiles | BindscopeError | None


def plan(experiment: Experiment, *, offline: bool = False, probe: bool = True) -> Plan:
    """Estimate the cost of an experiment.

    experiment: the experiment
    offline: whether to ask no hub
    probe: whether to load one checkpoint of each suite, where one is on this machine, and to time two prompts on it
    Raises RequestError for an experiment that could not be run.
    """
    request = prepare(experiment)
    prompts, units, chosen = request.prompts, request.checkpoints, request.suites
    names, device, cache = request.tables, pick_device(), Path(constants.HF_HUB_CACHE)
    home = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    known = _look_up([ref for ref, _ in units], offline)
    cached = cached_contents()
    inputs = [
        _Suite(
            request=request,
            protocol=experiment.protocol_of(suite.bos),
            known={ref: known[ref] for ref in suite.checkpoints},
            entry=suite.entry,
            cached=cached,
        )
        for suite in chosen.values()
    ]
    costs = tuple(suite.cost(name, probe) for name, suite in zip(chosen, inputs, strict=True))
    return Plan(
        experiment=experiment.name,
        protocol=experiment.protocol,
        device=device,
        dtype=str(pick_dtype(experiment.dtype, device)).removeprefix("torch."),
        terms=len({p.term for p in prompts if p.group == "real"}),
        prompts=dict(Counter(p.task for p in prompts)),
        tables=names,
        units=len(units) * len(names),
        suites=costs,
        cache=str(cache),
        free=shutil.disk_usage(home).free,
    )


def _look_up(refs: Sequence[CheckpointRef], offline: bool) -> dict[CheckpointRef, Known]:
    """The files of every checkpoint, or why they are not known. A hub that fails to answer once is not asked again."""

    def one(ref: CheckpointRef) -> Known:
        try:
            return identify(ref, offline=offline)
        except BindscopeError as error:
            return error

    known: dict[CheckpointRef, Known] = {ref: None for ref in refs if _in_folders(ref)}
    rest = [ref for ref in refs if ref not in known]
    known |= {ref: one(ref) for ref in rest[:1]}
    offline = offline or any(map(_no_answer, known.values()))
    with ThreadPoolExecutor(_LOOKUPS) as pool:
        return known | dict(zip(rest[1:], pool.map(one, rest[1:]), strict=True))


def _in_folders(ref: CheckpointRef) -> bool:
    """Whether weights and tokenizer are local folders; a plan does not spend the time to hash their files."""
    return all(Path(place).is_dir() for place in (ref.repo, ref.tokenizer or ref.repo))


def _no_answer(known: Known) -> bool:
    """Whether the hub did not answer the question for this checkpoint."""
    if isinstance(known, CheckpointFiles):
        return known.weights.from_cache or known.tokenizer.from_cache
    if isinstance(known, HubNotAsked):
        return True
    return known is not None and known.__cause__ is not None and not isinstance(known.__cause__, _DENIED)


@dataclass(frozen=True)
class _Suite:
    """The inputs of the cost of one suite.

    request: the experiment
    protocol: the protocol of the suite
    known: what is known of each checkpoint
    entry: the suite in the catalogue, None where it is not there
    cached: repository and content of each file in the hub's cache
    """

    request: Request
    protocol: Protocol
    known: dict[CheckpointRef, Known]
    entry: SuiteEntry | None
    cached: set[tuple[str, str]]

    def cost(self, name: str, probe: bool) -> Cost:
        needs = [self._need(ref, known) for ref, known in self.known.items()]
        here = [
            ref
            for (ref, known), need in zip(self.known.items(), needs, strict=True)
            if not need and need is not None and not isinstance(known, BindscopeError)
        ]
        sizes = [sum(need.values()) for need in needs if need is not None]
        whole: dict[tuple[str, str], int] = {blob: n for need in needs if need for blob, n in need.items()}
        sure = None not in needs
        why = [
            f"{ref.label} is not available: {known}"
            for ref, known in self.known.items()
            if isinstance(known, BindscopeError) and not _no_answer(known)
        ]
        if not sure:
            why.append("download: neither the hub nor the catalogue gives its size")
        effort = self._effort(here, probe)
        return Cost(
            suite=name,
            checkpoints=len(self.known),
            at_hand=len(here),
            download=sum(whole.values()) if sure else None,
            largest=max(sizes, default=0) if sure else None,
            by=None if not whole else "catalogue" if any(map(_no_answer, self.known.values())) else "hub",
            work=effort.work,
            memory=effort.memory,
            seconds=None if effort.each is None else effort.each * len(self.known),
            reasons=(*why, *effort.reasons),
        )

    def _need(self, ref: CheckpointRef, known: Known) -> dict[tuple[str, str], int] | None:
        """The files to download: repository and content of a file -> bytes; None where they are not known."""
        if isinstance(known, CheckpointFiles):
            both = (known.weights, known.tokenizer)
            missing = {(s.repo, s.hashes[name]): s.sizes.get(name) for s in both for name in s.missing()}
            needed = {blob: size for blob, size in missing.items() if blob not in self.cached}
            known_sizes = {blob: size for blob, size in needed.items() if size is not None}
            return known_sizes if len(known_sizes) == len(needed) else None
        if known is None or not _no_answer(known):
            return {}
        if self.entry is None or self.entry.parameters is None or self.entry.dtype is None:
            return None
        return {(ref.repo, ref.label): self.entry.parameters * getattr(torch, self.entry.dtype).itemsize}

    def _effort(self, here: Sequence[CheckpointRef], probe: bool) -> _Effort:
        dtype = pick_dtype(self.request.experiment.dtype, pick_device())
        held = Memory(self.entry.parameters * dtype.itemsize if self.entry and self.entry.parameters else None)
        loaded, seconds = None, None
        try:
            started = time.monotonic()
            if probe and here:
                known = self.known[here[0]]
                files = known if isinstance(known, CheckpointFiles) else None
                loaded = load(here[0], bos=self.protocol.bos, dtype=self.request.experiment.dtype, files=files)
                words, config = loaded.tokenizer, loaded.model.config
            else:
                words, config = self._described()
            asked = [tokenized(words, prompt, self.protocol.bos) for prompt in self.request.prompts]
            amount = work(words, asked, self.protocol, self.request.measures.values())
            held = memory(
                config, dtype, Batch(amount.batch, amount.scored, amount.band, BATCH_TOKENS if amount.written else 0)
            )
            if loaded is not None:
                seconds = rates(loaded, asked, started).seconds(amount)
        except (BindscopeError, MemoryError, torch.OutOfMemoryError) as error:
            reason = str(error) if isinstance(error, BindscopeError) else "a checkpoint does not fit into memory here"
            return _Effort(None, held, None, (f"tokens, memory of a batch and time: {reason}",))
        why = "none of its checkpoints is on this machine, so none can be timed" if probe else "not asked for"
        return _Effort(amount, held, seconds, () if seconds is not None else (f"time: {why}",))

    def _described(self) -> tuple[PreTrainedTokenizerBase, PreTrainedConfig]:
        """Tokenizer and config of a checkpoint without its weights. Raises ModelError where they are not available."""
        ref, known = next(((r, k) for r, k in self.known.items() if not isinstance(k, BindscopeError)), (None, None))
        if ref is None:
            first = next(iter(self.known.values()))
            raise ModelError(
                "the hub does not answer, and the cache holds no checkpoint" if _no_answer(first) else str(first)
            )
        if ref.gguf:
            raise ModelError("the tokenizer of a GGUF file is known only after the file is loaded")
        if known is None:
            folder, words = Path(ref.repo), Path(ref.tokenizer or ref.repo)
        else:
            folder = fetch(known.weights, ["config.json"])
            words = fetch(
                known.tokenizer, [name for name in known.tokenizer.hashes if not name.endswith(WEIGHT_ENDINGS)]
            )
        with loading(f"the config of {ref.suite} cannot be read from {folder}"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return load_tokenizer(words, ref.suite), config


@dataclass(frozen=True)
class _Effort:
    """The cost of one checkpoint; None for what is not known.

    work: tokens
    memory: bytes
    each: seconds
    reasons: why numbers are missing
    """

    work: Work | None
    memory: Memory
    each: float | None
    reasons: tuple[str, ...]
