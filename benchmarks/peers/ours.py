"""bindscope: the jobs of the other programs, and everything else that it measures in the same pass.

`binding` and `read` (binding and recognition together) are `checkpoint.measure` on a loaded model, with
nulls, previous-token scores and value weights; `recognition` is `read` on the questions only. `generation` decodes in
batches; `battery` is a whole checkpoint: load, self-check, binding, recognition, generation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from bindscope.measures.checkpoint import READ, measure
from work import Work, tokens
from worker import Job, serve

from bindscope import experiment as experiments
from bindscope.checkpoints.load import Loaded
from bindscope.checkpoints.load import load as load_model
from bindscope.checkpoints.suites import one
from bindscope.engine.generate import Draw, write
from bindscope.engine.selfcheck import SelfCheck, self_check
from bindscope.records import Prompt, Protocol


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
    loaded: Loaded, prompts: Sequence[Prompt], work: Work, check: SelfCheck, names: Sequence[str] = READ
) -> Mapping[str, np.ndarray]:
    found, _ = measure(loaded, prompts, Protocol(bos=loaded.bos), names, check=check)
    tables = {table.measure: table.columns for table in found}
    binding = dict(zip(tables["binding"]["prompt"], tables["binding"]["eb_star"], strict=True))
    out = {"eb_star": np.array([binding[row.id] for row in work.binding if row.id in binding])}
    if scored := tables.get("recognition", {}):
        sums = dict(zip(scored["prompt"], scored["logprob"], strict=True))
        out["logprob"] = np.array([sums[row.id] for row in work.recognition])
    return out


def generation(loaded: Loaded, work: Work) -> Mapping[str, np.ndarray]:
    ids = [row.ids for row in work.generation]
    found = write(loaded.model, ids, [work.max_new_tokens] * len(ids), [Draw()] * len(ids))
    ends = loaded.model.generation_config.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    return {"tokens": tokens([(*w.ids, end) if w.ended else w.ids for w in found], work.max_new_tokens)}


def battery(folder: Path, prompts: Sequence[Prompt], work: Work) -> Mapping[str, np.ndarray]:
    ref, suite = one(str(folder), None)
    loaded = load_model(ref, bos=suite.bos, dtype="float32")
    return reading(loaded, prompts, work, self_check(loaded.model), (*READ, "generation"))


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
        "generation": partial(generation, loaded, work),
        "battery": partial(battery, folder, prompts, work),
    }


if __name__ == "__main__":
    serve(load, "bindscope", "transformers")
