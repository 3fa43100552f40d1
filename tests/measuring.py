"""Measure a loaded model as a run does, and take the tables as data frames."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from bindscope.checkpoints.load import Loaded
from bindscope.engine.engine import Engine
from bindscope.engine.selfcheck import SelfCheck
from bindscope.errors import MeasureError
from bindscope.execute.measuring import measure
from bindscope.measures import registry
from bindscope.records import Prompt, Protocol


def tables(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    protocol: Protocol | None = None,
    names: Sequence[str] = ("binding", "recognition"),
    check: SelfCheck | None = None,
) -> dict[str, pd.DataFrame]:
    """Table -> rows of the measures `names`, and "binding", their joined table. A measure that fails is an error."""
    measures, _ = registry.chosen(names)
    with Engine(loaded, check) as engine:
        outcome = measure(engine, prompts, protocol or Protocol(), list(measures.values()))
    for reason in outcome.failures.values():
        raise MeasureError(reason)
    frames = {each.name: each.frame() for each in outcome.tables}
    return frames | ({"binding": outcome.frame("binding")} if "prompts" in frames else {})
