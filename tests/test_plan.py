"""`bindscope plan`: what it counts is what a run does, and what it cannot know is missing with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import PreTrainedTokenizerFast

import measuring
import models
import sweeps
from bindscope import experiment as experiments
from bindscope.checkpoints.files import fetch, identify
from bindscope.checkpoints.load import load
from bindscope.checkpoints.memory import Batch, memory
from bindscope.checkpoints.suites import suite
from bindscope.cli import main
from bindscope.engine.generate import MAX_TOKENS
from bindscope.engine.prepare import prepare, tokenized
from bindscope.engine.selfcheck import self_check
from bindscope.execute.plan import plan
from bindscope.execute.work import work
from bindscope.experiment import Experiment
from bindscope.measures import registry
from bindscope.records import CheckpointRef
from loopback import Hub, hub_fixture  # noqa: F401  the fixture `hub`

MEASURES = ["binding", "recognition", "generation"]
ROWS = "a: {repo: lab/a, branch: 'at-{step}', revisions: [1, 2, 3], parameters: 1000, dtype: float16}\n"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerFast) -> dict[str, Path]:
    """Three revisions, of which the last has the weights of the second."""
    root = tmp_path_factory.mktemp("zoo")
    return {f"at-{n}": models.save(root / f"at-{n}", words, seed=min(n, 2)) for n in (1, 2, 3)}


def _study(folder: Path, rows: str = ROWS, **fields: Any) -> Experiment:
    (folder / "own.yaml").write_text(rows)
    fields = {"name": "s", "suites": ["own.yaml"], "terms": ["alt text"], "measures": MEASURES} | fields
    (folder / "s.yaml").write_text(json.dumps(fields))
    return experiments.load(str(folder / "s.yaml"))


def _bytes(folder: Path, *names: str) -> int:
    return sum((folder / name).stat().st_size for name in names)


def test_downloads_are_what_the_cache_lacks(hub: Hub, tmp_path: Path, zoo: dict[str, Path]) -> None:
    hub.add("lab/a", zoo)
    experiment = _study(tmp_path)
    weights = _bytes(zoo["at-1"], "model.safetensors")
    small = _bytes(zoo["at-1"], "config.json", "tokenizer.json", "tokenizer_config.json")
    (cost,) = plan(experiment).suites
    assert (cost.checkpoints, cost.at_hand, cost.by) == (3, 0, "hub")
    assert cost.download == 2 * weights + small  # the third revision is the second again, and its bytes come once
    assert cost.largest == weights + small
    assert sorted(set(hub.fetched())) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert cost.seconds is None
    assert cost.work is not None
    assert any("none of its checkpoints is on this machine" in reason for reason in cost.reasons)
    fetch(identify(CheckpointRef("a", "lab/a", "at-1")).weights)
    (cost,) = plan(experiment).suites
    assert (cost.at_hand, cost.download, cost.largest) == (1, weights, weights)
    assert cost.seconds is not None
    assert cost.seconds > 0
    assert {path.name for path in tmp_path.iterdir()} <= {"hf-home", "hub-cache", "own.yaml", "s.yaml"}


def test_without_a_hub_sizes_come_from_the_catalogue(hub: Hub, tmp_path: Path, zoo: dict[str, Path]) -> None:
    hub.add("lab/a", zoo)
    experiment = _study(tmp_path)
    for offline in (True, False):
        if not offline:
            hub.stop()
        (cost,) = plan(experiment, offline=offline).suites
        assert (cost.download, cost.largest, cost.by) == (3 * 2000, 2000, "catalogue")
        assert cost.memory.weights == 4000
        assert (cost.work, cost.memory.batch, cost.seconds) == (None, None, None)
        assert [reason for reason in cost.reasons if "the hub does not answer" in reason]
        assert not hub.requests
        assert constants.HF_HUB_OFFLINE is False
    (cost,) = plan(_study(tmp_path, "a: {repo: lab/a, branch: 'at-{step}', revisions: [1]}")).suites
    assert (cost.download, cost.largest, cost.memory.weights) == (None, None, None)
    assert any("gives its size" in reason for reason in cost.reasons)


def test_a_hub_that_is_down_is_asked_once(hub: Hub, tmp_path: Path, zoo: dict[str, Path]) -> None:
    hub.add("lab/a", zoo)
    hub.fail("/", times=1000, status=503)
    (cost,) = plan(_study(tmp_path)).suites
    assert cost.by == "catalogue"
    assert len({request.path for request in hub.requests}) == 1


def test_a_cached_checkpoint_is_planned_offline(hub: Hub, tmp_path: Path, zoo: dict[str, Path]) -> None:
    hub.add("lab/a", zoo)
    fetch(identify(CheckpointRef("a", "lab/a", "at-2")).weights)
    (cost,) = plan(_study(tmp_path), offline=True).suites
    assert (cost.at_hand, cost.download, cost.by) == (1, 2 * 2000, "catalogue")
    assert cost.seconds is not None


def test_a_revision_that_is_not_there_is_named(hub: Hub, tmp_path: Path, zoo: dict[str, Path]) -> None:
    hub.add("lab/a", {"at-1": zoo["at-1"], "at-3": zoo["at-3"]})
    (cost,) = plan(_study(tmp_path)).suites
    assert cost.by == "hub"
    (reason,) = [text for text in cost.reasons if "is not available" in text]
    assert "step 2" in reason
    assert "no revision 'at-2'" in reason


def test_a_folder_needs_nothing_and_is_timed(suite_folder: Path, tmp_path: Path) -> None:
    experiment = _study(tmp_path, suites=[str(suite_folder)])
    (cost,) = plan(experiment).suites
    assert (cost.checkpoints, cost.at_hand, cost.download, cost.by) == (2, 2, 0, None)
    assert cost.seconds is not None
    (cost,) = plan(experiment, probe=False).suites
    assert cost.work is not None
    assert cost.seconds is None
    assert cost.reasons == ("time: not asked for",)


def test_prompts_are_planned_as_they_are_measured(suite_folder: Path) -> None:
    experiment = Experiment(name="s", suites=("x",), terms=("alt text", "touch target size"), controls=("nonsense",))
    loaded, prompts = load(suite(str(suite_folder)).checkpoints[0], bos="on"), experiment.build_prompts()
    assert [tokenized(loaded.tokenizer, p, "on") for p in prompts] == [prepare(loaded, p) for p in prompts]


@pytest.mark.parametrize("protocol", ["controlled", "published"])
def test_tokens_are_those_that_the_model_reads(suite_folder: Path, protocol: str) -> None:
    """Counted at the embedding, padding too, the checks at loading not."""
    experiment = Experiment.model_validate(
        {"name": "s", "suites": "x", "terms": "set-A", "protocol": protocol,
         "measures": ["binding", "recognition", "few_shot", "ablation"], "ablation": {"k": 1, "random": 19}}
    )  # fmt: skip
    loaded, prompts, seen = load(suite(str(suite_folder)).checkpoints[1]), experiment.build_prompts(), []
    count = loaded.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    chosen, rules = registry.chosen(experiment.measures)[0], experiment.protocol_of("default")
    reading, _ = registry.chosen(["binding", "recognition"])
    self_check(loaded.model)
    check = len(seen)
    measuring.tables(loaded, prompts, rules)
    count.remove()
    asked = [tokenized(loaded.tokenizer, prompt, "default") for prompt in prompts]
    first = work(loaded.tokenizer, asked, rules, reading.values())
    read = sum(shape[0] * shape[1] for shape in seen[2 * check :])
    assert 0.8 * read < first.read <= read
    assert first.written == 0
    whole = work(loaded.tokenizer, asked, rules, chosen.values())
    openings = [p for p in prompts if p.task == "generation"]
    new = sum(p.max_tokens or MAX_TOKENS for p in openings)
    plain = sum(p.max_tokens or MAX_TOKENS for p in openings if p.shot == "zero")
    edited = 22 * plain if protocol == "published" else 0
    assert whole.written == new + edited


def test_memory_is_that_of_the_weights(suite_folder: Path) -> None:
    loaded = load(suite(str(suite_folder)).checkpoints[0])
    small, large = (memory(loaded.model.config, torch.float32, Batch(n, n // 4, 2, 0)) for n in (512, 2048))
    assert small.weights == sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    assert large.batch == 4 * (small.batch or 0)
    half = memory(loaded.model.config, torch.bfloat16, Batch(512, 128, 2, 0))
    assert half.weights == (small.weights or 0) // 2


def test_a_plan_on_the_screen_and_as_json(
    hub: Hub, tmp_path: Path, zoo: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("lab/a", zoo)
    _study(tmp_path, controls=["nonsense"])
    assert main(["plan", str(tmp_path / "s.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"]["recognition"] == 20
    assert found["units"] == 3 * len(sweeps.stored(*MEASURES))
    assert found["download"] == found["suites"][0]["download"] > 0
    assert found["seconds"] is None
    assert main(["plan", str(tmp_path / "s.yaml"), "--protocol", "published"]) == 0
    shown = capsys.readouterr().out
    units = f"{3 * len(sweeps.stored(*MEASURES))} units: 3 checkpoints x prompts, "
    for part in (units.strip(), "5 recognition", "free in", "Missing of a: time: none"):
        assert part in " ".join(shown.split())
    assert max(map(len, shown.split("free in")[0].splitlines())) <= 80
    assert main(["plan", "nothing"]) == 2
    assert "unknown experiment" in capsys.readouterr().err


def test_the_whole_study_is_planned_without_a_hub(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "canonical-41", "--protocol", "published", "--offline", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(cost["checkpoints"] for cost in found["suites"]) == 81
    assert found["units"] == 81 * len(sweeps.stored(*MEASURES))
    assert found["prompts"] == {"recognition": 205, "generation": 246}
    assert 1.5e11 < found["download"] < 1.8e11
    assert not hub.requests
