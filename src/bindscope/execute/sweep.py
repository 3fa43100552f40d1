"""The state of a run: its checkpoints, warnings about their weights, the jobs that are left, and the outcome of each.

Local and Ray runs create a `Sweep`, measure its jobs, and pass it the results.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol as Interface

from bindscope.checkpoints import disk, fingerprint
from bindscope.checkpoints.files import CheckpointFiles, identify
from bindscope.checkpoints.fingerprint import Fingerprint
from bindscope.errors import BindscopeError, MeasureError, ModelError, RequestError
from bindscope.execute.request import Request
from bindscope.execute.unit import REMEDY, Job, Result
from bindscope.records import CheckpointRef
from bindscope.store import RunFile, Store, Unit

#: Number of checkpoints that are looked up on the hub at the same time.
_LOOKUPS = 8


class Watcher(Interface):
    """Receives the events of a run, for example to show its progress."""

    def begin(self, units: int) -> None:
        """The run starts with this number of checkpoints."""
        ...

    def unit(self, ref: CheckpointRef, steps: int) -> None:
        """A checkpoint starts; measuring it takes this number of progress steps."""
        ...

    def progress(self, done: float) -> None:
        """A number of steps, or a fraction of one, is finished."""
        ...

    def end(self, ref: CheckpointRef, reason: str | None) -> None:
        """A checkpoint is finished, or has failed for this reason."""
        ...

    def note(self, text: str) -> None:
        """A message for the user."""
        ...


@dataclass(frozen=True)
class Options:
    """Options of a run.

    accept: measure checkpoints although their weights are flagged
    evict: remove a downloaded checkpoint after it is measured
    here: downloads go to this machine, so its disk must have room for them
    """

    accept: bool = False
    evict: bool = False
    here: bool = True


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    units: its checkpoints, in order
    measured: how many of them this run has measured; the store held the others, or they failed
    errors: why checkpoints or measures failed
    """

    units: tuple[Unit, ...]
    measured: int
    errors: tuple[BindscopeError, ...]


class Sweep:
    """The checkpoints of a run, the jobs that are left, and the record of the run in `run.json`."""

    def __init__(
        self, request: Request, store: Store, watcher: Watcher, options: Options, hardware: tuple[str, str]
    ) -> None:
        """Identify the checkpoints and look up which results are missing.

        A checkpoint that cannot be identified is recorded as failed.

        request: the experiment
        store: the results folder
        watcher: receives the events of the run
        options: see `Options`
        hardware: device and dtype of the run
        Raises RequestError, before anything is measured or written, for flagged weights that are not accepted and for
        downloads that do not fit on the disk.
        """
        self.request, self.store, self.watcher = request, store, watcher
        self.options, self.hardware = options, hardware
        self.prompts = request.prompts
        self._plan = request.checkpoints
        self._units = [Unit(ref, "pending", {}) for ref, _ in self._plan]
        self._errors: list[BindscopeError] = []
        self._keys: dict[int, dict[str, str]] = {}
        self._missing: dict[int, dict[str, str]] = {}
        self._measured = 0
        watcher.begin(len(self._plan))
        for note in request.notes:
            watcher.note(note)
        self._files = self._identify()
        self._prints = {i: self._print(i) for i in self._files}
        self._flags = self._check_weights()
        self._look_up()
        if options.here:
            disk.check_room([disk.download_size(self._files[i]) for i in self._missing], options.evict)
        self._close_finished()

    def _identify(self) -> dict[int, CheckpointFiles]:
        """Index of a checkpoint -> its files; `_unknown` gets the errors of those that cannot be identified."""

        def one(ref: CheckpointRef) -> CheckpointFiles | BindscopeError:
            try:
                return identify(ref, code=ref.repo in self.request.experiment.trusted())
            except BindscopeError as error:
                return error
            except Exception as error:  # an unexpected error of one checkpoint must not stop the others
                return MeasureError(f"unexpected {type(error).__name__}: {error}")

        with ThreadPoolExecutor(_LOOKUPS) as pool:
            results = dict(enumerate(pool.map(one, [ref for ref, _ in self._plan])))
        self._unknown = {i: error for i, error in results.items() if isinstance(error, BindscopeError)}
        return {i: files for i, files in results.items() if isinstance(files, CheckpointFiles)}

    def _print(self, i: int) -> Fingerprint:
        weights = self._files[i].weights
        content = self._files[i].identity.fingerprint
        try:
            return fingerprint.fingerprint(self._plan[i][0], weights, content, compute=weights.commit is None)
        except ModelError:  # loading it later raises the same error, and only this checkpoint fails
            return fingerprint.fingerprint(self._plan[i][0], weights, content)

    def _check_weights(self) -> list[fingerprint.Flag]:
        """The flags on the weights. Raises RequestError where there are flags that are not accepted."""
        prints = list(self._prints.values())
        folders = [i for i, known in self._prints.items() if known.commit is None and known.tensors]
        on_disk = [(self._plan[i][0], self._files[i].weights) for i in folders]
        flags = fingerprint.weight_flags(prints, self.store.commits(), on_disk)
        if flags and not self.options.accept:
            more = f"; and {len(flags) - 3} more" if len(flags) > 3 else ""
            raise RequestError(f"{'; '.join(flag.text for flag in flags[:3])}{more}; {REMEDY}")
        return flags

    def _look_up(self) -> None:
        """Compute the result keys of every checkpoint and record which results the store does not hold."""
        for i, sources in self._files.items():
            ref, protocol = self._plan[i]
            for note in sources.notes:
                self.watcher.note(note)
            device, dtype = self.hardware
            keys = self.request.keys(sources.identity, dtype, device, protocol)
            faults = {name: self.store.fault(ref, name, key) for name, key in keys.items()}
            for fault in filter(None, faults.values()):
                self.watcher.note(fault)
            self._keys[i] = keys
            if missing := {name: keys[name] for name, fault in faults.items() if fault is not None}:
                self._missing[i] = missing

    def _close_finished(self) -> None:
        """Record the checkpoints that need no measurement: failed ones and those whose results are in the store."""
        for i, (ref, _) in enumerate(self._plan):
            if i in self._unknown:
                self.watcher.unit(ref, 0)
                self._fail(
                    i, Result(None, self._unknown[i], f"{type(self._unknown[i]).__name__}: {self._unknown[i]}\n")
                )
            elif i not in self._missing:
                self.watcher.unit(ref, 0)
                self._done(i)
        self._record()

    @property
    def waiting(self) -> list[int]:
        """Indices of the checkpoints to measure, in order."""
        return list(self._missing)

    def sources(self, i: int) -> CheckpointFiles:
        """The files of checkpoint i."""
        return self._files[i]

    def steps(self, i: int) -> int:
        """The number of progress steps of checkpoint i."""
        return self.request.steps(self.request.needed(self._missing[i]), self._plan[i][1])

    def job(self, i: int) -> Job:
        """The job that measures the missing tables of checkpoint i."""
        ref, protocol = self._plan[i]
        return Job(
            ref=ref,
            protocol=protocol,
            sources=self._files[i],
            dtype=self.request.experiment.dtype,
            hardware=self.hardware,
            keys=self._missing[i],
            measures=self.request.needed(self._missing[i]),
            suite=self._suite(i),
            flags=self._flags_of(i),
            accept=self.options.accept,
            remote=ref.repo in self.request.experiment.trusted(),
        )

    def _suite(self, i: int) -> tuple[Fingerprint, ...]:
        return tuple(p for p in self._prints.values() if p.ref.suite == self._plan[i][0].suite)

    def _flags_of(self, i: int) -> tuple[str, ...]:
        return tuple(flag.text for flag in self._flags if self._plan[i][0] in flag.refs)

    def finish(self, i: int, result: Result) -> None:
        """Record the result of the job of checkpoint i, and update `run.json`."""
        if result.weights is not None:
            self._prints[i] = result.weights
            # Workers that run at the same time do not see each other's weights, so equal weights are found only here.
            late = [f for f in fingerprint.flags_of(result.weights, self._suite(i)) if f.text not in self._flags_of(i)]
            self._flags += late
            if late and not self.options.accept:
                result = Result(None, ModelError(f"{late[0].text}; {REMEDY}"), f"{late[0].text}\n")
        if result.lacking and not self._held(i, result.lacking):  # no measure has results
            reasons = "; ".join(result.lacking.values())
            result = Result(result.weights, MeasureError(reasons), f"{reasons}\n")
        if result.error is not None:
            self._fail(i, result)
        else:
            self._measured += 1
            self._done(i, result.lacking)
        self._record()

    def _done(self, i: int, lacking: dict[str, str] | None = None) -> None:
        """Record a measured checkpoint, without the tables of measures that failed."""
        ref, lacking = self._plan[i][0], lacking or {}
        self._units[i] = Unit(checkpoint=ref, status="done", keys=self._held(i, lacking), lacking=lacking)
        for reason in lacking.values():
            self._errors.append(MeasureError(f"{ref.suite}, {ref.label}: {reason}"))
            self.watcher.note(f"{ref.suite}, {ref.label}: {reason}")
        (self.store.root / self.store.note(ref, "failures")).unlink(missing_ok=True)
        self.watcher.end(ref, None)

    def _held(self, i: int, lacking: dict[str, str]) -> dict[str, str]:
        """Table of checkpoint i -> its key, without the tables of measures that have no results."""
        gone = {table.name for name in lacking for table in self.request.measures[name].tables}
        return {name: key for name, key in self._keys[i].items() if name not in gone}

    def _fail(self, i: int, result: Result) -> None:
        assert result.error is not None
        ref = self._plan[i][0]
        file = self.store.note(ref, "failures")
        self.store.write_text(file, result.traceback)
        self._errors.append(result.error)
        self._units[i] = Unit(checkpoint=ref, status="failed", keys={}, reason=str(result.error), traceback=file)
        self.watcher.end(ref, str(result.error))

    def _record(self) -> None:
        for i, known in self._prints.items():
            self._units[i] = replace(self._units[i], weights=known.weights, flags=self._flags_of(i))
        experiment = self.request.experiment.model_dump(mode="json")
        self.store.write_run(RunFile(experiment, tuple(self._units), self.request.notes))

    def outcome(self) -> Outcome:
        """The outcome of the run so far."""
        return Outcome(tuple(self._units), self._measured, tuple(self._errors))
