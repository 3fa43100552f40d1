"""Monitors a training run: every N steps it measures binding, excess, accuracy and margin, and gives early warnings.

`watch(trainer, ...)` is for the Trainer of transformers, `Monitor(...)(model, step)` for any other training loop. The
monitor leaves the model and the random number generators unchanged. It writes each measurement to OUT/monitor.jsonl, to
any sink (TensorBoard, Weights & Biases), and into a results folder that `bindscope report OUT` reads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from transformers import TrainerCallback

from bindscope.checkpoints.borrow import borrowed
from bindscope.engine.engine import Engine
from bindscope.engine.selfcheck import SelfCheck
from bindscope.errors import RequestError
from bindscope.execute.measuring import Outcome, measure
from bindscope.execute.request import Request
from bindscope.execute.unit import provenance
from bindscope.experiment import Experiment
from bindscope.measures import registry
from bindscope.measures.base import Measure
from bindscope.records import Bos, Format, Identity, digest
from bindscope.store import RunFile, Store, Unit
from bindscope.tables.early import WINDOW, early_warnings
from bindscope.tables.summary import by_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer, TrainerControl, TrainerState, TrainingArguments

#: Receives the numbers of a measurement and its step.
Sink = Callable[[Mapping[str, float], int], None]
#: Means over prompts that a measurement reports (see `tables.summary`).
_SHOWN = ("eb_star", "null", "excess", "accuracy", "margin")


class Monitor:
    """Measures a model during training. Call it with the model and the step; it measures every `every` steps.

    In a distributed run only rank 0 measures.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        terms: str | Sequence[str],
        out: Path | str,
        *,
        every: int = 500,
        name: str = "training",
        format: Format = "cloze",
        bos: Bos = "default",
        measures: Sequence[Measure] = (),
        sinks: Sequence[Sink] = (),
    ) -> None:
        """Prepare the prompts and open the results folder.

        tokenizer: the tokenizer of the model
        terms: sets or terms of the library, or YAML files of terms
        out: the results folder; `bindscope report OUT` reads it
        every: steps between two measurements
        name: name of the suite in the results
        format: whether the options are listed in a question; "cloze" shows knowledge earlier than "listed"
        bos: whether a beginning-of-text token is put in front of each text
        measures: your own measures besides binding and recognition; the mean of each is reported
        sinks: called with the numbers and the step, such as `lambda values, step: wandb.log(dict(values), step=step)`
        Raises RequestError for unknown terms or where `out` holds another run, StoreError where `out` cannot be
        written.
        """
        if every < 1:
            raise RequestError(f"every is {every}; give a number of steps, 1 or more")
        chosen = (terms,) if isinstance(terms, str) else tuple(terms)
        self.every, self.sinks, self._tokenizer, self._bos = every, tuple(sinks), tokenizer, bos
        self._experiment = Experiment(
            name=name, about="Watched while it trained.", suites=(name,), terms=chosen, format=format, bos=bos
        )
        chosen_measures, _ = registry.chosen(self._experiment.measures, measures)
        self._further = [measure for measure in chosen_measures.values() if measure in measures]
        self._protocol = self._experiment.protocol_of(bos)
        self._request = Request(
            experiment=self._experiment,
            prompts=self._experiment.build_prompts(),
            suites={},
            checkpoints=(),
            measures=chosen_measures,
        )
        self._check: SelfCheck | None = None
        self.store = Store(out)
        self._units, self._series = self._earlier()

    def __call__(self, model: torch.nn.Module, step: int) -> dict[str, Any] | None:
        """Measure the model if the step is a multiple of `every`; return None if it is not. See `measure`."""
        if step % self.every or not _first_process():
            return None
        return self.measure(model, step)

    def measure(self, model: torch.nn.Module, step: int) -> dict[str, Any]:
        """Measure the model at any step: step, means with 95% intervals over terms, flags, seconds.

        model: the model
        step: optimizer steps so far
        """
        started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        with borrowed(model, self._tokenizer, name=self._experiment.name, step=step, bos=self._bos) as loaded:
            with Engine(loaded, self._check) as engine:
                self._check = engine.check
                measures = list(self._request.measures.values())
                outcome = measure(engine, self._request.prompts, self._protocol, measures)
            summary = self._summary(outcome, step)
            self._store_results(engine, outcome, started, time.monotonic() - clock)
        summary["seconds"] = round(time.monotonic() - clock, 3)
        with (self.store.root / "monitor.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(summary) + "\n")
        numbers = {key: value for key, value in summary.items() if isinstance(value, float)}
        for sink in self.sinks:
            sink({f"bindscope/{key}": value for key, value in numbers.items()}, step)
        return summary

    def _earlier(self) -> tuple[dict[int, Unit], pd.DataFrame]:
        """The measurements in the folder from before the training was resumed."""
        if not (self.store.root / "run.json").exists():
            return {}, pd.DataFrame(columns=["term", "excess", "margin", "step"])
        run = self.store.read_run()
        if run.experiment != json.loads(json.dumps(self._experiment.model_dump(mode="json"))):
            raise RequestError(
                f"{self.store.root} holds another run ({run.experiment.get('name')}); use another folder"
            )
        binding, recognition = self.store.read("binding"), self.store.read("recognition")
        return {unit.checkpoint.step or 0: unit for unit in run.units}, _by_term(binding, recognition)

    def _summary(self, outcome: Outcome, step: int) -> dict[str, Any]:
        place: dict[str, Any] = {"suite": self._experiment.name, "revision": f"step{step}", "step": step}
        binding, recognition = (outcome.frame(name).assign(**place) for name in ("binding", "recognition"))
        row = by_checkpoint(binding, recognition).iloc[0]
        before = self._series[self._series["step"] < step]  # later steps belong to a continuation that was abandoned
        self._series = pd.DataFrame([*before.to_dict("records"), *_by_term(binding, recognition).to_dict("records")])
        flags, reason = early_warnings(self._series, WINDOW)
        ends = [f"{name}{end}" for name in _SHOWN for end in ("", "_low", "_high")]
        numbers = {key: float(row[key]) for key in ends if key in row and pd.notna(row[key])}
        for further in self._further:
            values = outcome.frame(further.name).get(further.value, pd.Series(dtype=float))
            numbers |= {further.name: float(values.mean())} if values.notna().any() else {}
        texts = {flag.flag: flag.text for flag in flags}
        marks = {"binding_ahead": "binding ahead" in texts, "decoupling": "decoupling" in texts}
        return {"step": step, **numbers, **{k: float(v) for k, v in marks.items()}, "flags": texts, "no_flags": reason}

    def _store_results(self, engine: Engine, outcome: Outcome, started: str, seconds: float) -> None:
        """Write the tables into the store, under keys that contain a checksum of the current weights."""
        loaded = engine.loaded
        ref, identity = loaded.ref, Identity(f"live:{self._experiment.name}", None, checksum(loaded.model))
        notes = ("measured while it trained; the fingerprint is a checksum of the weights, not a hash of files",)
        origin = provenance(engine, identity, notes, self._protocol, started, seconds)
        keys = self._request.keys(identity, loaded.dtype, loaded.device.type, self._protocol)
        for result in outcome.tables:
            self.store.write(ref, keys[result.name], result, origin)
        now = ref.step or 0
        unit = Unit(
            checkpoint=ref,
            status="done",
            keys={result.name: keys[result.name] for result in outcome.tables},
            lacking=outcome.failures,
        )
        self._units = {step: unit for step, unit in self._units.items() if step < now} | {now: unit}
        self.store.write_run(RunFile(self._experiment.model_dump(mode="json"), tuple(self._units.values())))


def watch(trainer: Trainer, terms: str | Sequence[str], out: Path | str, **settings: Any) -> Monitor:
    """Add a monitor to a Trainer, which then measures at the start and every `every` steps.

    The monitor uses the trainer's `processing_class` as tokenizer and reports to the services of the trainer.

    trainer: the trainer
    terms: sets or terms of the library, or YAML files of terms
    out: the results folder
    settings: further arguments of `Monitor`
    Raises RequestError where there is no tokenizer, and the errors of `Monitor`.
    """
    tokenizer = settings.pop("tokenizer", None) or trainer.processing_class
    if tokenizer is None:
        raise RequestError("the trainer has no processing_class; pass tokenizer=... to watch")
    monitor = Monitor(tokenizer, terms, out, **settings)
    trainer.add_callback(_Callback(monitor, trainer))
    return monitor


class _Callback(TrainerCallback):  # type: ignore[misc]
    """Measures at the start and after optimizer steps, so never between the parts of an accumulated gradient.

    It reports a measurement when the next step begins, since a report at the end of a step would replace the trainer's
    own report of the loss.
    """

    def __init__(self, monitor: Monitor, trainer: Trainer) -> None:
        self.monitor, self.trainer = monitor, trainer
        self.summary: dict[str, Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self._measure(more["model"], state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self._measure(more["model"], state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._report()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._report()

    def _measure(self, model: torch.nn.Module, state: TrainerState) -> None:
        if state.is_world_process_zero:
            self.summary = self.monitor(model, state.global_step)

    def _report(self) -> None:
        if self.summary is not None:
            self.trainer.log({f"bindscope/{k}": v for k, v in self.summary.items() if isinstance(v, float)})
        self.summary = None


def _by_term(binding: pd.DataFrame, recognition: pd.DataFrame) -> pd.DataFrame:
    """A row per step and term: mean excess and margin, NaN where a term has none."""
    keys = ["step", "term"]
    out = pd.DataFrame({"excess": binding.astype({"excess": float}).groupby(keys)["excess"].mean()})
    known = None if recognition.empty else recognition.groupby(keys)["margin_per_token"].mean()
    return out.assign(margin=float("nan") if known is None else known).reset_index()


def checksum(model: torch.nn.Module) -> str:
    """A digest (hex) of the weights: name, shape, sum and absolute sum of every parameter, in float64.

    It changes when training changes the weights, and costs little more than reading them once.
    """
    rows = []
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().double() if parameter.is_floating_point() else parameter.detach()
        rows.append([name, list(parameter.shape), float(values.sum()), float(values.abs().sum())])
    return digest(rows)


def _first_process() -> bool:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not ready or torch.distributed.get_rank() == 0


def tensorboard(writer: Any) -> Sink:
    """A sink for TensorBoard.

    writer: a `torch.utils.tensorboard.SummaryWriter`, or an object with the same add_scalar
    """

    def sink(values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return sink
