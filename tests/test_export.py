"""What other programs are given: lm-evaluation-harness its tasks, datasets a dataset, DuckDB and pandas the results.

lm-eval, datasets and DuckDB themselves are run where they are installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bindscope import experiment as experiments
from bindscope.cli import main
from bindscope.export import export
from bindscope.export.columns import COLUMNS
from bindscope.export.results import PROVENANCE, with_checkpoint
from bindscope.prompts.jsonl import read_jsonl, write_jsonl
from bindscope.prompts.spans import continuation, encode
from bindscope.records import Prompt
from bindscope.schema import markdown, table_of
from bindscope.store import Store
from stores import Invention

ROOT = Path(__file__).parents[1]
#: What template engines, line readers and guessers of types stumble over.
ODD = (
    Prompt("alt text/1", "alt text", "{{ alt text }} {% raw %} {0} is", "recognition", (), "k", ("{a}", "{{ b }}"), 1,
           format="cloze"),
    Prompt("alt text/2", "alt text", "Alt text:\nA) 1990-01-01\u2028é\u0085\nAnswer:", "recognition", (), "1990-01-01",
           ("1990-01-01", "2020-05-05"), 0, format="listed"),
    Prompt("alt text/3", "alt text", "alt text 12", "recognition", ("alternative text",), "", ("12", "null", "[]"), 2,
           format="cloze"),
)  # fmt: skip


def _study(folder: Path, text: str) -> str:
    (folder / "s.yaml").write_text(f"name: s\nsuites: tiny\n{text}\n", encoding="utf-8")
    return str(folder / "s.yaml")


@pytest.fixture
def odd(tmp_path: Path) -> str:
    write_jsonl(ODD, tmp_path / "odd.jsonl")
    return _study(tmp_path, "prompts: odd.jsonl")


def _tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """Task name -> its YAML, for the tasks of the group."""
    read = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in folder.glob("*.yaml")]
    (group,) = [content for content in read if "group" in content]
    tasks = {content["task"]: content for content in read if "group" not in content}
    assert sorted(group["task"]) == sorted(tasks)
    return tasks


def _docs(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The documents of a task, by the fields that the YAML names."""
    assert task["dataset_path"] == "parquet"
    rows = pq.read_table(task["dataset_kwargs"]["data_files"][task["test_split"]]).to_pylist()
    fields = {"text": task["doc_to_text"], "choices": task["doc_to_choice"], "gold": task["doc_to_target"]}
    return [{name: row[column] for name, column in fields.items()} | {"row": row} for row in rows]


def _back(rows: list[dict[str, Any]], folder: Path) -> tuple[Prompt, ...]:
    """Rows of a table as the lines of a prompt file, read again."""
    path = folder / "back.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return read_jsonl(path)


def test_every_form_of_the_questions_is_a_task(tmp_path: Path) -> None:
    export("canonical-41", "lm-eval", tmp_path / "out")
    tasks = _tasks(tmp_path / "out")
    sizes = {name.removeprefix("bindscope_canonical-41_"): len(_docs(task)) for name, task in tasks.items()}
    assert sizes == {"listed_rotated": 820, "listed_spread": 205, "listed_given": 205, "cloze": 205}
    given = _docs(tasks["bindscope_canonical-41_listed_given"])
    assert {doc["gold"] for doc in given} == {0}
    rotated = _docs(tasks["bindscope_canonical-41_listed_rotated"])
    assert np.bincount([doc["gold"] for doc in rotated]).tolist() == [205] * 4
    for doc in rotated:
        assert doc["text"].splitlines()[1 + doc["gold"]].endswith(f") {doc['choices'][doc['gold']]}")
    cloze = _docs(tasks["bindscope_canonical-41_cloze"])
    assert not any(choice in doc["text"] for doc in cloze for choice in doc["choices"])


def test_questions_are_those_of_the_study(tmp_path: Path) -> None:
    for name, form in (
        ("smollm2", "listed_rotated"),
        ("smollm2-published", "listed_given"),
        ("smollm2-cloze", "cloze"),
    ):
        export(name, "lm-eval", tmp_path / name)
        asked = [p for p in experiments.load(name).build_prompts() if p.task == "recognition"]
        docs = _docs(_tasks(tmp_path / name)[f"bindscope_{name}_{form}"])
        assert [(d["text"], tuple(d["choices"]), d["gold"]) for d in docs] == [
            (p.text, p.choices, p.answer) for p in asked
        ]
        assert _back([doc["row"] for doc in docs], tmp_path) == tuple(asked)


def _same_tokens(words: PreTrainedTokenizerBase, folder: Path) -> int:
    """Tokens that lm-eval scores (those of prompt + delimiter + choice beyond the prompt's), against ours."""
    seen = 0
    for task in _tasks(folder).values():
        for doc in _docs(task):
            alone = encode(words, doc["text"])
            for choice in doc["choices"]:
                whole = words.encode(doc["text"] + task["target_delimiter"] + choice)
                assert tuple(whole[len(words.encode(doc["text"])) :]) == continuation(words, alone, choice)
                seen += 1
    return seen


def test_the_same_tokens_are_scored(tmp_path: Path, real_tokenizer: PreTrainedTokenizerBase) -> None:
    export("lifecycle-9", "lm-eval", tmp_path / "out")
    assert _same_tokens(real_tokenizer, tmp_path / "out") == 45 * 4 * (4 + 1 + 1 + 1)


def test_the_same_tokens_are_scored_under_every_kind_of_tokenizer(
    tmp_path: Path, made_tokenizer: PreTrainedTokenizerBase
) -> None:
    export(_study(tmp_path, "terms: pilot-3"), "lm-eval", tmp_path / "out")
    assert _same_tokens(made_tokenizer, tmp_path / "out") == 15 * 4 * (4 + 1 + 1 + 1)


def test_the_same_tokens_of_odd_texts(tmp_path: Path, odd: str, words: PreTrainedTokenizerFast) -> None:
    export(odd, "lm-eval", tmp_path / "out")
    assert _same_tokens(words, tmp_path / "out") == 7


def test_odd_texts_arrive_as_they_are(tmp_path: Path, odd: str) -> None:
    export(odd, "lm-eval", tmp_path / "out")
    tasks = _tasks(tmp_path / "out")
    assert sorted(tasks) == ["bindscope_s_cloze", "bindscope_s_listed"]
    found = [doc["row"] for task in tasks.values() for doc in _docs(task)]
    assert sorted(_back(found, tmp_path), key=lambda p: p.id) == list(ODD)
    assert all(field in found[0] for field in ("template", "choices", "answer_idx"))  # columns, not Jinja


def test_a_question_that_ends_in_white_space_is_refused(tmp_path: Path) -> None:
    bad = Prompt("alt text/1", "alt text", "Alt text is ", "recognition", (), "k", ("a", "b"), 0, format="cloze")
    write_jsonl([bad], tmp_path / "p.jsonl")
    assert main(["export", _study(tmp_path, "prompts: p.jsonl"), "--to", "lm-eval", "--out", str(tmp_path / "o")]) == 2
    assert not (tmp_path / "o").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("which", "bos"), [("terms", "default"), ("terms", "on"), ("odd", "default")])
def test_lm_eval_gives_our_numbers(
    tmp_path: Path, odd: str, suite_folder: Path, which: str, bos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = pytest.importorskip("lm_eval", reason="lm-eval is not installed").simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = odd if which == "odd" else _study(tmp_path, "terms: [skip link, alt text, screen reader]")
    text = Path(source).read_text().replace("suites: tiny", f'suites: {suite_folder}@10\nbos: "{bos}"')
    Path(source).write_text(text)
    assert main(["run", source, "--out", str(tmp_path / "run")]) == 0
    ours = Store(tmp_path / "run", create=False).read("recognition").set_index("prompt")
    export(source, "lm-eval", tmp_path / "tasks")
    model, words = str(suite_folder / "checkpoint-10"), str(suite_folder)
    front = {"add_bos_token": True} if bos == "on" else {}
    found = evaluator(
        HFLM(pretrained=model, tokenizer=words, dtype="float32", batch_size=4, device="cpu", **front),
        tasks=sorted(_tasks(tmp_path / "tasks") if which == "odd" else ["bindscope_s_listed_rotated"]),
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
    )
    samples = [sample for task in found["samples"].values() for sample in task]
    assert len(samples) == len(ours)
    for sample in samples:
        row = ours.loc[f"{sample['doc']['term']}/{sample['doc']['prompt_id']}"]
        assert list(row["choices"]) == sample["doc"]["choices"]
        np.testing.assert_allclose([r[0][0] for r in sample["resps"]], row["logprob"], atol=1e-4)
        assert (sample["acc"], sample["acc_bytes"]) == (row["correct_raw"], row["correct_per_byte"])


@pytest.mark.parametrize("name", ["smollm2", "controls", "odd"])
def test_a_dataset_gives_the_prompts_back(tmp_path: Path, odd: str, name: str) -> None:
    source = odd if name == "odd" else name
    card, *files = export(source, "dataset", tmp_path / "out")
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert sorted(_back(rows, tmp_path), key=lambda p: p.id) == sorted(
        experiments.load(source).build_prompts(), key=lambda p: p.id
    )
    assert card.name == "README.md"


@pytest.mark.parametrize("name", ["smollm2", "controls", "odd"])
def test_the_card_says_what_the_files_hold(tmp_path: Path, odd: str, name: str) -> None:
    card, *files = export(odd if name == "odd" else name, "dataset", tmp_path / "out")
    _, front, text = card.read_text(encoding="utf-8").split("---\n", 2)
    said = yaml.safe_load(front)
    assert said.get("license") == (None if name == "odd" else "mit")  # no licence is claimed for texts of others
    named = [config["config_name"] for config in said["configs"]]
    assert [path.stem for path in files] == named == [info["config_name"] for info in said["dataset_info"]]
    for config, info in zip(said["configs"], said["dataset_info"], strict=True):
        (data,) = config["data_files"]
        table = pq.read_table(card.parent / data["path"])
        assert [feature["name"] for feature in info["features"]] == table.column_names
        assert f"{table.num_rows} rows" in text
        frame = pd.read_parquet(card.parent / data["path"])
        assert set(frame["task"]) == {config["config_name"]}
        for column in COLUMNS[config["config_name"]]:
            assert f"| `{column.name}` |" in text


@pytest.mark.filterwarnings("ignore")
def test_datasets_loads_every_table(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    card, *files = export("smollm2", "dataset", tmp_path / "out")
    for path in files:
        found = datasets.load_dataset(str(card.parent), path.stem, split="test", cache_dir=str(tmp_path / "cache"))
        assert list(found) == pq.read_table(path).to_pylist()
        assert found.features == datasets.Features.from_arrow_schema(pq.read_schema(path))


@pytest.fixture
def results(tmp_path: Path) -> tuple[Store, dict[str, Path]]:
    """An invented run, and its tables as files."""
    store = Invention(tmp_path / "run", suites=2, steps=2).store
    files = export(str(store.root), "parquet", tmp_path / "tables")
    return store, {path.stem: path for path in files}


def test_tables_are_those_of_the_store(results: tuple[Store, dict[str, Path]]) -> None:
    store, files = results
    held = {table.name: store.read(table.name) for table in store.tables()}
    assert {"prompts", "eb_star", "previous_token", "recognition", "generation", "ablation"} <= held.keys()
    assert not any(frame.empty for frame in held.values())
    assert sorted(files) == sorted([*held, "provenance"])
    for name in files.keys() - {"provenance"}:
        assert pd.read_parquet(files[name]).to_json() == held[name].to_json()


def test_types_do_not_follow_the_values(results: tuple[Store, dict[str, Path]]) -> None:
    """A column that is missing throughout, or holds empty lists only, has the type that it has elsewhere."""
    store, files = results
    assert store.read("generation")["seed"].isna().all()
    shards = [store.path(u.checkpoint, "generation", u.keys["generation"]) for u in store.read_run().units]
    for path in (*shards, *files.values()):
        assert "null" not in str([field.type for field in pq.read_schema(path)])
    assert str(pq.read_schema(files["generation"]).field("seed").type) == "int64"


def test_each_file_says_what_its_columns_mean(results: tuple[Store, dict[str, Path]]) -> None:
    store, files = results
    declared = {table.name: with_checkpoint(table) for table in store.tables()} | {"provenance": PROVENANCE}
    for name, path in files.items():
        schema = pq.read_schema(path)
        assert table_of(json.loads(schema.metadata[b"bindscope"])) == declared[name]
        for column in declared[name].columns:
            assert schema.field(column.name).metadata[b"description"].decode() == column.description


def test_a_row_for_each_shard_says_how_it_came_to_be(results: tuple[Store, dict[str, Path]]) -> None:
    store, files = results
    made = pd.read_parquet(files["provenance"])
    keys = [(u.checkpoint.suite, table, key) for u in store.read_run().units for table, key in u.keys.items()]
    assert list(zip(made["suite"], made["table"], made["key"], strict=True)) == keys
    assert set(made["fingerprint"]) == {"0123456789abcdef0123"}
    assert set(made["commit"]) == {"commit"}
    assert json.loads(made["versions"][0]) == {"bindscope": "0"}
    assert list(made) == [column.name for column in PROVENANCE.columns]
    page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    assert markdown([PROVENANCE]).strip() in page


def test_results_of_another_run_are_left_out(tmp_path: Path) -> None:
    store = Invention(tmp_path / "run").store
    run = store.read_run()
    store.write_run(type(run)(run.experiment, run.units[:1]))
    export(str(store.root), "parquet", tmp_path / "tables")
    assert pd.read_parquet(tmp_path / "tables" / "eb_star.parquet")["step"].unique().tolist() == [0]


def test_duckdb_reads_them(results: tuple[Store, dict[str, Path]]) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    store, files = results
    prompts, binding, made = files["prompts"], files["eb_star"], files["provenance"]
    found = duckdb.sql(
        f"select b.suite, b.step, p.fingerprint, avg(b.eb_star) eb from '{binding}' b "
        f"join '{prompts}' t using (suite, revision, prompt) join '{made}' p using (suite, revision) "
        "where p.\"table\" = 'eb_star' and t.\"group\" = 'real' group by all order by all"
    ).df()
    held = store.read("binding").query("group == 'real'").groupby(["suite", "step"])["eb_star"].mean()
    np.testing.assert_allclose(found["eb"], held)
    choices = duckdb.sql(f"select unnest(choices) c from '{files['recognition']}'").df()
    assert sorted(choices["c"]) == sorted(store.read("recognition")["choices"].explode())
    assert duckdb.sql(f"from '{files['generation']}' where seed is not null").fetchall() == []


@pytest.mark.parametrize(
    ("source", "to", "message"),
    [
        ("tinny", "dataset", "did you mean tiny"),
        ("tinny", "lm-eval", "did you mean tiny"),
        ("tiny", "parquet", "not a results folder"),
        ("absent", "parquet", "not a results folder"),
        ("bare.yaml", "lm-eval", "asks no recognition questions"),
        ("tiny", "csv", "'lm-eval', 'dataset', 'parquet'"),
    ],
)
def test_wrong_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, to: str, message: str) -> None:
    if source == "bare.yaml":
        (tmp_path / "terms.yaml").write_text("name: mine\nterms: [cast iron]\n")
        source = _study(tmp_path, "terms: terms.yaml")
    assert main(["export", source, "--to", to, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert (shown.out, len(shown.err.splitlines())) == ("", 1)
    assert message in shown.err
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for place, message in (("full", "not an empty folder"), ("full/mine.txt", "not an empty folder"),
                           ("full/mine.txt/out", "cannot write")):  # fmt: skip
        for source, to in (("tiny", "dataset"), ("tiny", "lm-eval")):
            assert main(["export", source, "--to", to, "--out", str(tmp_path / place)]) == 2
            shown = capsys.readouterr()
            assert (shown.out, len(shown.err.splitlines())) == ("", 1)
            assert message in shown.err
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert len(list((tmp_path / "full").iterdir())) == 1


def test_a_damaged_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Invention(tmp_path / "run").store
    unit = store.read_run().units[0]
    store.path(unit.checkpoint, "eb_star", unit.keys["eb_star"]).unlink()
    assert main(["export", str(store.root), "--to", "parquet", "--out", str(tmp_path / "out")]) == 2
    assert "is missing; run `bindscope run` again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
