"""An experiment that is ready to run: its prompts, checkpoints and measures, each resolved once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bindscope.checkpoints.suites import Suite, suites
from bindscope.errors import RequestError
from bindscope.experiment import Experiment
from bindscope.measures import registry
from bindscope.measures.base import Measure, SpanMeasure
from bindscope.records import CheckpointRef, Identity, Prompt, Protocol
from bindscope.schema import PROMPTS
from bindscope.store import result_key


@dataclass(frozen=True)
class Request:
    """An experiment with its prompts, checkpoints and measures.

    experiment: the experiment
    prompts: its prompts, in order
    suites: suite name -> suite
    checkpoints: in order, each with the protocol of its suite
    measures: measure name -> measure
    notes: a message for each measure that cannot be used
    """

    experiment: Experiment
    prompts: tuple[Prompt, ...]
    suites: dict[str, Suite]
    checkpoints: tuple[tuple[CheckpointRef, Protocol], ...]
    measures: dict[str, Measure]
    notes: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables that are stored for a checkpoint."""
        spans = any(isinstance(m, SpanMeasure) for m in self.measures.values())
        own = (table.name for m in self.measures.values() for table in m.tables)
        return (*([PROMPTS.name] if spans else []), *own)

    def keys(self, identity: Identity, dtype: str, device: str, protocol: Protocol) -> dict[str, str]:
        """Table -> key of its result, which changes with everything that changes a number in the table.

        identity: content of weights and tokenizer
        dtype, device: what the model runs in and on
        protocol: the protocol of the suite
        """
        keys: dict[str, str] = {}
        for m in self.measures.values():
            key = result_key(identity, dtype, device, m.identity, m.prompts(self.prompts), m.protocol(protocol))
            keys |= {table.name: key for table in m.tables}
            if isinstance(m, SpanMeasure) and PROMPTS.name not in keys:
                where = result_key(identity, dtype, device, PROMPTS.name, m.prompts(self.prompts), m.protocol(protocol))
                keys[PROMPTS.name] = where
        return {name: keys[name] for name in self.tables}

    def needed(self, tables: Iterable[str]) -> tuple[Measure, ...]:
        """The measures that fill some tables."""
        wanted = set(tables)
        needed = [m for m in self.measures.values() if wanted & {table.name for table in m.tables}]
        if PROMPTS.name in wanted and not any(isinstance(m, SpanMeasure) for m in needed):
            needed.insert(0, next(m for m in self.measures.values() if isinstance(m, SpanMeasure)))
        return tuple(needed)

    def steps(self, measures: Sequence[Measure], protocol: Protocol) -> int:
        """The number of progress steps of one checkpoint."""
        shared = any(not m.own_pass for m in measures)
        return sum(m.steps(self.prompts, protocol) for m in measures) + shared * sum(
            p.shot == "zero" for p in self.prompts
        )


def prepare(experiment: Experiment, measures: Iterable[Measure] = ()) -> Request:
    """Resolve the prompts, checkpoints and measures of an experiment.

    experiment: the experiment
    measures: further measures that the caller passes
    Raises RequestError for an experiment that cannot be run: no prompts, unknown names, two suites or measures of the
    same name.
    """
    # Binding costs no pass of its own, and tables and claims compare the other measures with it.
    chosen_measures, notes = registry.chosen(("binding", *experiment.measures), measures)
    prompts = experiment.build_prompts()
    chosen: dict[str, Suite] = {}
    for suite in (suite for asked in experiment.suites for suite in suites(asked)):
        if (known := chosen.setdefault(suite.name, suite)) != suite:
            places = f"{known.checkpoints[0].repo} and {suite.checkpoints[0].repo}"
            raise RequestError(f"two suites have the name {suite.name!r} ({places}); rename one, or name it once")
    checkpoints = tuple(
        (ref, experiment.protocol_of(suite.bos)) for suite in chosen.values() for ref in suite.checkpoints
    )
    return Request(
        experiment=experiment,
        prompts=prompts,
        suites=chosen,
        checkpoints=checkpoints,
        measures=chosen_measures,
        notes=tuple(notes),
    )
