"""A whole run on real files: results, resuming, what makes a unit measured again, and faults that lose nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import models
import sweeps
from bindscope import experiment as experiments
from bindscope.cli import main
from bindscope.prompts.jsonl import read_jsonl
from bindscope.prompts.spans import encode, locate
from bindscope.store import Store

#: What a checkpoint gets where the experiment names no measures.
TABLES = sweeps.stored("binding", "recognition")


@pytest.fixture
def folder(suite_folder: Path, tmp_path: Path) -> Path:
    """A private copy of the two-checkpoint suite."""
    return Path(shutil.copytree(suite_folder, tmp_path / "suite"))


@pytest.fixture(scope="module")
def finished(suite_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of that suite and, in out/, its results. To be read, or copied."""
    place = tmp_path_factory.mktemp("finished")
    assert _run(_study(place, suite_folder), place / "out") == 0
    return place


def _study(tmp_path: Path, folder: Path, **changes: object) -> str:
    path = tmp_path / "experiment.yaml"
    path.write_text(json.dumps({"name": "test", "suites": [str(folder)], "terms": ["pilot-3"], "bos": "on"} | changes))
    return str(path)


def _run(experiment: str, out: Path) -> int:
    return main(["run", experiment, "--out", str(out)])


def _shards(out: Path) -> dict[str, int]:
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob("*.parquet")}


def test_run_resume_and_extend(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, later = tmp_path / "out", tmp_path / "later"
    (folder / "checkpoint-10").rename(later)
    experiment = _study(tmp_path, folder)
    assert _run(experiment, out) == 0
    first = _shards(out)
    assert len(first) == len(TABLES)
    assert (out / "report.html").is_file()
    assert "Checkpoints: 1 measured." in capsys.readouterr().out

    assert _run(experiment, out) == 0  # nothing is left to do
    assert _shards(out) == first
    assert "1 found in the store" in capsys.readouterr().out

    later.rename(folder / "checkpoint-10")  # a longer study extends the old run
    assert _run(experiment, out) == 0
    longer = _shards(out)
    assert {k: v for k, v in longer.items() if k in first} == first
    assert len(longer) == 2 * len(TABLES)
    assert "1 measured, 1 found in the store" in capsys.readouterr().out
    binding = Store(out).read("binding")
    assert binding.groupby("step").size().to_dict() == {0: 33, 10: 33}  # 3 terms x (5 questions + 6 openings)
    recognition = Store(out).read("recognition")
    assert recognition.groupby("step").size().to_dict() == {0: 60, 10: 60}  # 3 terms x 5 questions x 4 rotations


def test_stored_numbers_are_those_of_a_naive_computation(
    finished: Path, suite_folder: Path, words: PreTrainedTokenizerFast
) -> None:
    """EB* from eager attention and scores from one forward pass per choice, written out from the definitions."""
    store = Store(finished / "out")
    prompts = {p.id: p for p in experiments.load(str(finished / "experiment.yaml")).build_prompts()}
    model = AutoModelForCausalLM.from_pretrained(
        suite_folder / "checkpoint-10", attn_implementation="eager", dtype=torch.float32
    )
    model.eval()
    binding = store.read("binding").query("step == 10").set_index("prompt")
    assert len(binding) == 33
    for name, row in binding.iterrows():
        encoded = encode(words, prompts[str(name)].text, "on")
        s = locate(encoded, prompts[str(name)].term, prompts[str(name)].aliases).tokens
        assert row["span"].tolist() == list(s)
        with torch.inference_mode():
            A = torch.stack(model(torch.tensor([encoded.ids]), output_attentions=True).attentions)[:, 0].numpy()
        pairs = [(i, j) for i in s for j in s if i > j]
        bsi = np.mean([A[:, :, i, j] for i, j in pairs], 0)
        eb = bsi.max(1) - bsi.mean(1)
        np.testing.assert_allclose(row["eb_per_layer"], eb, atol=1e-5)
        assert row["eb_star"] == pytest.approx(eb.max(), abs=1e-5)
        np.testing.assert_allclose(row["bsi"], bsi.ravel(), atol=1e-5)
    recognition = store.read("recognition").query("step == 10")
    for row in recognition.iloc[::7].to_dict("records"):
        prompt = prompts[row["prompt"]]
        ids = encode(words, prompt.text, "on").ids
        means = []
        for choice, stored in zip(prompt.choices, row["logprob"], strict=True):
            full = encode(words, f"{prompt.text} {choice}", "on").ids
            with torch.inference_mode():
                logs = model(torch.tensor([full])).logits[0].log_softmax(-1)
            total = sum(float(logs[i - 1, full[i]]) for i in range(len(ids), len(full)))
            assert stored == pytest.approx(total, abs=1e-4)  # a sum of up to 20 terms of 1e-5
            means.append(total / (len(full) - len(ids)))
        assert row["predicted_per_token"] == int(np.argmax(means))
        assert row["margin_per_token"] == pytest.approx(
            means[prompt.answer] - max(m for i, m in enumerate(means) if i != prompt.answer), abs=1e-5
        )


def test_null_is_pooled_over_the_run(finished: Path) -> None:
    binding, windows = (Store(finished / "out").read(m).query("step == 0") for m in ("binding", "eb_star_windows"))
    assert len(binding) == 33
    for row in binding.to_dict("records"):
        null = windows[windows["k"] == row["k"]]["eb_star"].to_numpy()
        assert row["null_n"] == len(null)
        assert row["null_mean"] == pytest.approx(null.mean())
        assert row["excess"] == pytest.approx(row["eb_star"] - null.mean())
        assert row["percentile"] == pytest.approx(((null <= row["eb_star"]).sum() + 1) / (len(null) + 1))
        near = windows[
            (windows["k"] == row["k"]) & (np.floor(np.log2(windows["start"])) == np.floor(np.log2(row["span"][0])))
        ]
        assert row["position_null_n"] == len(near)
        assert pd.isna(row["position_null_reason"]) == (len(near) >= 30)


@pytest.mark.parametrize(
    ("change", "kept"),
    [({"terms": ["skip link"]}, {"previous_token"}), ({"dtype": "bfloat16"}, set()), ({"bos": "off"}, set())],
    ids=str,
)
def test_what_is_asked_otherwise_is_measured_again(
    finished: Path, tmp_path: Path, suite_folder: Path, change: dict[str, object], kept: set[str]
) -> None:
    """kept: tables in which no number depends on what changed."""
    out = Path(shutil.copytree(finished / "out", tmp_path / "out"))
    before = set(_shards(out))
    assert _run(_study(tmp_path, suite_folder, **change), out) == 0
    new = [Path(name).name.rpartition("-")[0] for name in set(_shards(out)) - before]
    assert sorted(new) == sorted(2 * [name for name in TABLES if name not in kept])


@pytest.mark.parametrize("change", ["weight", "config"])
def test_a_changed_checkpoint_is_measured_again(tmp_path: Path, folder: Path, change: str) -> None:
    out, experiment = tmp_path / "out", _study(tmp_path, folder, terms=["skip link"])
    assert _run(experiment, out) == 0
    before = set(_shards(out))
    if change == "weight":
        path = folder / "checkpoint-0" / "model.safetensors"
        tensors = load_file(path)
        tensors["gpt_neox.final_layer_norm.bias"][0] += 1e-3
        save_file(tensors, path, {"format": "pt"})
    if change == "config":
        path = folder / "checkpoint-0" / "config.json"
        path.write_text(path.read_text().replace('"use_parallel_residual": true', '"use_parallel_residual": false'))
    assert _run(experiment, out) == 0
    assert len(set(_shards(out)) - before) == len(TABLES)


def test_bad_weights_fail_alone(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "checkpoint-10" / "model.safetensors"
    tensors = load_file(path)
    tensors["embed_out.weight" if "embed_out.weight" in tensors else "lm_head.weight"][3, 3] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    assert _run(_study(tmp_path, folder), tmp_path / "out") == 1
    shown = capsys.readouterr()
    assert "not finite" in shown.out
    assert "1 measured, 1 failed" in shown.out
    assert Store(tmp_path / "out").read("binding")["step"].unique().tolist() == [0]
    assert "not finite" in (tmp_path / "out" / "report.html").read_text()


def test_missing_tensors_are_not_filled_at_random(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "checkpoint-10" / "model.safetensors"
    tensors = load_file(path)
    del tensors["gpt_neox.layers.1.attention.dense.weight"]
    save_file(tensors, path, {"format": "pt"})
    assert _run(_study(tmp_path, folder), tmp_path / "out") == 1
    assert "lack 1 tensors" in capsys.readouterr().out


def test_truncated_weights_fail_alone(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "checkpoint-10" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert _run(_study(tmp_path, folder), tmp_path / "out") == 1
    assert "cannot be read" in capsys.readouterr().out


def test_torn_shard_is_named_and_measured_again(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, experiment = tmp_path / "out", _study(tmp_path, folder)
    assert _run(experiment, out) == 0
    victim = next((out / "shards").rglob("eb_star-*.parquet"))
    whole = pd.read_parquet(victim)
    victim.write_bytes(victim.read_bytes()[:100])
    capsys.readouterr()
    assert _run(experiment, out) == 0
    shown = capsys.readouterr()
    assert "is damaged or not a shard" in shown.err
    assert "1 measured, 1 found" in shown.out
    pd.testing.assert_frame_equal(pd.read_parquet(victim), whole)


def test_binding_is_measured_beside_any_measure(tmp_path: Path, folder: Path) -> None:
    """What the report needs is always there, so a run never ends without a page."""
    out = tmp_path / "out"
    assert _run(_study(tmp_path, folder, terms=["skip link"], measures=["sink"]), out) == 0
    assert (out / "report.html").exists()
    for table in ("sink", "eb_star", "mass", "previous_token"):
        assert set(Store(out).read(table)["step"]) == {0, 10}
    assert main(["report", str(out)]) == 0
    assert main(["analyse", str(out)]) == 1  # no questions were asked


def test_own_prompts(tmp_path: Path, folder: Path) -> None:
    rows = [
        {
            "term": "alt text",
            "task": "recognition",
            "template": "Alternative text is:",
            "choices": ["an image", "a word for it"],
            "answer_idx": 1,
            "prompt_id": "r1",
        },
        {"term": "alt text", "task": "generation", "template": "Nothing of the kind", "prompt_id": "g1"},
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    experiment = _study(tmp_path, folder, terms=[], prompts="own.jsonl")
    assert _run(experiment, tmp_path / "out") == 0
    binding = Store(tmp_path / "out").read("binding").query("step == 0").set_index("prompt")
    assert pd.isna(binding.loc["alt text/r1", "reason"])
    absent = binding.loc["alt text/g1"]
    assert absent["reason"] == "absent"
    assert pd.isna(absent["eb_star"])  # missing, with its reason, and never 0
    assert binding.loc["alt text/r1", "null_reason"].endswith("30 needed")
    assert pd.isna(binding.loc["alt text/r1", "percentile"])
    assert read_jsonl(tmp_path / "own.jsonl")[0].aliases == ("alternative text",)


def test_prompt_longer_than_the_context(
    tmp_path: Path, words: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    short = models.save(tmp_path / "short", words, max_position_embeddings=40)
    assert _run(_study(tmp_path, short), tmp_path / "out") == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert "more than the 40 of the context" in err[-1]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def test_interrupt_keeps_what_is_done(tmp_path: Path, folder: Path) -> None:
    for step in range(20, 60, 10):
        shutil.copytree(folder / "checkpoint-10", folder / f"checkpoint-{step}")
    out, experiment = tmp_path / "out", _study(tmp_path, folder)
    # A test runner in the background is started with SIGINT ignored, and its children inherit that.
    listening = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from bindscope.cli import main; "
        f"sys.exit(main(['run', {experiment!r}, '--out', {str(out)!r}, '--accept-flags']))"
    )
    command = [sys.executable, "-c", listening]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=_environment())
    deadline = time.monotonic() + 120
    while len(_shards(out)) < len(TABLES) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1].startswith("bindscope: interrupted")
    assert "Traceback" not in err
    kept = _shards(out)
    assert len(TABLES) <= len(kept) < 6 * len(TABLES)
    assert main(["run", experiment, "--out", str(out), "--accept-flags"]) == 0
    after = _shards(out)
    assert {k: v for k, v in after.items() if k in kept} == kept
    assert len(after) == 6 * len(TABLES)


def test_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, folder: Path) -> None:
    """A real write failure: the process may not write files beyond 20 kB, and shards are larger."""
    out, experiment = tmp_path / "out", _study(tmp_path, folder)
    limited = (
        "import resource, signal, sys; from bindscope.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        f"sys.exit(main(['run', {experiment!r}, '--out', {str(out)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited], capture_output=True, text=True, env=_environment(), check=False
    )
    assert done.returncode == 1, done.stderr
    assert "cannot write" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(out.rglob("*.tmp"))
    assert _run(experiment, out) == 0
