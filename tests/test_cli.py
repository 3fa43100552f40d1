"""The command line: what it prints, its exit codes, and one clear line for a wrong request."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import bindscope
import models
import tokenizers_made
from bindscope.cli import main
from bindscope.prompts.build import frames
from bindscope.prompts.spans import encode, locate
from conftest import shared


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, words: PreTrainedTokenizerFast) -> Path:
    return models.save(tmp_path_factory.mktemp("one") / "model", words)


def _fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a wrong request: exit code 2, one line on stderr, nothing on stdout."""
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.err.startswith("bindscope: ")
    return shown.err


def test_wrong_requests(capsys: pytest.CaptureFixture[str], tmp_path: Path, model_folder: Path) -> None:
    out, model = str(tmp_path / "out"), str(model_folder)
    assert "did you mean tiny" in _fails(capsys, "run", "tinny", "--out", out)
    assert "cannot read" in _fails(capsys, "run", str(tmp_path / "no.yaml"), "--out", out)
    assert "did you mean pythia-1b" in _fails(capsys, "measure", "pythia-1", "alt text")
    assert "did you mean set-A" in _fails(capsys, "measure", model, "set-a")
    assert "does not occur in the prompt" in _fails(capsys, "measure", model, "alt text", "--prompt", "no such thing")
    assert "the prompt is empty" in _fails(capsys, "measure", model, "alt text", "--prompt", " ")
    assert "revision" in _fails(capsys, "measure", "tiny", "alt text", "--revision", "checkpoint-77")
    assert "neither a model" in _fails(capsys, "measure", str(tmp_path), "alt text")
    assert "Missing argument" in _fails(capsys, "measure")
    assert "No such option" in _fails(capsys, "measure", model, "alt text", "--color")
    assert "tokenizer.json" in _fails(capsys, "audit", str(tmp_path / "tokenizer.json"))
    assert "not a results folder" in _fails(capsys, "report", str(tmp_path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        ("suites: [tiny]\nterms: [set-A]", "name"),
        ("name: x\nsuites: [tiny]\nterms: [set-Z]", "unknown term set 'set-Z'"),
        ("name: x\nsuites: [pythia-160]\nterms: [set-A]", "did you mean pythia-160m"),
        ("name: x\nsuites: []\nterms: [set-A]", "suites"),
        ("name: x\nsuites: [tiny]", "`terms` or `prompts`"),
        ("name: x\nsuites: [tiny]\nterms: [set-A]\nformat: essay", "'listed' or 'cloze', got 'essay'"),
        ("name: x\nsuites: [tiny]\nterms: [set-A]\ndtype: float8", "float8"),
        ("name: x\nsuites: [tiny]\nprompts: absent.jsonl", "absent.jsonl"),
        ("name: [", "cannot read"),
        ("- a", "x.yaml"),
    ],
)
def test_wrong_studies(capsys: pytest.CaptureFixture[str], tmp_path: Path, experiment: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(experiment)
    assert message in _fails(capsys, "run", str(path), "--out", str(tmp_path / "out"))


def test_an_unwritable_folder_is_a_wrong_request(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in _fails(capsys, "run", "tiny", "--out", str(tmp_path / "file" / "run"))


def test_measure_json_equals_the_definition(
    capsys: pytest.CaptureFixture[str], model_folder: Path, words: PreTrainedTokenizerFast
) -> None:
    assert main(["measure", str(model_folder), "screen reader", "blue umbrella", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["term"] for t in found["terms"]] == ["screen reader", "blue umbrella"]
    model = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager").eval()
    for item in found["terms"]:
        stars, maps = [], []
        for carrier in frames()["carriers"]:
            encoded = encode(words, carrier.format(term=item["term"]), "default")
            s = locate(encoded, item["term"]).tokens
            with torch.inference_mode():
                A = torch.stack(model(torch.tensor([encoded.ids]), output_attentions=True).attentions)[:, 0].numpy()
            bsi = np.mean([A[:, :, i, j] for i in s for j in s if i > j], 0)
            stars.append(float((bsi.max(1) - bsi.mean(1)).max()))
            maps.append(bsi)
        assert item["eb_star"] == pytest.approx(np.mean(stars), abs=1e-5)
        assert item["k"] == len(item["tokens"]) == len(s)
        assert item["excess"] == pytest.approx(item["eb_star"] - item["null_mean"])
        order = np.mean(maps, 0).ravel().argsort()[::-1][:5]
        assert [(h["layer"], h["head"]) for h in item["heads"]] == [(int(i) // 6, int(i) % 6) for i in order]
        assert item["null_n"] >= 30


def test_measure_prints_what_a_reader_needs(capsys: pytest.CaptureFixture[str], model_folder: Path) -> None:
    assert main(["measure", str(model_folder), "alt text", "--prompt", "Every image has alt text."]) == 0
    shown = capsys.readouterr().out
    for part in ("alt text", "EB*", "EB*_mass", "null", "excess", "percentile", "best layer", "previous-token"):
        assert part in shown


def test_measure_says_why_a_term_has_no_value(capsys: pytest.CaptureFixture[str], model_folder: Path) -> None:
    asked = ["the", "screen reader"]
    assert (
        main(["measure", str(model_folder), *asked, "--prompt", "what is the page of a screen reader", "--json"]) == 0
    )
    without, whole = json.loads(capsys.readouterr().out)["terms"]
    assert (without["eb_star"], without["reason"]) == (None, "one token")
    assert (whole["prompts"], whole["reason"]) == (1, None)
    assert main(["measure", str(model_folder), *asked]) == 0
    assert "one token" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["neox", "gpt2", "olmo", "llama3", "qwen25"])
def test_audit_of_real_tokenizers(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "audit.csv"
    file = shared("tokenizers", name, "tokenizer.json")
    assert main(["audit", str(file), "--terms", "pilot-3", "--terms", "set-A", "--out", str(out)]) == 0
    rows = {row["term"]: row for row in csv.DictReader(out.read_text(encoding="utf-8").splitlines())}
    assert len(rows) == 9
    for term, row in rows.items():
        ids, strings = json.loads(row["prompt_ids"]), json.loads(row["prompt_strings"])
        assert "".join(strings).lower() == f" {term}"
        assert int(row["prompt_n"]) == len(ids) == len(strings)
        assert row["valid"] == str(len(ids) >= 2)
    capsys.readouterr()
    assert main(["audit", str(file), "--terms", "pilot-3"]) == 0
    assert "screen" in capsys.readouterr().out


@pytest.mark.parametrize("kind", tokenizers_made.KINDS)
def test_audit_of_every_kind_of_tokenizer(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "audit.csv", tmp_path / "tokenizer.json"
    tokenizers_made.made(kind).backend_tokenizer.save(str(file))
    assert main(["audit", str(file), "--terms", "set-A", "--out", str(out)]) == 0
    rows = {row["term"]: row for row in csv.DictReader(out.read_text(encoding="utf-8").splitlines())}
    assert len(rows) == 9
    for term, row in rows.items():
        ids, strings = json.loads(row["prompt_ids"]), json.loads(row["prompt_strings"])
        assert "".join(strings).replace(" ", "").replace("#", "").lower() == term.replace(" ", "")
        assert strings[0].strip()  # a space before the term is no token of it
        assert int(row["prompt_n"]) == len(ids) == len(strings)
        assert row["valid"] == str(len(ids) >= 2)
    capsys.readouterr()
    assert main(["audit", str(file), "--terms", "pilot-3"]) == 0
    lines = capsys.readouterr().out.replace(str(file), "").splitlines()
    assert max(len(line) for line in lines if not line.startswith("Warning: ")) <= 80


def test_audit_gives_the_published_ids(tmp_path: Path) -> None:
    out = tmp_path / "audit.csv"
    published = pd.read_csv(shared("published", "pilot_tokenization.csv"))
    main(["audit", str(shared("tokenizers", "neox", "tokenizer.json")), "--terms", "pilot-3", "--out", str(out)])
    ours = pd.read_csv(out).set_index("term")
    assert len(published) == 9
    for row in published.to_dict("records"):
        assert json.loads(ours.loc[row["term"], "bare_ids"]) == json.loads(row["token_ids"])
        assert json.loads(ours.loc[row["term"], "bare_strings"]) == json.loads(row["token_strings"])
        assert ours.loc[row["term"], "bare_n"] == row["n_tokens"]


def test_audit_of_a_model_folder_and_a_one_token_term(model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    (tmp_path / "own.yaml").write_text("name: own\nterms: [zzz qqq, the]")
    named = ["--terms", "screen reader", "--terms", str(tmp_path / "own.yaml")]
    assert main(["audit", str(model_folder), *named, "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert table["valid"].tolist() == [True, True, False]
    assert table["reason"].fillna("").tolist() == ["", "", "one token"]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for part in ("torch", "device", "attention hook", "tiny", "hub", "GiB free"):
        assert part in shown


def test_suites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites"]) == 0
    assert "pythia-160m" in capsys.readouterr().out


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == bindscope.__version__
    assert main(["--help"]) == 0
    assert "measure" in capsys.readouterr().out


def test_help_and_import_load_no_torch() -> None:
    code = (
        "import sys, bindscope, bindscope.cli; bindscope.cli.main(['--help']); "
        "print('torch' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False False")
