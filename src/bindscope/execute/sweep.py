"""An experiment while it runs: its checkpoints, flags on their weights, what is left to measure, what became of each.

Every way of running an experiment makes a `Sweep`, measures the jobs it gives, and hands it the results.
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

#: Checkpoints that the hub is asked for at a time.
_ASKED = 8


class Watcher(Interface):
    """Told what happens, for a progress display."""

    def begin(self, units: int) -> None: ...
    def unit(self, ref: CheckpointRef, steps: int) -> None: ...
    def progress(self, done: float) -> None: ...
    def end(self, ref: CheckpointRef, reason: str | None) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """accept: measure checkpoints whose weights are flagged; evict: remove what was downloaded when it is measured;
    here: downloads go to this machine, so that its disk must have room for them."""

    accept: bool = False
    evict: bool = False
    here: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a run did: its units in order, and how many were measured now rather than found in the store."""

    units: tuple[Unit, ...]
    measured: int
    errors: tuple[BindscopeError, ...]


class Sweep:
    """Raises RequestError, before anything is measured or written, for weights that are flagged and for downloads that
    do not fit on the disk. A checkpoint that cannot be identified is a failed unit."""

    def __init__(
        self, request: Request, store: Store, watcher: Watcher, options: Options, hardware: tuple[str, str]
    ) -> None:
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
        self._found = self._identify()
        self._prints = {i: self._print(i) for i in self._found}
        self._flags = self._survey()
        self._look_up()
        if options.here:
            disk.check_room([disk.download_size(self._found[i]) for i in self._missing], options.evict)
        self._settle()

    def _identify(self) -> dict[int, CheckpointFiles]:
        """Every checkpoint, resolved; those that cannot be are failed already."""

        def one(ref: CheckpointRef) -> CheckpointFiles | BindscopeError:
            try:
                return identify(ref, code=ref.repo in self.request.experiment.trusted())
            except BindscopeError as error:
                return error
            except Exception as error:  # whatever it is, it is one checkpoint's
                return MeasureError(f"unexpected {type(error).__name__}: {error}")

        with ThreadPoolExecutor(_ASKED) as pool:
            found = dict(enumerate(pool.map(one, [ref for ref, _ in self._plan])))
        self._unknown = {i: error for i, error in found.items() if isinstance(error, BindscopeError)}
        return {i: sources for i, sources in found.items() if isinstance(sources, CheckpointFiles)}

    def _print(self, i: int) -> Fingerprint:
        weights = self._found[i].weights
        content = self._found[i].identity.fingerprint
        try:
            return fingerprint.fingerprint(self._plan[i][0], weights, content, compute=weights.commit is None)
        except ModelError:  # a file that cannot be read fails its own unit, when it is loaded
            return fingerprint.fingerprint(self._plan[i][0], weights, content)

    def _survey(self) -> list[fingerprint.Flag]:
        prints = list(self._prints.values())
        folders = [i for i, known in self._prints.items() if known.commit is None and known.tensors]
        on_disk = [(self._plan[i][0], self._found[i].weights) for i in folders]
        found = fingerprint.weight_flags(prints, self.store.commits(), on_disk)
        if found and not self.options.accept:
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            raise RequestError(f"{'; '.join(flag.text for flag in found[:3])}{more}; {REMEDY}")
        return found

    def _look_up(self) -> None:
        """What the store holds already."""
        for i, sources in self._found.items():
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

    def _settle(self) -> None:
        """Close the units that need no work."""
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
        """Units to be measured, in order."""
        return list(self._missing)

    def sources(self, i: int) -> CheckpointFiles:
        return self._found[i]

    def steps(self, i: int) -> int:
        """How often measuring the unit reports progress."""
        return self.request.steps(self.request.needed(self._missing[i]), self._plan[i][1])

    def job(self, i: int) -> Job:
        ref, protocol = self._plan[i]
        return Job(
            ref=ref,
            protocol=protocol,
            sources=self._found[i],
            dtype=self.request.experiment.dtype,
            hardware=self.hardware,
            keys=self._missing[i],
            measures=self.request.needed(self._missing[i]),
            suite=self._suite(i),
            flags=self._said(i),
            accept=self.options.accept,
            remote=ref.repo in self.request.experiment.trusted(),
        )

    def _suite(self, i: int) -> tuple[Fingerprint, ...]:
        return tuple(p for p in self._prints.values() if p.ref.suite == self._plan[i][0].suite)

    def _said(self, i: int) -> tuple[str, ...]:
        return tuple(flag.text for flag in self._flags if self._plan[i][0] in flag.refs)

    def finish(self, i: int, result: Result) -> None:
        """Take the result of a job, and write down how the run stands."""
        if result.weights is not None:
            self._prints[i] = result.weights
            # Workers that run side by side do not see each other's tensors.
            late = [f for f in fingerprint.flags_of(result.weights, self._suite(i)) if f.text not in self._said(i)]
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
        """Record a checkpoint that is measured, without the tables of measures that have no results."""
        ref, lacking = self._plan[i][0], lacking or {}
        self._units[i] = Unit(checkpoint=ref, status="done", keys=self._held(i, lacking), lacking=lacking)
        for reason in lacking.values():
            self._errors.append(MeasureError(f"{ref.suite}, {ref.label}: {reason}"))
            self.watcher.note(f"{ref.suite}, {ref.label}: {reason}")
        (self.store.root / self.store.note(ref, "failures")).unlink(missing_ok=True)
        self.watcher.end(ref, None)

    def _held(self, i: int, lacking: dict[str, str]) -> dict[str, str]:
        """Tables of the unit -> keys, without those of the measures that have no results."""
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
            self._units[i] = replace(self._units[i], weights=known.weights, flags=self._said(i))
        experiment = self.request.experiment.model_dump(mode="json")
        self.store.write_run(RunFile(experiment, tuple(self._units), self.request.notes))

    def outcome(self) -> Outcome:
        return Outcome(tuple(self._units), self._measured, tuple(self._errors))
