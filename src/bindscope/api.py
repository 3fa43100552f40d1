"""The functions of `import bindscope as bs`; each calls the same code as the command of its name.

Importing this module does not import torch; a function imports what it needs.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
    from bindscope.recombined import Pairings
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
    """Measure how strongly the heads of a model bind each term, compared with the window null.

    A term of one token has no value but a reason. The function leaves the model unchanged: weights, gradients, modes,
    hooks, attention implementation and random number generators.

    model: a causal language model of transformers, also inside torch.compile, PEFT or DistributedDataParallel, on any
        device, quantised or not; or the result of `load`, which includes the tokenizer
    tokenizer: a fast tokenizer of transformers
    terms: see `terms`
    prompt: a text that contains the terms, instead of the carrier sentences
    bos: whether a beginning-of-text token is put in front: "on", "off", or "default" for what the tokenizer does;
        None for the setting of a loaded checkpoint, else "default"
    measures: further span measures
    Raises RequestError for an argument that is not a model, tokenizer, term or measure, ModelError or
    UnsupportedArchitecture for a model that cannot be read, SpanError where a term is absent from `prompt`.

    >>> measured = bs.measure(bs.load("tiny"), terms=["screen reader", "alt text"])
    >>> measured.frame[["term", "k", "eb_star", "excess"]].round(2)
                term  k  eb_star  excess
    0  screen reader  2     0.66     0.2
    1       alt text  2     0.66     0.2
    """
    from bindscope.measured import Measured
    from bindscope.quick import measure_terms

    chosen = _terms(terms)
    with _borrowed(model, tokenizer, bos) as (ref, loaded):
        results = measure_terms(loaded, chosen, prompt, loaded.layers * loaded.heads, _measures(measures))
        return Measured(
            checkpoint=ref, dtype=loaded.dtype, device=str(loaded.device), bos=loaded.bos, terms=tuple(results)
        )


def pairings(
    model: torch.nn.Module | Loaded,
    tokenizer: PreTrainedTokenizerBase | None = None,
    terms: Terms = "a11y-41",
    *,
    carriers: Sequence[str] = (),
    bos: Bos | None = None,
    measures: Iterable[Measure] = (),
    references: bool = True,
    permutations: int = 9999,
    seed: int = 0,
) -> Pairings:
    """Compare terms with the same words in other pairings: "screen reader" and "focus ring" with "screen ring".

    Each quantity is one of the binding measures, or the conjunction: the share of the residual stream at the last token
    that is neither the effect of the first part nor that of the last part. Leaves the model unchanged, as `measure`.

    model, tokenizer, bos: see `measure`
    terms: see `terms`; a comparison needs 8 that have equally many tokens, cut at the same place
    carriers: sentences with {term} in the place of the term; none for those that ship
    measures: further span measures
    references: whether to measure random pairs, familiar units and one-word units too
    permutations: number of random pairings of the test
    seed: of these pairings
    Raises RequestError for a wrong argument, ModelError or UnsupportedArchitecture for a model that cannot be read,
    MeasureError for numbers that are not finite.

    >>> found = bs.pairings(bs.load("tiny"), terms=["set-A", "set-B"], references=False)
    >>> found.frame.query("quantity == 'conjunction'")[["n", "matched_percentile", "p"]].round(2)
        n  matched_percentile    p
    6  10                0.75  0.0
    """
    from bindscope.recombined import compare_pairings

    chosen = _terms(terms)
    with _borrowed(model, tokenizer, bos) as (_, loaded):
        return compare_pairings(
            loaded,
            chosen,
            _measures(measures),
            references=references,
            carriers=carriers,
            permutations=permutations,
            seed=seed,
        )


@contextmanager
def _borrowed(
    model: torch.nn.Module | Loaded, tokenizer: PreTrainedTokenizerBase | None, bos: Bos | None
) -> Iterator[tuple[CheckpointRef, Loaded]]:
    """Name of the checkpoint, and the model to measure; both arguments as for `measure`."""
    from bindscope.checkpoints.borrow import borrowed, inner
    from bindscope.checkpoints.load import Loaded

    ref = None
    if isinstance(model, Loaded):
        ref, tokenizer, bos = model.ref, tokenizer or model.tokenizer, bos or model.bos
    held, words = _model(model), _tokenizer(tokenizer)
    ref = ref or CheckpointRef(type(inner(held)).__name__, "model", "in memory")
    with borrowed(held, words, name=ref.suite, bos=bos or "default") as loaded:
        yield ref, loaded


def load(
    name: str | Path, revision: str | int | None = None, *, bos: Bos | None = None, dtype: Dtype = "auto"
) -> Loaded:
    """Load one checkpoint; the result has its `.model`, in eval mode, and its `.tokenizer`.

    name: catalogue name, folder, .gguf file or hub id
    revision: a branch, tag, commit, checkpoint name or step; None for the last checkpoint
    bos: whether a beginning-of-text token is put in front; None for the default of the suite
    dtype: "auto" is bfloat16 on a GPU that supports it, else float32
    Raises UnknownName for a name that is not known, ModelError for a checkpoint that cannot be loaded.

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
    """Look up terms.

    names: sets or names of the library, in upper or lower case, YAML files of terms, or `Term` records; any other text
        becomes a term itself
    Raises RequestError where there are none or a file is wrong (with its line), UnknownName for a mistyped set.

    Examples:
        >>> [term.name for term in bs.terms("pilot-3", "cast iron")]
        ['screen reader', 'skip link', 'alt text', 'cast iron']
    """
    return _terms([name for some in names for name in _each(some)])


def audit(tokenizer: str | Path | PreTrainedTokenizerBase, terms: Terms = "a11y-41") -> pd.DataFrame:
    """Show how a tokenizer splits each term: a row per term.

    The columns bare_* are the tokens of the term alone, prompt_* those inside a sentence. A term is valid if it has two
    or more tokens in a sentence; otherwise `reason` says why it cannot be measured.

    tokenizer: a tokenizer of transformers, a tokenizer.json, or the name of a checkpoint
    terms: see `terms`
    Raises the errors of `terms`, ModelError for a tokenizer that cannot be read.

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
    """Measure every checkpoint of an experiment whose results the folder `out` does not hold, and return the results.

    Messages go to the logger "bindscope". The function warns of checkpoints that failed; calling it again measures
    them. `bindscope report OUT` draws a page of the results.

    experiment: name of a built-in experiment, a .yaml file, or an `Experiment`
    out: the results folder
    measures: further measures
    accept_flags: whether to measure checkpoints whose weights are flagged (two revisions hold the same weights, or a
        revision has moved)
    Raises RequestError for a wrong experiment, before anything is measured, and the error of the first checkpoint where
    all of them fail.

    >>> experiment = bs.Experiment(name="two-steps", suites="tiny@0,6000", terms="pilot-3")
    >>> bs.run(experiment, folder).read("recognition")["step"].unique().tolist()
    [0, 6000]
    """
    from bindscope.execute import local
    from bindscope.execute.request import prepare
    from bindscope.execute.sweep import Options
    from bindscope.experiment import Experiment
    from bindscope.experiment import load as load_experiment
    from bindscope.store import Store

    wanted = experiment if isinstance(experiment, Experiment) else load_experiment(str(experiment))
    request = prepare(wanted, _measures(measures))  # raises errors of the experiment before the folder is created
    store = Store(out)
    with store.lock():
        result = local.run(request, store, _Log(), Options(accept=accept_flags))
    failed = [unit for unit in result.units if unit.status == "failed"]
    if len(failed) == len(result.units):
        raise result.errors[0]
    if failed:
        first = f"{failed[0].checkpoint.suite}, {failed[0].checkpoint.label}: {failed[0].reason}"
        warnings.warn(f"{len(failed)} of {len(result.units)} checkpoints failed, first {first}", stacklevel=2)
    lacking = {name: reason for unit in result.units for name, reason in unit.lacking.items()}
    if lacking:
        count = "1 measure has" if len(lacking) == 1 else f"{len(lacking)} measures have"
        warnings.warn(f"{count} no results: {'; '.join(lacking.values())}", stacklevel=2)
    return store


def read(folder: str | Path) -> Store:
    """Open the results of a run. `.read("binding")` is a data frame; docs/tables.md lists every table and column.

    folder: the results folder
    Raises StoreError where it is not a results folder.

    >>> table = bs.read(folder).read("binding")
    >>> table.groupby("step")["eb_star"].mean().round(2).to_dict()
    {0: 0.0, 6000: 0.58}
    """
    from bindscope.store import Store

    return Store(folder, create=False)


def analyse(results: Store | str | Path, claims: Iterable[Claim] = ()) -> Analysis:
    """Test every claim of the reference study (Tran 2026) on a run, as published and as controlled.

    `.results` has a row per statistic, with its interval and n, `.sentences` an answer to each claim, `.tables()` all
    tables, and `.problems` the claims that cannot be computed.

    results: the result of `run` or `read`, or the folder
    claims: your own claims, tested along with the others (docs/your-claim.md)
    Raises StoreError where there is nothing to analyse.

    >>> analysis = bs.analyse(folder)
    >>> analysis.results.query("claim == 'C1-A' and reading == 'published'")[["id", "n"]]
                id   n
    2  c1a.rho.all  30
    """
    from bindscope.claims.analysis import analyse as compute
    from bindscope.tables.run import RunTables

    return compute(RunTables(_store(results)), claims)


def figures(results: Store | str | Path, claims: Iterable[Claim] = ()) -> dict[str, Figure]:
    """Draw the figures of a run, by name.

    A notebook shows a figure; `.chart` is its Altair chart, `.data` the numbers in it, and `.text` describes it. The
    function warns of figures that cannot be drawn.

    results, claims: see `analyse`
    Raises StoreError where the results cannot be read.

    Examples:
        >>> list(bs.figures(folder))[:3]
        ['emergence-log', 'emergence-linear', 'heads']
    """
    from bindscope.claims.analysis import analyse as compute
    from bindscope.claims.inputs import Findings
    from bindscope.report.figures import figures as drawn
    from bindscope.tables.run import RunTables

    tables = RunTables(_store(results))
    analysis = compute(tables, claims) if tables.has_questions else None
    every, problems = drawn(Findings(tables) if analysis is None else analysis.findings, analysis)
    for problem in (*(() if analysis is None else analysis.problems), *problems):
        warnings.warn(problem, stacklevel=2)
    return {figure.name: figure for figure in every}


class _Log:
    """Sends the events of a run to the logger."""

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

    by_name: dict[str, Term] = {}
    for name in _each(chosen):
        if not isinstance(name, str | Path | Term):
            raise RequestError(f"{name!r} is not a term; give texts, names of sets, YAML files or Term records")
        new = (name,) if isinstance(name, Term) else resolve([str(name)])
        by_name |= {term.name: term for term in new}
    if not by_name:
        raise RequestError('no term is given; name one ("screen reader"), a set ("pilot-3") or a YAML file of terms')
    return tuple(by_name.values())


def _measures(given: Iterable[Any]) -> list[Measure]:
    """The measures as a list. Raises RequestError for an entry that is not a measure."""
    from bindscope.measures.registry import checked

    return [checked(measure, "an entry of measures=") for measure in given]


def _model(model: Any) -> torch.nn.Module:
    """The model itself. Raises ModelError where the name of a model is given instead, and shows how to load it."""
    from bindscope.checkpoints.load import Loaded

    if isinstance(model, str | Path):
        name = repr(str(model))
        raise ModelError(f"the model is the text {name}; load it: bs.measure(bs.load({name}), terms=...)")
    module: torch.nn.Module = model.model if isinstance(model, Loaded) else model
    return module


def _tokenizer(tokenizer: Any) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerBase

    if tokenizer is None:
        raise RequestError("there is no tokenizer; pass the model's own, as the second argument")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise RequestError(
            f"the tokenizer is a {type(tokenizer).__name__}; pass one of transformers (AutoTokenizer, or "
            "PreTrainedTokenizerFast(tokenizer_object=...) around one of the package tokenizers)"
        )
    return tokenizer
