"""Do lm-evaluation-harness and bindscope score the same questions alike?

    python benchmarks/lm_eval_parity.py | python docs/sections.py performance lm-eval

Needs the extra smollm2. lm-eval gets an environment of its own in build/lm-eval, made once and used offline from then
on; it sees the torch and transformers of this one, so what differs is the two programs alone. Both read the weights
from the same folder, lm-eval the questions from what `bindscope export` wrote. Fails where the log-probability of a
choice is more than TOLERANCE a token apart, or accuracies differ. Where the two are furthest apart, a plain forward
pass in float64 tells how far each is from the truth.
"""

import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from bindscope import experiment as experiments
from bindscope.checkpoints.load import load
from bindscope.checkpoints.suites import one
from bindscope.execute import local
from bindscope.execute.request import prepare
from bindscope.export import export
from bindscope.store import Store
from bindscope.terminal.results import Progress

ENVIRONMENT = Path(__file__).parents[1] / "build" / "lm-eval"
PINS = ("lm-eval==0.4.13", "datasets==5.2.0")
TOLERANCE = 1e-4  # nats a token
#: Score here -> metric there.
SCORES = {"raw": "acc", "per_byte": "acc_bytes"}


@dataclass(frozen=True)
class Case:
    """A model and a form of the questions. study: the lines of an experiment file that ask them so."""

    suite: str
    revision: str | None
    terms: str
    form: str
    experiment: str


CASES = (
    Case("tiny", "checkpoint-2500", "[set-A, set-B]", "listed_rotated", 'protocol: controlled\nbos: "on"'),
    Case("smollm2-135m", None, "set-B", "listed_given", "protocol: published"),
    Case("smollm2-135m", None, "a11y-41", "cloze", "format: cloze"),
)


def environment() -> Path:
    """The Python that has lm-eval, and everything else from the environment that runs this file."""
    python = ENVIRONMENT / "bin" / "python"
    if not (ENVIRONMENT / "made").exists():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        (place,) = ENVIRONMENT.glob("lib/python*/site-packages")
        (place / "outer.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run([python, "-m", "pip", "--quiet", "install", *PINS], check=True, stdout=sys.stderr)
        (ENVIRONMENT / "made").touch()
    return python


def weights(case: Case, folder: Path) -> Path:
    """The model as a folder that both programs read."""
    if not folder.exists():
        loaded = load(one(case.suite, case.revision)[0], dtype="float32")
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    return folder


def ours(experiment: Path, folder: Path) -> pd.DataFrame:
    """The table `recognition`."""
    store = Store(folder)
    with redirect_stdout(sys.stderr), Progress() as progress:
        (unit,) = local.run(prepare(experiments.load(str(experiment))), store, progress).units
    assert unit.status == "done", unit.reason
    return store.read("recognition").set_index("prompt")


def theirs(
    python: Path, model: Path, bos: bool, task: str, tasks: Path, folder: Path
) -> tuple[pd.DataFrame, dict[str, float]]:
    """A row for each question with its log-probabilities, and the metrics."""
    arguments = f"pretrained={model},dtype=float32" + (",add_bos_token=True" if bos else "")
    command = [
        *(python, "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments, "--device", "cpu"),
        *("--batch_size", "16", "--include_path", tasks, "--tasks", task, "--log_samples", "--output_path", folder),
    ]
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr, env=os.environ | settings)
    (samples,) = folder.rglob("samples_*.jsonl")
    (results,) = folder.rglob("results_*.json")
    rows = []
    for sample in map(json.loads, samples.read_text(encoding="utf-8").splitlines()):
        doc = sample["doc"]
        sums = [float(response[0][0]) for response in sample["resps"]]
        rows.append({"prompt": f"{doc['term']}/{doc['prompt_id']}", "choices": doc["choices"], "logprob": sums})
    scores = json.loads(results.read_text())["results"][task]
    metrics = {name.removesuffix(",none"): value for name, value in scores.items() if name.endswith(",none")}
    return pd.DataFrame(rows).set_index("prompt"), metrics


def exact(model: Path, bos: bool, text: str, choices: Sequence[str]) -> NDArray[np.float64]:
    """Log-probability of each choice by one forward pass in float64."""
    words = AutoTokenizer.from_pretrained(model)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    front = [words.bos_token_id] if bos else []
    n, sums = len(front + words(text)["input_ids"]), []
    for choice in choices:
        ids = torch.tensor([front + words(f"{text} {choice}")["input_ids"]])
        with torch.inference_mode():
            logs = net(ids).logits[0, :-1].log_softmax(-1)
        sums.append(float(logs.gather(1, ids[0, 1:, None])[n - 1 :].sum()))
    return np.array(sums)


def check(mine: pd.DataFrame, apart: NDArray[np.float64], metrics: dict[str, float]) -> None:
    """Raises where the two programs differ by more than rounding."""
    worst = float((apart / np.stack(mine.choice_tokens.to_list())).max())
    assert worst <= TOLERANCE, f"log-probabilities are {worst:.1e} a token apart"
    for score, metric in SCORES.items():
        found = float(mine[f"correct_{score}"].mean())
        assert abs(found - metrics[metric]) < 1e-12, f"{score}: {found}, {metric}: {metrics[metric]}"


def line(python: Path, case: Case, folder: Path) -> str:
    """Measure a case with both programs: a row of the table."""
    model = weights(case, folder / case.suite)
    experiment = folder / f"{case.suite}-{case.form}.yaml"
    experiment.write_text(f"name: parity\nsuites: {model}\nterms: {case.terms}\ndtype: float32\n{case.experiment}\n")
    bos = "bos" in case.experiment
    mine = ours(experiment, experiment.with_suffix(".ours"))
    export(str(experiment), "lm-eval", experiment.with_suffix(".tasks"))
    task = f"bindscope_parity_{case.form}"
    other, metrics = theirs(
        python, model, bos, task, experiment.with_suffix(".tasks"), experiment.with_suffix(".theirs")
    )
    assert sorted(mine.index) == sorted(other.index)
    other = other.loc[mine.index]
    assert all(list(a) == list(b) for a, b in zip(mine.choices, other.choices, strict=True))
    a, b = np.stack(mine.logprob.to_list()), np.stack(other.logprob.to_list())
    apart = np.abs(a - b)
    worst = int(apart.max(1).argmax())
    (text,) = (p.text for p in experiments.load(str(experiment)).build_prompts() if p.id == mine.index[worst])
    truth = exact(model, bos, text, mine.choices.iloc[worst])
    off = [f"{np.abs(sums[worst] - truth).max():.1e}" for sums in (a, b)]
    cells = [case.suite, case.form, "on" if bos else "default", f"{len(mine)}", f"{apart.max():.1e}", *off]
    cells += [f"{mine[f'correct_{score}'].mean():.4f} = {metrics[metric]:.4f}" for score, metric in SCORES.items()]
    cells += [f"{(a.argmax(1) != b.argmax(1)).sum()}", f"{metrics['acc_norm']:.4f}"]
    row = f"| {' | '.join(cells)} |"
    print(row, file=sys.stderr, flush=True)
    check(mine, apart, metrics)
    return row


def main() -> None:
    python = environment()
    with tempfile.TemporaryDirectory() as folder:
        rows = [line(python, case, Path(folder)) for case in CASES]
    cpu = next(text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name"))
    threads = os.environ.get("OMP_NUM_THREADS", f"{os.cpu_count()}")
    versions = ", ".join(f"{name} {version(name)}" for name in ("bindscope", "torch", "transformers"))
    print(f"{versions}; {', '.join(PINS)}; Python {platform.python_version()}.")
    print(f"CPU ({cpu.split(': ')[1]}), float32, threads: {threads}. {date.today()}.")
    print(f"The script fails where the log-probability of a choice is more than {TOLERANCE:.0e} nats a token")
    print("apart, or accuracies differ.\n")
    print("| model | form | BOS | questions | largest difference | there, bindscope from float64 | lm-eval", end=" ")
    print("from float64 | `raw` = `acc` | `per_byte` = `acc_bytes` | other answers | `acc_norm` |")
    print("|---|---|---|" + "---:|" * 8)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
