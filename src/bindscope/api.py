"""The functions of `import bindscope as bs`: each wraps what the command of the same name calls.

Importing this file loads no torch; a function loads what it needs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bindscope.errors import ModelError, RequestError
from bindscope.records import Bos, CheckpointRef, Dtype, Term

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from bindscope.charts.figure import Figure
    from bindscope.checkpoints.load import Loaded
    from bindscope.claims.analysis import Analysis
    from bindscope.claims.base import Claim
    from bindscope.experiment import Experiment
    from bindscope.measured import Measured
    from bindscope.measures.base import Measure
    from bindscope.store import Store

#: A term set, a term, the path of a YAML file of terms, a `Term`; or several of these.
Terms = str | Path | Term | Iterable[str | Path | Term]

_LOG = logging.getLogger("bindscope")


def measure(
    model: torch.nn.Module | Loaded,
    tokenizer: PreTrainedTokenizerBase | None = None,
    terms: Terms = (),
    *,
    prompt: str | None = None,
    bos: Bos | None = None,
    measures: Iterable[Measure] = (),
) -> Measured:
    """How strongly the heads of a model that you hold bind each term, against the null.

    model: a causal language model of transformers, also inside torch.compile, PEFT or DistributedDataParallel, on any
    device, quantised or not; or what `load` returns, which brings its tokenizer. tokenizer: a fast one, of
    transformers. terms: see `terms`. prompt: a text that holds the terms, in place of the carrier sentences. bos: "on",
    "off" or "default", what the tokenizer does; left out, the choice of a loaded checkpoint, else "default".

    The model is given back as it was: weights, gradients, modes, hooks, attention implementation, random numbers.

    Raises RequestError for what is no model, tokenizer or term; ModelError, UnsupportedArchitecture for a model that
    cannot be read; SpanError where a term is absent from `prompt`. A term that is one token has no value, and a reason.

    >>> found = bs.measure(bs.load("tiny"), terms=["screen reader", "alt text"])
    >>> found.frame[["term", "k", "eb_star", "excess"]].round(2)
                term  k  eb_star  excess
    0  screen reader  2     0.66     0.2
    1       alt text  2     0.66     0.2
    """
    from bindscope.checkpoints.borrow import borrowed, inner
    from bindscope.checkpoints.load import Loaded
    from bindscope.measured import Measured
    from bindscope.quick import measure_terms

    ref = None
    if isinstance(model, Loaded):
        ref, tokenizer, bos = model.ref, tokenizer or model.tokenizer, bos or model.bos
    held, words, chosen = _model(model), _tokenizer(tokenizer), _terms(terms)
    ref = ref or CheckpointRef(type(inner(held)).__name__, "model", "in memory")
    with borrowed(held, words, name=ref.suite, bos=bos or "default") as loaded:
        results = measure_terms(loaded, chosen, prompt, loaded.layers * loaded.heads, _measures(measures))
        return Measured(
            checkpoint=ref, dtype=loaded.dtype, device=str(loaded.device), bos=loaded.bos, terms=tuple(results)
        )


def load(
    name: str | Path, revision: str | int | None = None, *, bos: Bos | None = None, dtype: Dtype = "auto"
) -> Loaded:
    """One checkpoint by catalogue name, folder, .gguf file or hub id: its `.model`, in eval mode, and `.tokenizer`.

    revision: a branch, tag, commit, checkpoint name or step; the last one if left out. bos: the suite's own choice if
    left out. dtype: "auto" is bfloat16 on a GPU that has it, else float32. Raises UnknownName, ModelError.

    >>> loaded = bs.load("tiny", 1000)
    >>> loaded.ref.label, loaded.layers, loaded.heads
    ('step 1,000', 5, 5)
    """
    from bindscope.checkpoints.load import load as load_checkpoint
    from bindscope.checkpoints.suites import one

    ref, suite = one(str(name), None if revision is None else str(revision))
    loaded = load_checkpoint(ref, bos=bos or suite.bos, dtype=dtype)
    for note in loaded.files.notes if loaded.files else ():
        warnings.warn(note, stacklevel=2)
    return loaded


def terms(*names: Terms) -> tuple[Term, ...]:
    """Terms by set or name of the library, in any case, or from a YAML file; any other text is a term of its own.

    Raises RequestError where there are none, UnknownName for a mistyped set, and what is wrong with a file, by line.

    Examples:
        >>> [term.name for term in bs.terms("pilot-3", "cast iron")]
        ['screen reader', 'skip link', 'alt text', 'cast iron']
    """
    return _terms([name for some in names for name in _each(some)])


def audit(tokenizer: str | Path | PreTrainedTokenizerBase, terms: Terms = "a11y-41") -> pd.DataFrame:
    """How a tokenizer cuts each term: a row per term, alone (`bare_*`) and inside a sentence (`prompt_*`).

    tokenizer: one of transformers, a tokenizer.json, or a checkpoint's name. valid: two or more tokens in a sentence;
    else `reason` says why it cannot be measured. Raises as `terms`; ModelError for a tokenizer that cannot be read.

    >>> bs.audit("tiny", ["screen reader", "zebra"])[["term", "prompt_n", "valid"]]
                term  prompt_n  valid
    0  screen reader         2   True
    1          zebra         4   True
    """
    from bindscope.checkpoints.tokenizer import tokenizer_by_name as named
    from bindscope.prompts.audit import audit as cut

    if isinstance(tokenizer, str | Path):
        return cut(named(str(tokenizer)), str(tokenizer), _terms(terms))
    words = _tokenizer(tokenizer)
    return cut(words, words.name_or_path or type(words).__name__, _terms(terms))


def run(
    experiment: str | Path | Experiment,
    out: str | Path,
    *,
    measures: Iterable[Measure] = (),
    accept_flags: bool = False,
) -> Store:
    """Measure every checkpoint of a study that the folder `out` does not hold yet, and give the results.

    study: a built-in one by name, a .yaml file, or a `Experiment`. accept_flags: measure checkpoints whose weights are
    flagged (two revisions hold the same, one has moved). What happens on the way goes to the logger "bindscope".
    `bindscope report OUT` draws the page.

    Raises RequestError for a wrong study, before anything is measured; the first checkpoint's error where all of them
    failed. Where some failed it warns, and those are measured when it is called again.

    >>> study = bs.Experiment(name="mine", suites="tiny@0,6000", terms="pilot-3")
    >>> bs.run(study, folder).read("recognition")["step"].unique().tolist()
    [0, 6000]
    """
    from bindscope.execute import local
    from bindscope.execute.request import prepare
    from bindscope.execute.sweep import Options
    from bindscope.experiment import Experiment
    from bindscope.experiment import load as load_study
    from bindscope.store import Store

    wanted = experiment if isinstance(experiment, Experiment) else load_study(str(experiment))
    request = prepare(wanted, _measures(measures))  # what is wrong with it is found before the folder is made
    store = Store(out)
    with store.lock():
        result = local.run(request, store, _Log(), Options(accept=accept_flags))
    failed = [unit for unit in result.units if unit.status == "failed"]
    if len(failed) == len(result.units):
        raise result.errors[0]
    if failed:
        said = f"{failed[0].checkpoint.suite}, {failed[0].checkpoint.label}: {failed[0].reason}"
        warnings.warn(f"{len(failed)} of {len(result.units)} checkpoints failed, first {said}", stacklevel=2)
    lacking = {name: reason for unit in result.units for name, reason in unit.lacking.items()}
    if lacking:
        count = "1 measure has" if len(lacking) == 1 else f"{len(lacking)} measures have"
        warnings.warn(f"{count} no results: {'; '.join(lacking.values())}", stacklevel=2)
    return store


def read(folder: str | Path) -> Store:
    """The results of a run. `.read("binding")` is a data frame; docs/tables.md lists every table and column.

    Raises StoreError where the folder holds none, or none that are whole.

    >>> table = bs.read(folder).read("binding")
    >>> table.groupby("step")["eb_star"].mean().round(2).to_dict()
    {0: 0.0, 6000: 0.58}
    """
    from bindscope.store import Store

    return Store(folder, create=False)


def analyse(results: Store | str | Path, claims: Iterable[Claim] = ()) -> Analysis:
    """Every claim of the reference study (Tran 2026) on a run, as published and as controlled, with intervals and n.

    `.results` has a row per statistic, `.sentences` an answer per claim; `.tables()` are all.

    results: what `run` or `read` returns, or the folder.
    claims: claims of one's own, asked beside the others (docs/your-claim.md).

    Raises StoreError where there is nothing to analyse, RequestError for a run without binding. A claim that cannot be
    computed is named in `.problems`.

    >>> found = bs.analyse(folder)
    >>> found.results.query("claim == 'C1-A' and reading == 'published'")[["id", "n"]]
                id   n
    2  c1a.rho.all  30
    """
    from bindscope.claims.analysis import analyse as compute
    from bindscope.tables.run import RunTables

    tables = RunTables(_store(results))
    tables.check_reportable()
    return compute(tables, claims)


def figures(results: Store | str | Path, claims: Iterable[Claim] = ()) -> dict[str, Figure]:
    """Every figure that a run carries, by name. One draws itself in a notebook; `.chart` is the Altair chart, `.data`
    the numbers in it, `.text` says what there is to see.

    results, claims: as for `analyse`.

    Raises StoreError where the results cannot be read, RequestError for a run without binding. Warns of a claim's
    figure that cannot be drawn.

    Examples:
        >>> list(bs.figures(folder))[:3]
        ['emergence-log', 'emergence-linear', 'heads']
    """
    from bindscope.claims.analysis import analyse as compute
    from bindscope.claims.inputs import Findings
    from bindscope.report.figures import figures as drawn
    from bindscope.tables.run import RunTables

    tables = RunTables(_store(results))
    tables.check_reportable()
    analysis = compute(tables, claims) if tables.has_questions else None
    found, problems = drawn(Findings(tables) if analysis is None else analysis.findings, analysis)
    for problem in (*(() if analysis is None else analysis.problems), *problems):
        warnings.warn(problem, stacklevel=2)
    return {figure.name: figure for figure in found}


class _Log:
    """What a run says on its way."""

    def begin(self, units: int) -> None:
        _LOG.info("%d checkpoints", units)

    def unit(self, ref: CheckpointRef, steps: int) -> None:
        _LOG.info("%s, %s: %d prompts to measure", ref.suite, ref.label, steps)

    def progress(self, done: float) -> None:
        pass

    def end(self, ref: CheckpointRef, reason: str | None) -> None:
        _LOG.info("%s, %s: %s", ref.suite, ref.label, reason or "done")

    def note(self, text: str) -> None:
        _LOG.warning("%s", text)


def _store(results: Store | str | Path) -> Store:
    return read(results) if isinstance(results, str | Path) else results


def _each(chosen: Terms) -> list[str | Path | Term]:
    return [chosen] if isinstance(chosen, str | Path | Term) else list(chosen)


def _terms(chosen: Terms) -> tuple[Term, ...]:
    from bindscope.quick import resolve

    found: dict[str, Term] = {}
    for name in _each(chosen):
        if not isinstance(name, str | Path | Term):
            raise RequestError(f"{name!r} is no term; give texts, names of sets, YAML files or Term records")
        new = (name,) if isinstance(name, Term) else resolve([str(name)])
        found |= {term.name: term for term in new}
    if not found:
        raise RequestError('no term is given; name one ("screen reader"), a set ("pilot-3") or a YAML file of terms')
    return tuple(found.values())


def _measures(given: Iterable[Any]) -> list[Measure]:
    """Raises RequestError for what is no measure."""
    from bindscope.measures.registry import checked

    return [checked(measure, "what was handed over as a measure") for measure in given]


def _model(model: Any) -> torch.nn.Module:
    """The model itself. Raises ModelError for its name, with the way to load it."""
    from bindscope.checkpoints.load import Loaded

    if isinstance(model, str | Path):
        name = repr(str(model))
        raise ModelError(f"the model is the text {name}; load it: bs.measure(bs.load({name}), terms=...)")
    found: torch.nn.Module = model.model if isinstance(model, Loaded) else model
    return found


def _tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerBase

    if tokenizer is None:
        raise RequestError("there is no tokenizer; pass the model's own, as the second argument")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise RequestError(
            f"the tokenizer is a {type(tokenizer).__name__}, and one of transformers is needed (AutoTokenizer, or "
            "PreTrainedTokenizerFast(tokenizer_object=...) around one of the package tokenizers)"
        )
    return tokenizer
