"""Wrong numbers that were once delivered, or nearly: each is now refused, or right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import measuring
import models
from bindscope.checkpoints.load import Loaded, load
from bindscope.checkpoints.suites import from_folder, suite
from bindscope.checkpoints.tokenizer import load_tokenizer
from bindscope.cli import main
from bindscope.engine.selfcheck import self_check
from bindscope.errors import ModelError, PromptError, UnknownName, UnsupportedArchitecture
from bindscope.prompts.audit import audit
from bindscope.prompts.build import build, frames
from bindscope.prompts.jsonl import read_jsonl
from bindscope.prompts.spans import encode
from bindscope.quick import measure_terms, resolve
from bindscope.records import CheckpointRef, Prompt, Protocol, Question, Term
from bindscope.report.files import write_report
from bindscope.store import Store
from bindscope.tables.run import RunTables


def _study(tmp_path: Path, *suites: Path, **changes: object) -> list[str]:
    experiment = {"name": "s", "suites": [str(s) for s in suites], "terms": ["alt text"], "bos": "on"} | changes
    (tmp_path / "s.yaml").write_text(json.dumps(experiment))
    return ["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]


def _prompts(*texts: str, term: str = "alt text") -> list[Prompt]:
    return [Prompt(f"{term}/{i}", term, text, "generation") for i, text in enumerate(texts)]


def test_two_suites_of_one_name_are_not_averaged(
    tmp_path: Path, suite_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (Path(shutil.copytree(suite_folder, tmp_path / x / "run")) for x in "ab")
    assert main(_study(tmp_path, a, b)) == 2
    assert "two suites have the name 'run'" in capsys.readouterr().err
    assert main(_study(tmp_path, a, a)) == 0  # the same one twice is one
    assert "2 measured" in capsys.readouterr().out
    assert Store(tmp_path / "out").read("binding").groupby(["step", "prompt"]).size().eq(1).all()


def test_tokenizer_json_holds_whatever_class_the_model_type_suggests(
    tmp_path: Path, words: PreTrainedTokenizerFast
) -> None:
    """transformers rebuilds a Qwen2 tokenizer around the vocabulary and drops the file's own normalizer."""
    own = models.tokenizer(["a screen reader reads"] * 3)
    own.backend_tokenizer.normalizer = normalizers.Lowercase()
    own.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    folder = models.save(tmp_path / "m", own, architecture="qwen2")
    text = "A Screen Reader 2024"
    expected = tuple(own.backend_tokenizer.encode(text, add_special_tokens=False).ids)
    found = load_tokenizer(folder, "m")
    assert encode(found, text, "off").ids == expected
    assert found.bos_token == own.bos_token
    term = Term("screen reader 2024")
    alone = audit(found, "m", [term]).iloc[0]
    loaded = load(CheckpointRef("m", str(folder)))
    results = measuring.tables(loaded, _prompts("In this text, screen reader 2024 is a term.", term=term.name))
    assert results["prompts"]["k"].tolist() == [alone["prompt_n"]]  # audit and measurement agree


def test_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    models.save(tmp_path / "m", None)
    with pytest.raises(ModelError, match="no tokenizer files"):
        load(CheckpointRef("m", str(tmp_path / "m")))


def test_tokenizer_with_more_tokens_than_the_model_is_named(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    folder = models.save(tmp_path / "m", None)  # 64 embeddings
    words.save_pretrained(folder)
    with pytest.raises(ModelError, match="embeds 64 tokens only"):
        measuring.tables(load(CheckpointRef("m", str(folder))), _prompts("About alt text."))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 2}, {"attention_bias": False}])
def test_weights_that_the_config_does_not_use_are_named(
    tmp_path: Path, words: PreTrainedTokenizerFast, change: dict[str, object]
) -> None:
    folder = models.save(tmp_path / "m", words)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match="no place for"):
        load(CheckpointRef("m", str(folder)))


def test_state_that_leaks_between_packed_choices_is_noticed_in_bfloat16() -> None:
    """Falcon-H1 runs a recurrent layer beside attention in every layer: packed choices feel one another."""
    config = AutoConfig.for_model(
        "falcon_h1", vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        intermediate_size=64, mamba_d_ssm=48, mamba_n_heads=6, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
        pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    with pytest.raises(UnsupportedArchitecture, match=r"FalconH1.*(cache|score)"):
        self_check(model)


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "qwen2", "gemma2-softcap", "gpt_oss-sinks", "opt", "olmo2"])
def test_packing_is_kept_in_bfloat16_where_it_is_right(name: str) -> None:
    assert self_check(models.build(*models.ARCHITECTURES[name]).to(torch.bfloat16)).packed


def test_long_rope_stops_where_the_frequencies_switch(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    kind, config = models.ARCHITECTURES["phi3-longrope"]
    model = models.build(kind, config | {"vocab_size": len(words)})
    loaded = Loaded(model, words, CheckpointRef("m", "m"), None, "off")
    assert loaded.context == 64
    with pytest.raises(PromptError, match="more than the 64"):
        measuring.tables(loaded, _prompts("alt text " + "and so on " * 40))


def test_sparse_index_attention_is_refused() -> None:
    model = models.build(*models.ARCHITECTURES["llama"])
    model.config.index_topk = 8
    with pytest.raises(UnsupportedArchitecture, match="index_topk"):
        self_check(model)


def test_no_null_window_holds_a_special_token_or_is_counted_twice(
    tmp_path: Path, words: PreTrainedTokenizerFast
) -> None:
    folder = models.save(tmp_path / "m", words)
    loaded = load(CheckpointRef("m", str(folder)))
    loaded.tokenizer.add_special_tokens({"additional_special_tokens": ["<|mark|>"]})
    loaded.model.resize_token_embeddings(len(loaded.tokenizer))
    text = "The page has<|mark|> alt text and the rest of it is plain"

    def null_windows(*texts: str) -> pd.DataFrame:
        return measuring.tables(loaded, _prompts(*texts), Protocol(bos="on"))["eb_star_windows"]

    once = null_windows(text)
    ids = encode(loaded.tokenizer, text, loaded.bos).ids
    mark = loaded.tokenizer.convert_tokens_to_ids("<|mark|>")
    assert mark in ids
    starts = once["start"].tolist()
    assert starts
    assert all(mark not in ids[s : s + k] for s, k in zip(starts, once["k"], strict=True))
    assert null_windows(text, text, text)["start"].tolist() == starts
    assert len(null_windows(text, text + " words and more")) < 2 * len(starts) + 4


def test_report_lists_every_way_in_which_numbers_were_made(tmp_path: Path, suite_folder: Path) -> None:
    own = Path(shutil.copytree(suite_folder, tmp_path / "own"))
    experiment = {
        "name": "s",
        "suites": ["tiny@0,6000", str(own)],
        "terms": ["alt text"],
    }  # BOS on, and the tokenizer's default
    (tmp_path / "s.yaml").write_text(json.dumps(experiment))
    assert main(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "BOS token: differs" in page
    assert "on (2 checkpoints of tiny)" in page
    assert "default (2 checkpoints of own)" in page


def test_a_term_with_a_slash_is_averaged_over_its_own_prompts(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    loaded = load(CheckpointRef("m", str(models.save(tmp_path / "m", words))))
    (found,) = measure_terms(loaded, [Term("plain/text file")], "Save it as a plain/text file today.")
    assert found.prompts == 1


def test_rotations_without_their_first_are_named(tmp_path: Path) -> None:
    row = {"term": "alt text", "task": "recognition", "template": "Alt text is", "choices": ["a", "b"], "answer_idx": 0}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row | {"prompt_id": "r", "rotation": 1, "question": "q"}) + "\n")
    with pytest.raises(PromptError, match="rotation 0 is not in the file"):
        read_jsonl(path)
    path.write_text(json.dumps(row | {"prompt_id": "r", "rotation": True, "question": "q"}) + "\n")
    with pytest.raises(PromptError, match=r"rotation: .*valid integer"):
        read_jsonl(path)


def test_more_choices_than_letters_are_named() -> None:
    question = Question("k", "A screen reader is", "right", tuple(f"wrong {i}" for i in range(26)))
    with pytest.raises(PromptError, match="27 choices"):
        build([Term("screen reader", questions=(question,))])
    eleven = Question("k", "A screen reader is", "right", tuple(f"wrong {i}" for i in range(10)))
    assert all("K) " in p.text for p in build([Term("screen reader", questions=(eleven,))]))


def test_a_step_that_is_there_twice_is_named(tmp_path: Path, suite_folder: Path) -> None:
    folder = Path(shutil.copytree(suite_folder, tmp_path / "s"))
    shutil.copytree(folder / "checkpoint-10", folder / "step10")
    with pytest.raises(ModelError, match="step 10 twice"):
        from_folder(folder)


def test_two_runs_do_not_write_to_one_folder(
    tmp_path: Path, suite_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = _study(tmp_path, suite_folder)
    with Store(tmp_path / "out").lock():
        assert main(command) == 2
    assert "another run is writing" in capsys.readouterr().err
    assert main(command) == 0


def test_null_over_fewer_prompts_than_eb_star_is_said(
    tmp_path: Path, suite_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "term": "alt text",
            "task": "generation",
            "template": f"{'a word and another ' * 3}alt text",
            "prompt_id": "a",
        },
        {"term": "alt text", "task": "generation", "template": "about alternative text", "prompt_id": "b"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(_study(tmp_path, suite_folder, terms=[], prompts="p.jsonl")) == 0
    binding = Store(tmp_path / "out").read("binding")
    assert binding["k"].nunique() > 1
    assert binding.groupby("prompt")["excess"].count().sort_values().tolist() == [0, 2]
    assert "leave out" in capsys.readouterr().out


def test_fingerprint_covers_every_file_that_steers_tokens(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    from bindscope.checkpoints.files import identify

    folder = models.save(tmp_path / "m", words)
    prints = []
    for name in ("tekken.json", "sentencepiece.bpe.model", "x.tiktoken", "tokenizer_config.json"):
        prints.append(identify(CheckpointRef("m", str(folder))).identity.fingerprint)
        (folder / name).write_text("{}")
    assert len({*prints, identify(CheckpointRef("m", str(folder))).identity.fingerprint}) == 5


def test_catalogue_names_stay_unique() -> None:
    assert suite("tiny").name == "tiny"
    assert np.unique([ref.step for ref in suite("tiny").checkpoints]).size == 12


def test_config_of_weights_and_saved_weights_agree(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    """Buffers that old checkpoints store are no reason to refuse one."""
    folder = models.save(tmp_path / "m", words)
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(2)
    tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert load(CheckpointRef("m", str(folder))).layers == 3


def test_measure_takes_any_word_and_any_case(tmp_path: Path, words: PreTrainedTokenizerFast) -> None:
    (term,) = resolve(["Alt  Text"])
    assert term.aliases == ("alternative text",)
    assert resolve(["photosynthesis"])[0].name == "photosynthesis"
    with pytest.raises(UnknownName, match="set-A"):
        resolve(["set-X"])
    with pytest.raises(PromptError, match="empty"):
        resolve([" "])
    loaded = load(CheckpointRef("m", str(models.save(tmp_path / "m", words))))
    (found,) = measure_terms(loaded, [Term("the same")])  # stands in one of the carrier sentences
    assert found.prompts == len(frames()["carriers"]) - 1


def test_audit_looks_where_the_term_was_put(words: PreTrainedTokenizerFast) -> None:
    row = audit(words, "w", [Term("is a term")]).iloc[0]
    assert "".join(row["prompt_strings"]).strip() == "is a term"
    assert audit(words, "w", [Term("the")]).iloc[0]["reason"] == "one token"


def test_bare_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5
    assert main(["-h"]) == 0


def test_doctor_without_a_hub(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert main(["doctor"]) == 0
    assert "not reachable" in capsys.readouterr().out


def test_paths_of_a_study_are_relative_to_it(
    tmp_path: Path, suite_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(suite_folder, tmp_path / "deep" / "checkpoints")
    (tmp_path / "deep" / "s.yaml").write_text("{name: s, suites: checkpoints/, terms: alt text, bos: on}")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "deep/s.yaml", "--out", "out"]) == 0
    assert Store("out").read("binding")["span"].map(lambda s: s[0] > 0).all()  # `on` is read as it is meant


def test_format_and_rotation_belong_to_the_prompt_file(
    tmp_path: Path, suite_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"term": "alt text", "task": "generation", "template": "An alt text is", "prompt_id": "g"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    assert main(_study(tmp_path, suite_folder, terms=[], prompts="p.jsonl", order="rotated")) == 2
    assert "sets order itself; leave this out" in capsys.readouterr().err
    assert main(_study(tmp_path, suite_folder, terms=[], prompts="p.jsonl")) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "as in the prompt file" in page
    assert "Binding without a null" in page  # the reason, where a reader sees it
    assert "30 needed" in page


@pytest.mark.parametrize(
    "line", ['{"term": "a b", "task": "generation", "template": "\\ud800", "prompt_id": "g"}', "[" * 100_000]
)
def test_hostile_lines_are_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(PromptError, match=":1:"):
        read_jsonl(tmp_path / "p.jsonl")


def test_a_full_output_is_one_line(suite_folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bindscope", "suites"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_an_interrupted_run_says_so_on_its_page(tmp_path: Path, suite_folder: Path) -> None:
    assert main(_study(tmp_path, suite_folder)) == 0
    store = Store(tmp_path / "out")
    run = store.read_run()
    store.write_run(replace(run, units=(run.units[0], replace(run.units[1], status="pending", keys={}))))
    page = write_report(RunTables(store), None)[0].read_text()
    assert "Incomplete:" in page
    assert "At the last checkpoint" not in page
