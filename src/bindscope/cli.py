"""The command line: parse, call one public function, print. Exit codes: 0 done, 1 incomplete, 2 wrong request."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand
from typer.exceptions import Abort, TyperException

from bindscope.errors import BindscopeError, RequestError
from bindscope.records import Bos, Dtype

if TYPE_CHECKING:
    from bindscope.stats.analysis import Analysis
    from bindscope.store import Store

app = typer.Typer(
    name="bindscope",
    help="When does a language model bind a multi-token term into one concept, and when does it know the term?",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = 130
_ACCEPT = "Measure checkpoints whose weights are flagged (equal, moved, ...); the results carry the flags."
_RAY = "Measure on a Ray cluster: the one at ADDRESS (auto: the one running here), or one started for this run."
_TO = "Tasks for lm-evaluation-harness, a Hugging Face dataset, or the tables of results for DuckDB and pandas."
_EVICT = "Remove each checkpoint that this run downloaded when it is measured."


class _OfExperiments(TyperCommand):
    """A command that takes a study; its help lists those that are built in."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from bindscope import experiment

        with formatter.section("Studies"):
            formatter.write_dl([(name, experiment.load(name).about) for name in experiment.names()])


_Experiment = Annotated[str, typer.Argument(help="A built-in study (see below) or a .yaml file.")]
_Protocol = Annotated[
    Literal["published", "controlled"] | None, typer.Option(help="In place of the study's own protocol.")
]
_Suites = Annotated[list[str] | None, typer.Option(help="In place of the study's own suites; repeat for several.")]


@app.command(cls=_OfExperiments)
def run(
    experiment: _Experiment,
    out: Annotated[Path, typer.Option(help="Results folder; an existing run in it is resumed.")],
    protocol: _Protocol = None,
    suites: _Suites = None,
    accept_flags: Annotated[bool, typer.Option("--accept-flags", help=_ACCEPT)] = False,
    evict: Annotated[bool, typer.Option("--evict", help=_EVICT)] = False,
    ray: Annotated[str | None, typer.Option(metavar="[ADDRESS]", help=_RAY)] = None,
) -> int:
    """Measure every checkpoint of a study, store the results and write report.html."""
    from bindscope import experiment as experiments
    from bindscope.checkpoints.suites import suites as suites_of
    from bindscope.terminal.results import Progress, outcome

    wanted = experiments.changed(experiments.load(experiment), protocol, suites or ())
    wanted.build_prompts()  # a bad prompt file, term set or suite is found before anything is made or loaded
    for name in wanted.suites:
        suites_of(name)
    store = _store(out)
    from bindscope.execute.sweep import Options
    from bindscope.report.files import write

    options = Options(accept_flags, evict)
    with store.lock():
        with Progress() as progress:
            if ray is None:
                from bindscope.execute import local

                result = local.run(wanted, store, progress, options)
            else:
                from bindscope.execute import ray as cluster

                result = cluster.run(wanted, store, progress, options, ray)
        if all(unit.status == "failed" for unit in result.units):
            raise result.errors[0]
        answers, found = _answers(store)
        outcome(store, result, write(store, found)[0], answers)
    return 1 if result.errors else 0


@app.command()
def measure(
    model: Annotated[str, typer.Argument(help="Catalogue name, local folder, .gguf file or hub id (org/name).")],
    terms: Annotated[list[str], typer.Argument(help='Terms ("screen reader") or term sets (pilot-3).')],
    revision: Annotated[str | None, typer.Option(help="Branch, tag, commit, checkpoint name or step.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A text of your own that holds the terms.")] = None,
    bos: Annotated[Bos | None, typer.Option(help="BOS token in front; the suite's own choice if not given.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="auto is bfloat16 on a GPU that has it, else float32.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """A quick look: how strongly the heads of one checkpoint bind each term, against the null."""
    from bindscope.checkpoints.suites import one
    from bindscope.quick import look, plain, resolve

    wanted = resolve(terms)
    ref, suite = one(model, revision)
    from bindscope.checkpoints.load import load
    from bindscope.terminal.results import looks, waiting

    with waiting(f"loading {model}"):
        loaded = load(ref, bos=bos or suite.bos, dtype=dtype)
    for note in loaded.files.notes if loaded.files else ():
        _complain(note)
    with waiting("measuring"):
        found = look(loaded, wanted, prompt)
    if as_json:
        print(json.dumps(plain(model, loaded, found), ensure_ascii=False, indent=1))
    else:
        looks(loaded, found)


@app.command()
def audit(
    models: Annotated[list[str], typer.Argument(help="tokenizer.json files, folders, catalogue names or hub ids.")],
    terms: Annotated[
        list[str] | None,
        typer.Option(help="Term set, term or .yaml file of terms; repeat for several. a11y-41 if left out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a CSV file here instead of a table on the screen.")] = None,
) -> None:
    """How tokenizers cut each term, whether it can be measured, and which control groups match it in tokens."""
    import pandas as pd

    from bindscope.checkpoints.tokenizer import tokenizer_by_name
    from bindscope.prompts.audit import audit as audit_terms
    from bindscope.prompts.audit import by_k, unmatched, write_csv
    from bindscope.prompts.library import control_groups, library
    from bindscope.quick import resolve
    from bindscope.terminal.results import audit_table, group_table

    wanted = resolve(terms or ["a11y-41"])
    named = "terms" if terms else "a11y-41"
    groups = {named: wanted} | {g: library().select(g) for g in control_groups() if g not in (terms or ())}
    loaded = {name: tokenizer_by_name(name) for name in models}
    table = pd.concat([audit_terms(words, name, wanted) for name, words in loaded.items()], ignore_index=True)
    if out is None:
        audit_table(table)
    else:
        write_csv(table, out)
        print(f"{len(table)} rows in {out}")
    for name, words in loaded.items():
        counts = by_k(words, groups)
        group_table(name, counts, unmatched(counts))


@app.command()
def suites(
    name: Annotated[str | None, typer.Argument(help="One suite, in full: its revisions, size, known faults.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Fingerprint the weights of every checkpoint.")] = False,
    download: Annotated[bool, typer.Option("--download", help="With --verify: compare tensors too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> int:
    """The catalogue of checkpoint suites, or one suite (by name, YAML file, folder or hub id), and its weights."""
    if verify or download:
        return _verify(name, download)
    from bindscope.checkpoints.suites import catalogued
    from bindscope.checkpoints.suites import suites as suites_of
    from bindscope.terminal.catalogue import catalogue, page

    found = catalogued() if name is None else suites_of(name)
    if as_json:
        print(json.dumps([s.plain() for s in found], ensure_ascii=False, indent=1))
    elif name is None:
        catalogue(found)
    else:
        page(found)
    return 0


def _verify(name: str | None, download: bool) -> int:
    """Every checkpoint of a suite with commit, fingerprint and flags; 1 where there are flags or faults."""
    from bindscope.checkpoints.suites import suite
    from bindscope.terminal.results import verification

    if name is None:
        raise RequestError("name the suite to verify: bindscope suites NAME --verify")
    found = suite(name)
    from bindscope.checkpoints.fingerprint import verify

    result = verify(found.checkpoints, download)
    verification(found, result)
    return 1 if result.flags or result.faults else 0


@app.command(cls=_OfExperiments)
def plan(
    experiment: _Experiment,
    protocol: _Protocol = None,
    suites: _Suites = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no hub: sizes come from cache and catalogue.")
    ] = False,
    probe: Annotated[bool, typer.Option(help="Time two prompts on a checkpoint of each suite that is here.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What a study would cost: checkpoints, prompts, downloads, disk, memory, time. Nothing is run."""
    from bindscope import experiment as experiments

    wanted = experiments.changed(experiments.load(experiment), protocol, suites or ())
    wanted.build_prompts()
    from bindscope.execute.plan import plan as compute
    from bindscope.terminal.catalogue import cost
    from bindscope.terminal.results import waiting

    with waiting("asking the hub and timing two prompts"):
        found = compute(wanted, offline=offline, probe=probe)
    if as_json:
        print(json.dumps(asdict(found) | {"download": found.download, "seconds": found.seconds}, indent=1))
    else:
        cost(found)


@app.command()
def analyse(
    folder: Annotated[Path, typer.Argument(help="Results folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Every claim on stored results, as published and as controlled; tables go to FOLDER/analysis."""
    from bindscope.stats.analysis import analyse as compute
    from bindscope.stats.analysis import write
    from bindscope.terminal.results import analysis

    store = _store(folder, create=False)
    found = compute(store)
    files = write(found, store)
    if as_json:
        print(json.dumps({n: json.loads(f.to_json(orient="records")) for n, f in found.tables().items()}, indent=1))
    else:
        analysis(found, files)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Results folder of a run.")],
    other: Annotated[Path | None, typer.Argument(help="Another one: compare the two instead.")] = None,
    paper: Annotated[bool, typer.Option("--pdf", help="Typeset paper.pdf too.")] = False,
) -> None:
    """Write report.html, figures/ and tables/ again from stored results, or compare two folders; no model is needed."""
    from bindscope.report.files import write

    store = _store(folder, create=False)
    if other is not None:
        from bindscope.report import comparison
        from bindscope.terminal.results import compared

        if paper:
            raise RequestError("--pdf is for the report of one folder; leave it out beside two")
        compared(*comparison.write(store, _store(other, create=False)))
        return
    for path in write(store, _answers(store)[1], paper):
        print(path)


@app.command()
def replicate(
    data: Annotated[Path, typer.Argument(metavar="DATA_DIR", help="Folder with the reference study's result files.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer of the Pythia models, to check the published spans.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write every table as a CSV file into this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """The reference study's published numbers from its own data, as published and as controlled."""
    from bindscope.replicate import replicate as compute
    from bindscope.replicate.show import show, to_csv, to_dict

    words = None
    if tokenizer is not None:
        from bindscope.checkpoints.tokenizer import tokenizer_by_name as load_tokenizer

        words = load_tokenizer(tokenizer)
    found = compute(data, words)
    if as_json:
        print(json.dumps(to_dict(found), ensure_ascii=False, indent=1))
    else:
        show(found)
    if out is not None:
        print(f"{len(to_csv(found, out))} tables in {out}", file=sys.stderr)


@app.command(cls=_OfExperiments)
def export(
    source: Annotated[str, typer.Argument(help="A study; for parquet, the results folder of a run.")],
    to: Annotated[Literal["lm-eval", "dataset", "parquet"], typer.Option(help=_TO)],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
) -> None:
    """Write a study's prompts for lm-eval or as a dataset, or a run's results as one Parquet file a table."""
    from bindscope.export import export as write

    print(*write(source, to, out), sep="\n")


@app.command()
def doctor() -> int:
    """The environment: versions, devices, the attention hook, the hub, disk."""
    from bindscope.doctor import examine
    from bindscope.terminal.results import findings

    return 1 if findings(examine()) else 0


def _answers(store: Store) -> tuple[Path | None, Analysis | None]:
    """The folder with every claim's tables, and the analysis; nothing for a run that asks no recognition questions."""
    from bindscope.stats.analysis import analyse, write

    if store.read("recognition").empty:
        return None, None
    found = analyse(store)
    return Path(write(found, store)[0]).parent, found


def _store(folder: Path, create: bool = True) -> Store:
    """A results folder that cannot be used is a wrong request, unlike a disk that fills up later."""
    from bindscope.store import Store

    try:
        return Store(folder, create)
    except BindscopeError as error:
        raise RequestError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every foreseen error is one line on stderr."""
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
        code = app(_started(words), standalone_mode=False) or 0
        sys.stdout.flush()  # a full disk shows only now
    except TyperException as error:
        if error.format_message():
            _complain(error.format_message())
        return 2
    except RequestError as error:
        _complain(str(error))
        return 2
    except BindscopeError as error:
        _complain(str(error))
        return 1
    except (KeyboardInterrupt, Abort):
        code = _INTERRUPTED
    except BrokenPipeError:
        _abandon_output()
        return 0
    except OSError as error:
        _complain(f"{error.filename or 'output'}: {error.strerror or error}")
        _abandon_output()
        return 1
    if code == _INTERRUPTED:
        kept = "; finished checkpoints are kept, run the same command again to go on" if words[0] == "run" else ""
        _complain(f"interrupted{kept}")
    return int(code)


def _started(words: Sequence[str]) -> list[str]:
    """--ray without an address means a cluster of its own: typer knows no options whose value may be left out."""
    out = []
    for word, following in zip_longest(words, words[1:], fillvalue="-"):
        out += ["--ray", "local"] if word == "--ray" and following.startswith("-") else [word]
    return out


def _abandon_output() -> None:
    """Python flushes stdout once more at its end, and would fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # a stream without a file beneath it
        return


def _complain(message: str) -> None:
    print(f"bindscope: {' '.join(message.split())}", file=sys.stderr)
