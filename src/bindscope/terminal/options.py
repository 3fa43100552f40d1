"""Arguments and options of the command line, with their help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bindscope.records import Bos, Dtype

_A_MODEL = "a suite of the catalogue (`bindscope suites`), a local folder, a .gguf file or a hub id (org/name)"

Experiment = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="What to measure: a built-in experiment (below) or a .yaml file.")
]
Protocol = Annotated[
    Literal["published", "controlled"] | None,
    typer.Option(
        help="How questions are asked. controlled: the right answer is equally often in each place; published: it is "
        "the first, as in the reference study (Tran 2026). If not given, as the experiment says."
    ),
]
Suites = Annotated[
    list[str] | None,
    typer.Option(help=f"Measure this model instead of the experiment's own: {_A_MODEL}. Repeat for several."),
]
Out = Annotated[
    Path, typer.Option(help="Results folder. Where it holds the same run already, only what is missing is measured.")
]
AcceptFlags = Annotated[
    bool,
    typer.Option(
        "--accept-flags",
        help="Measure checkpoints even where their weights raise a warning (two steps hold the same weights, a "
        "branch has moved); the results carry the warning.",
    ),
]
Evict = Annotated[
    bool,
    typer.Option(
        "--evict", help="Delete each checkpoint that this run downloads once it is measured; two at most are on disk."
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Measure on a Ray cluster: the one at ADDRESS (auto: the one running here), or one started for this run.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Results = Annotated[Path, typer.Argument(help="Results folder of a run (its --out).")]
OtherResults = Annotated[
    Path | None, typer.Argument(help="Another results folder: compare the two instead of writing a report.")
]
Pdf = Annotated[bool, typer.Option("--pdf", help="Write paper.pdf too.")]

Model = Annotated[str, typer.Argument(help=f"What to measure: {_A_MODEL}.")]
Terms = Annotated[
    list[str], typer.Argument(help='Terms in quotes ("screen reader"), term sets (pilot-3) or .yaml files of terms.')
]
Revision = Annotated[
    str | None,
    typer.Option(help="Which checkpoint: branch, tag, commit, folder name or step. The last one if not given."),
]
Prompt = Annotated[
    str | None, typer.Option(help="Measure in this text, which must contain the terms, and not in carrier sentences.")
]
Measures = Annotated[
    list[str] | None,
    typer.Option(help="A measure to show beside binding: its name, or module:measure; repeat for several."),
]
BosToken = Annotated[
    Bos | None,
    typer.Option(
        help="Whether a beginning-of-text token is put before each text; default: what the tokenizer does. If not "
        "given, as the catalogue says."
    ),
]
NumberFormat = Annotated[
    Dtype, typer.Option(help="In which numbers to compute; auto: bfloat16 on a GPU that has it, else float32.")
]

Tokenizers = Annotated[
    list[str], typer.Argument(help="tokenizer.json files, folders, suites of the catalogue, or hub ids.")
]
AuditTerms = Annotated[
    list[str] | None,
    typer.Option(help="A term set, a term or a .yaml file of terms; repeat for several. a11y-41 if not given."),
]
CsvFile = Annotated[Path | None, typer.Option(help="Write the table to this CSV file instead of the screen.")]

SuiteName = Annotated[
    str | None, typer.Argument(help="Show one suite in full: a name of the catalogue, a YAML file, a folder, a hub id.")
]
Verify = Annotated[
    bool, typer.Option("--verify", help="Compare the weights of all its checkpoints, and warn where two are equal.")
]
Download = Annotated[
    bool,
    typer.Option("--download", help="With --verify: download every checkpoint and compare tensors, not only files."),
]

Offline = Annotated[
    bool, typer.Option("--offline", help="Do not ask the hub; sizes come from its cache and the catalogue.")
]
Probe = Annotated[
    bool,
    typer.Option(
        help="Estimate the time by measuring two prompts, where a checkpoint of the suite is on this machine."
    ),
]

ReferenceData = Annotated[
    Path, typer.Argument(metavar="DATA_DIR", help="Folder with the result files of the reference study (Tran 2026).")
]
PythiaTokenizer = Annotated[
    str | None,
    typer.Option(help="Tokenizer of the Pythia models (file, folder or name), to check the published token spans."),
]
CsvFolder = Annotated[Path | None, typer.Option(help="Write every table as a CSV file into this folder.")]

ExportSource = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help="A built-in experiment (below) or a .yaml file; for parquet, the results folder of a run.",
    ),
]
Target = Annotated[
    Literal["lm-eval", "dataset", "parquet"],
    typer.Option(
        help="lm-eval: the questions as tasks of lm-evaluation-harness. dataset: the prompts as a Hugging Face "
        "dataset. parquet: the results of a run, for pandas or DuckDB."
    ),
]
NewFolder = Annotated[Path, typer.Option(help="A new or empty folder.")]
