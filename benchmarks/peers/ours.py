"""bindscope: the jobs of the other programs, and everything else that it measures in the same pass.

`binding` and `read` (binding and recognition together) are `execute.measuring.measure` on a loaded model, with nulls,
previous-token scores and every other measure of binding; `recognition` is `read` on the questions only. `generation`
decodes in batches; `battery` is a whole checkpoint: load, self-check, binding, recognition, generation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from work import Work, tokens
from worker import Job, serve

from bindscope import experiment as experiments
from bindscope.checkpoints.load import Loaded
from bindscope.checkpoints.load import load as load_model
from bindscope.checkpoints.suites import one
from bindscope.engine.engine import Engine
from bindscope.engine.selfcheck import SelfCheck, self_check
from bindscope.errors import MeasureError
from bindscope.execute.measuring import measure
from bindscope.measures import registry
from bindscope.records import Prompt, Protocol, Sampling

_READ = ("binding", "recognition")


def prompts_of(path: Path) -> list[Prompt]:
    """The prompts whose ids the work file names, or the texts that it contains."""
    known = {p.id: p for p in experiments.changed(experiments.load("canonical-41"), "published").build_prompts()}
    rows = json.loads(path.read_text(encoding="utf-8"))
    asked = [rows["rows"][i] for i in rows["binding"]]
    return [known.get(row["id"]) or Prompt(row["id"], row["term"], row["text"], "generation") for row in asked]


def bare(prompt: Prompt) -> Prompt:
    """The same text without choices: only binding is measured on it."""
    return replace(prompt, task="generation", choices=(), answer=None)


def reading(
    loaded: Loaded, prompts: Sequence[Prompt], work: Work, check: SelfCheck, names: Sequence[str] = _READ
) -> Mapping[str, np.ndarray]:
    measures, _ = registry.chosen(names)
    with Engine(loaded, check) as engine:
        found = measure(engine, prompts, Protocol(bos=loaded.bos), list(measures.values()))
    for reason in found.failures.values():
        raise MeasureError(reason)
    values = found.frame("eb_star").set_index("prompt")["eb_star"]
    out = {"eb_star": np.array([values[row.id] for row in work.binding if row.id in values])}
    if work.recognition and len(scored := found.frame("recognition")):
        sums = scored.set_index("prompt")["logprob"]
        out["logprob"] = np.array([sums[row.id] for row in work.recognition])
    return out


def generation(loaded: Loaded, work: Work, check: SelfCheck) -> Mapping[str, np.ndarray]:
    ids = [row.ids for row in work.generation]
    with Engine(loaded, check) as engine:
        found = engine.complete(ids, [work.max_new_tokens] * len(ids), [Sampling()] * len(ids))
    ends = loaded.model.generation_config.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    return {"tokens": tokens([(*w.ids, end) if w.ended else w.ids for w in found], work.max_new_tokens)}


def battery(folder: Path, prompts: Sequence[Prompt], work: Work) -> Mapping[str, np.ndarray]:
    ref, suite = one(str(folder), None)
    loaded = load_model(ref, bos=suite.bos, dtype="float32")
    return reading(loaded, prompts, work, self_check(loaded.model), (*_READ, "generation"))


def load(folder: Path, work: Work) -> Mapping[str, Job]:
    ref, suite = one(str(folder), None)
    loaded = load_model(ref, bos=suite.bos, dtype="float32")
    prompts = prompts_of(Path(sys.argv[sys.argv.index("--work") + 1]))
    check = self_check(loaded.model)
    questions = [p for p in prompts if p.task == "recognition"]
    return {
        "binding": partial(reading, loaded, [bare(p) for p in prompts], work, check),
        "read": partial(reading, loaded, prompts, work, check),
        "recognition": partial(reading, loaded, questions, work, check),
        "generation": partial(generation, loaded, work, check),
        "battery": partial(battery, folder, prompts, work),
    }


if __name__ == "__main__":
    serve(load, "bindscope", "transformers")
