"""The command line: each command parses, calls one function of the package, and prints.

Exit codes: 0 done; 1 incomplete, and what was finished is kept; 2 the request is wrong, with one line on stderr.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand
from typer.exceptions import Abort, TyperException

from bindscope.errors import BindscopeError, RequestError
from bindscope.terminal import options

if TYPE_CHECKING:
    from bindscope.claims.analysis import Analysis
    from bindscope.store import Store
    from bindscope.tables.run import RunTables

app = typer.Typer(
    name="bindscope",
    help="When does a language model bind a multi-token term into one concept, and when does it know the term?",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = 130


class _OfExperiments(TyperCommand):
    """A command that takes an experiment; its help lists those that are built in."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from bindscope import experiment

        with formatter.section("Experiments"):
            formatter.write_dl([(name, experiment.load(name).about) for name in experiment.names()])


@app.command(cls=_OfExperiments)
def run(
    experiment: options.Experiment,
    out: options.Out,
    protocol: options.Protocol = None,
    suites: options.Suites = None,
    accept_flags: options.AcceptFlags = False,
    evict: options.Evict = False,
    ray: options.Ray = None,
) -> int:
    """Measure every checkpoint of an experiment, store the results and write report.html."""
    from bindscope import experiment as experiments
    from bindscope.terminal.results import Progress, outcome

    wanted = experiments.changed(experiments.load(experiment), protocol, suites or ())
    from bindscope.execute.request import prepare
    from bindscope.execute.sweep import Options
    from bindscope.report.files import write_report
    from bindscope.tables.run import RunTables

    request = prepare(wanted)  # what is wrong with the experiment is found before anything is made or loaded
    store = _store(out)

    choices = Options(accept_flags, evict)
    with store.lock():
        with Progress() as progress:
            if ray is None:
                from bindscope.execute import local

                result = local.run(request, store, progress, choices)
            else:
                from bindscope.execute import ray as cluster

                result = cluster.run(request, store, progress, choices, address=ray)
        if all(unit.status == "failed" for unit in result.units):
            raise result.errors[0]
        tables = RunTables(store)
        outcome(tables, result, write_report(tables, _analysed(tables))[0])
    return 1 if result.errors else 0


@app.command()
def measure(
    model: options.Model,
    terms: options.Terms,
    revision: options.Revision = None,
    prompt: options.Prompt = None,
    measures: options.Measures = None,
    bos: options.BosToken = None,
    dtype: options.NumberFormat = "auto",
    as_json: options.Json = False,
) -> None:
    """How strongly the heads of one checkpoint bind each term, beside other words of the same texts."""
    from bindscope.checkpoints.suites import one
    from bindscope.experiment import beside
    from bindscope.measures.registry import chosen
    from bindscope.quick import measure_terms, plain, resolve

    wanted, further = resolve(terms), list(chosen([beside(Path(), name) for name in measures or ()])[0].values())
    ref, suite = one(model, revision)
    from bindscope.checkpoints.load import load
    from bindscope.terminal.results import show_terms, waiting

    with waiting(f"loading {model}"):
        loaded = load(ref, bos=bos or suite.bos, dtype=dtype)
    for note in loaded.files.notes if loaded.files else ():
        _print_error(note)
    with waiting("measuring"):
        results = measure_terms(loaded, wanted, prompt, measures=further)
    if as_json:
        print(json.dumps(plain(model, loaded, results), ensure_ascii=False, indent=1))
    else:
        show_terms(loaded, results)


@app.command()
def tables(as_json: options.Json = False) -> None:
    """List every table that a run can hold and what its columns mean, those of installed measures among them."""
    from bindscope.measures.registry import tables as known
    from bindscope.schema import markdown

    if as_json:
        print(json.dumps([table.plain() for table in known()], ensure_ascii=False, indent=1))
    else:
        print(markdown(known()), end="")


@app.command()
def audit(models: options.Tokenizers, terms: options.AuditTerms = None, out: options.CsvFile = None) -> None:
    """Show how tokenizers cut each term, and which control groups have expressions of as many tokens."""
    import pandas as pd

    from bindscope.checkpoints.tokenizer import tokenizer_by_name
    from bindscope.prompts.audit import audit as audit_terms
    from bindscope.prompts.audit import by_k, unmatched, write_csv
    from bindscope.prompts.library import control_groups, library
    from bindscope.quick import resolve
    from bindscope.terminal.results import show_audit, show_groups

    wanted = resolve(terms or ["a11y-41"])
    named = "terms" if terms else "a11y-41"
    groups = {named: wanted} | {g: library().select(g) for g in control_groups() if g not in (terms or ())}
    loaded = {name: tokenizer_by_name(name) for name in models}
    table = pd.concat([audit_terms(words, name, wanted) for name, words in loaded.items()], ignore_index=True)
    if out is None:
        show_audit(table)
    else:
        write_csv(table, out)
        print(f"{len(table)} rows in {out}")
    for name, words in loaded.items():
        counts = by_k(words, groups)
        show_groups(name, counts, unmatched(counts))


@app.command()
def suites(
    name: options.SuiteName = None,
    verify: options.Verify = False,
    download: options.Download = False,
    as_json: options.Json = False,
) -> int:
    """List the models in the catalogue with their training checkpoints, or show one of them in full."""
    if verify or download:
        return _verify(name, download)
    from bindscope.checkpoints.suites import catalogued
    from bindscope.checkpoints.suites import suites as suites_of
    from bindscope.terminal.catalogue import show_catalogue, show_suites

    named = catalogued() if name is None else suites_of(name)
    if as_json:
        print(json.dumps([s.plain() for s in named], ensure_ascii=False, indent=1))
    elif name is None:
        show_catalogue(named)
    else:
        show_suites(named)
    return 0


def _verify(name: str | None, download: bool) -> int:
    """Print every checkpoint of a suite with commit, fingerprints and warnings; exit code 1 where there are some."""
    from bindscope.checkpoints.suites import suite
    from bindscope.terminal.results import show_verification

    if name is None:
        raise RequestError("name the suite to verify: bindscope suites NAME --verify")
    whole = suite(name)
    from bindscope.checkpoints.fingerprint import verify

    result = verify(whole.checkpoints, download)
    show_verification(whole, result)
    return 1 if result.flags or result.faults else 0


@app.command(cls=_OfExperiments)
def plan(
    experiment: options.Experiment,
    protocol: options.Protocol = None,
    suites: options.Suites = None,
    offline: options.Offline = False,
    probe: options.Probe = True,
    as_json: options.Json = False,
) -> None:
    """Estimate what an experiment needs: checkpoints, prompts, downloads, disk, memory, time. Nothing is measured."""
    from bindscope import experiment as experiments

    wanted = experiments.changed(experiments.load(experiment), protocol, suites or ())
    wanted.build_prompts()
    from bindscope.execute.plan import plan as compute
    from bindscope.terminal.catalogue import show_plan
    from bindscope.terminal.results import waiting

    with waiting("asking the hub and timing two prompts"):
        needs = compute(wanted, offline=offline, probe=probe)
    if as_json:
        print(json.dumps(asdict(needs) | {"download": needs.download, "seconds": needs.seconds}, indent=1))
    else:
        show_plan(needs)


@app.command()
def analyse(folder: options.Results, as_json: options.Json = False) -> None:
    """Test every claim of the reference study on stored results; tables go to FOLDER/analysis."""
    from bindscope.claims import analysis as claims
    from bindscope.tables.run import RunTables
    from bindscope.terminal.results import show_analysis

    tables = RunTables(_store(folder, create=False))
    analysis = claims.analyse(tables)
    files = claims.write_tables(analysis)
    if as_json:
        print(json.dumps({n: json.loads(f.to_json(orient="records")) for n, f in analysis.tables().items()}, indent=1))
    else:
        show_analysis(analysis, files)


@app.command()
def report(folder: options.Results, other: options.OtherResults = None, paper: options.Pdf = False) -> None:
    """Write report.html, figures/ and tables/ again from stored results, or compare two runs. No model is needed."""
    from bindscope.report.files import write_report
    from bindscope.tables.run import RunTables

    tables = RunTables(_store(folder, create=False))
    if other is not None:
        from bindscope.report.comparison import write_comparison
        from bindscope.terminal.results import compared

        if paper:
            raise RequestError("--pdf is for the report of one folder; leave it out beside two")
        second = RunTables(_store(other, create=False))
        compared(*write_comparison(tables, second))
        return
    for path in write_report(tables, _analysed(tables), paper):
        print(path)


@app.command()
def replicate(
    data: options.ReferenceData,
    tokenizer: options.PythiaTokenizer = None,
    out: options.CsvFolder = None,
    as_json: options.Json = False,
) -> None:
    """Compute the published numbers of the reference study (Tran 2026) again from its own result files."""
    from bindscope.replicate.replication import replicate as compute
    from bindscope.replicate.show import show, to_csv, to_dict

    words = None
    if tokenizer is not None:
        from bindscope.checkpoints.tokenizer import tokenizer_by_name as load_tokenizer

        words = load_tokenizer(tokenizer)
    replication = compute(data, words)
    if as_json:
        print(json.dumps(to_dict(replication), ensure_ascii=False, indent=1))
    else:
        show(replication)
    if out is not None:
        print(f"{len(to_csv(replication, out))} tables in {out}", file=sys.stderr)


@app.command(cls=_OfExperiments)
def export(source: options.ExportSource, to: options.Target, out: options.NewFolder) -> None:
    """Write the prompts of an experiment for other programs, or the results of a run as Parquet files."""
    from bindscope.export import export as write_export

    print(*write_export(source, to, out), sep="\n")


@app.command()
def doctor() -> int:
    """Check the environment: versions, devices, the attention hook, the hub, disk space."""
    from bindscope.doctor import examine
    from bindscope.terminal.results import show_findings

    return 1 if show_findings(examine()) else 0


def _analysed(tables: RunTables) -> Analysis | None:
    """The analysis of a run that asks questions, its tables written, and the claims that are left out named."""
    from bindscope.claims.analysis import write_analysis

    analysis = write_analysis(tables)
    for problem in analysis.problems if analysis else ():
        _print_error(problem)
    return analysis


def _store(folder: Path, create: bool = True) -> Store:
    """Open a results folder. One that cannot be used is a wrong request, unlike a disk that fills up later."""
    from bindscope.store import Store

    try:
        return Store(folder, create)
    except BindscopeError as error:
        raise RequestError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Every expected error is one line on stderr."""
    from bindscope import __version__

    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if words in (["--version"], ["-V"]):
        print(__version__)
        return 0
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character still gets the rest
    try:
        # What the command returned; typer turns Ctrl-C into 130.
        code = app(_with_ray_address(words), standalone_mode=False) or 0
        sys.stdout.flush()  # a full disk shows only now
    except TyperException as error:
        if error.format_message():
            _print_error(error.format_message())
        return 2
    except RequestError as error:
        _print_error(str(error))
        return 2
    except BindscopeError as error:
        _print_error(str(error))
        return 1
    except (KeyboardInterrupt, Abort):
        code = _INTERRUPTED
    except BrokenPipeError:
        _abandon_output()
        return 0
    except OSError as error:
        _print_error(f"{error.filename or 'output'}: {error.strerror or error}")
        _abandon_output()
        return 1
    if code == _INTERRUPTED:
        kept = "; finished checkpoints are kept, run the same command again to go on" if words[0] == "run" else ""
        _print_error(f"interrupted{kept}")
    return int(code)


def _with_ray_address(words: Sequence[str]) -> list[str]:
    """Write --ray without an address as --ray local: typer has no options whose value may be left out."""
    out = []
    for word, following in zip_longest(words, words[1:], fillvalue="-"):
        out += ["--ray", "local"] if word == "--ray" and following.startswith("-") else [word]
    return out


def _abandon_output() -> None:
    """Send stdout to /dev/null: Python flushes it once more when it exits, and would fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # a stream without a file beneath it
        return


def _print_error(message: str) -> None:
    print(f"bindscope: {' '.join(message.split())}", file=sys.stderr)
