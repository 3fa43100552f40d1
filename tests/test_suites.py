"""The catalogue, suites of a user's own, and the built-in studies of the reference paper."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import models
from bindscope import experiment as experiments
from bindscope.checkpoints.load import load
from bindscope.checkpoints.suites import catalogued, from_folder, one, suite, suites
from bindscope.checkpoints.tokenizer import load_tokenizer
from bindscope.cli import main
from bindscope.errors import BindscopeError, ModelError, RequestError, UnknownName
from bindscope.execute.request import prepare
from bindscope.records import CheckpointRef
from bindscope.store import Store
from loopback import Hub, hub_fixture  # noqa: F401  the fixture `hub`

#: Study -> checkpoints, terms, prompts in the published protocol, prompts in the controlled one.
STUDIES = {
    "pilot": (24, 3, 33, 78),
    "lifecycle-9": (24, 9, 99, 234),
    "robustness-99": (24, 9, 99, 234),
    "controls": (2, 41, 2131, 2746),
    "variability": (6, 3, 33, 78),
    "few-shot-41": (21, 41, 1189, 1804),
    "causal-41": (11, 41, 451, 1066),
    "canonical-41": (81, 41, 451, 1066),
}


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_of_the_paper(name: str) -> None:
    checkpoints, terms, published, controlled = STUDIES[name]
    for protocol, prompts in (("published", published), ("controlled", controlled)):
        experiment = experiments.changed(experiments.load(name), protocol)
        request = prepare(experiment)
        assert len(request.checkpoints) == checkpoints
        assert len({ref for ref, _ in request.checkpoints}) == checkpoints
        assert len(experiment.selected()) == terms
        built = request.prompts
        assert len(built) == prompts
        questions = [p for p in built if p.task == "recognition"]
        assert all(p.answer == 0 for p in questions) == (protocol == "published")
        assert {p.answer for p in questions} == ({0} if protocol == "published" else {0, 1, 2, 3})
    assert experiments.load(name).about


def test_the_canonical_study_asks_what_the_paper_did() -> None:
    built = experiments.changed(experiments.load("canonical-41"), "published").build_prompts()
    assert sum(p.task == "recognition" for p in built) == 205
    assert sum(p.task == "generation" for p in built) == 246
    named = {ref.suite for ref, _ in prepare(experiments.load("canonical-41")).checkpoints}
    assert sum(name.startswith("crfm-gpt2-small-x") for name in named) == 5
    assert len({name.split("-x")[0] for name in named}) == 7


def test_every_row_of_the_catalogue() -> None:
    whole = catalogued()
    assert len({s.name for s in whole}) == len(whole) > 30
    for found in whole:
        assert found.entry is not None
        assert found.entry.parameters
        assert found.entry.licence
        steps = [ref.step for ref in found.checkpoints]
        assert steps == sorted(steps, key=lambda s: (s is not None, s))
        assert all(ref.tokens is None or ref.step is not None for ref in found.checkpoints)
    assert [ref.revision for ref in suite("crfm-gpt2-small-x777").checkpoints][:2] == [
        "checkpoint-0",
        "checkpoint-1000",
    ]
    assert suite("smollm3-3b").checkpoints[0].tokenizer == "HuggingFaceTB/SmolLM3-3B"
    poly = [s for s in whole if s.name.startswith("polypythia")]
    assert len(poly) == 18
    assert all(ref.revision and ref.repo.endswith(s.name[-5:]) for s in poly for ref in s.checkpoints)


def test_tokens_are_those_that_names_and_batches_say() -> None:
    assert suite("pythia-160m").at("step15000").tokens == 15000 * 2097152
    olmo = suite("olmo-1b").checkpoints
    assert (olmo[1].revision, olmo[1].step, olmo[1].tokens) == ("step80000-tokens335B", 80000, 335 * 10**9)
    for ref in suite("olmo-2-1b").checkpoints:  # exact, so that the rounded number in the name must agree
        assert ref.revision == f"stage1-step{ref.step}-tokens{-(-(ref.tokens or 0) // 10**9)}B" or ref.tokens == 0
    assert suite("crfm-gpt2-small-x21").checkpoints[-1].tokens is None
    assert suite("tiny").checkpoints[-1].tokens == 6000 * 1920


def test_one_checkpoint_of_a_run_takes_the_tokenizer_above_it(suite_folder: Path, tmp_path: Path) -> None:
    ref, _ = one(str(suite_folder / "checkpoint-10"))
    assert ref.tokenizer == str(suite_folder.resolve())
    assert (
        load(ref).tokenizer("screen")["input_ids"] == load(one(str(suite_folder))[0]).tokenizer("screen")["input_ids"]
    )
    other = Path(shutil.copytree(suite_folder / "checkpoint-10", tmp_path / "elsewhere" / "checkpoint-10"))
    assert one(str(other))[0].tokenizer is None


def test_a_checkpoint_with_a_tokenizer_of_its_own_uses_it(suite_folder: Path, tmp_path: Path) -> None:
    """Under a parent with another tokenizer too; a parent with vocab.json and merges.txt alone has one."""
    folder = Path(shutil.copytree(suite_folder, tmp_path / "run"))
    own = models.tokenizer(["entirely other words for another vocabulary"], 300)
    own.save_pretrained(folder / "checkpoint-10")
    first, second = from_folder(folder).checkpoints
    assert (first.tokenizer, second.tokenizer) == (str(folder), None)
    assert one(str(folder / "checkpoint-10"))[0].tokenizer is None
    text = "a screen reader"
    assert load_tokenizer(folder / "checkpoint-10", "x")(text)["input_ids"] == own(text)["input_ids"]
    (folder / "tokenizer.json").rename(folder / "kept.json")
    assert from_folder(folder).checkpoints[0].tokenizer is None
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_text("")
    assert from_folder(folder).checkpoints[0].tokenizer == str(folder)


def test_some_checkpoints_of_a_suite(suite_folder: Path) -> None:
    (few,) = suites("pythia-1b@143000,step15000")
    assert [ref.step for ref in few.checkpoints] == [15000, 143000]
    assert [ref.step for ref in suite(f"{suite_folder}@10").checkpoints] == [10]
    assert [ref.revision for ref in suite("org/name@a,b").checkpoints] == ["a", "b"]
    assert one("org/name@a")[0].revision == "a"
    with pytest.raises(UnknownName, match="revision of pythia-1b '7'"):
        suites("pythia-1b@7")
    with pytest.raises(UnknownName, match="did you mean pythia-1b"):
        suites("pythia-1x@0")


@pytest.mark.parametrize(
    ("rows", "line", "message"),
    [
        ("a:\n  repo: org/a\n  revisions: [0, 1]", 3, "the revision 0 is a number"),
        ("a:\n  repo: org/a\n  branch: step\n", 3, "{step}"),
        ("a:\n  repo: org/a\n  branch: s{step}\n  revisions: [5, 0]", 4, "step 0 comes after a later one"),
        ("a:\n  repo: org/a\n  revisions: [x, x]", 3, "'x' is there twice"),
        ("a:\n  repo: org/a\n  revisions: [[x, 1, 2, 3]]", 3, "got ['x', 1, 2, 3]"),
        ("a:\n  repo: org/a\n  revisions: [[x, true]]", 3, "got ['x', True]"),
        ("a:\n  repo: org/a\n  revisions: [[x, -1]]", 3, "got ['x', -1]"),
        ("a:\n  repo: org/a\n  revisions: [[x, 1, .inf]]", 3, "got ['x', 1, inf]"),
        ("a:\n  repo: org/a\n  revisions: [['', 1]]", 3, "got ['', 1]"),
        ("a:\n  repo: org/a\n  revisions: x", 3, "a list"),
        ("{}", 1, "at least 1"),
        ("", 1, "the file must be a mapping (`key: value`), got nothing"),
        ("- a\n- b", 1, "the file must be a mapping (`key: value`), got a list of 2 entries"),
        ("a:\n  repo: org/a\n  licens: MIT", 3, "did you mean 'licence'"),
        ("a:\n  repo: org/a\n  bos: yes please", 3, "'yes please'"),
        ("a:\n  repo: org/a\na:\n  repo: org/b", 3, "'a' occurs twice"),
        ("a: org/a", 1, "a must be a mapping (`key: value`), got 'org/a'"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(tmp_path: Path, rows: str, line: int, message: str) -> None:
    (tmp_path / "s.yaml").write_text(rows)
    with pytest.raises(RequestError) as caught:
        suites(str(tmp_path / "s.yaml"))
    assert f"s.yaml:{line}: " in str(caught.value)
    assert message in str(caught.value)


def test_places_that_a_row_can_name(tmp_path: Path, suite_folder: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"a: {{repo: {suite_folder}, bos: on, step_tokens: 7}}\nb: {{repo: org/b}}")
    folder, hub = suites(str(tmp_path / "s.yaml"))
    assert [(ref.suite, ref.step, ref.tokens) for ref in folder.checkpoints] == [("a", 0, 0), ("a", 10, 70)]
    assert folder.bos == "on"
    assert hub.checkpoints == (CheckpointRef("b", "org/b"),)
    with pytest.raises(RequestError, match=r"2 suites \(a, b\)"):
        suite(str(tmp_path / "s.yaml"))
    for place in ("nowhere", "./org/a", "package:data/tiny", "gguf:os/x"):
        (tmp_path / "t.yaml").write_text(f"a: {{repo: '{place}'}}")
        with pytest.raises(ModelError, match="there is no folder"):
            suites(str(tmp_path / "t.yaml"))


def test_a_folder_that_is_missing_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("nofolder/checkpoint-400", "runs/first"):
        with pytest.raises(ModelError, match=f"there is no folder {tmp_path}/{name}"):
            suite(name)


def test_a_study_on_suites_of_ones_own(
    hub: Hub, tmp_path: Path, words: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of a file beside the study: a repository whose steps are known, one whose steps are not, a folder."""
    first, second = (models.save(tmp_path / name, words, seed=n) for n, name in enumerate(("x", "y")))
    hub.add("lab/a", {"at-5": first, "at-9": second})
    hub.add("lab/b", {"early": second, "late": first})
    folder = tmp_path / "study"
    models.save(folder / "mine" / "checkpoint-3", words, seed=5)
    (folder / "own.yaml").write_text(
        "a: {repo: lab/a, branch: 'at-{step}', step_tokens: 100, revisions: [5, 9]}\n"
        "b: {repo: lab/b, revisions: [early, late], bos: on}\n"
        "c: {repo: mine}\n"
    )
    (folder / "s.yaml").write_text("{name: s, suites: [own.yaml, mine@3], terms: alt text}")
    assert main(["run", str(folder / "s.yaml"), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    store = Store(tmp_path / "out")
    seen = [
        (u.checkpoint.suite, u.checkpoint.revision, u.checkpoint.step, u.checkpoint.tokens)
        for u in store.read_run().units
    ]
    assert seen == [
        ("a", "at-5", 5, 500), ("a", "at-9", 9, 900), ("b", "early", None, None), ("b", "late", None, None),
        ("c", None, 3, None), ("mine", None, 3, None),
    ]  # fmt: skip
    table = store.read("binding").groupby(["suite", "revision"])["span"].first()
    assert table["b", "early"][0] == table["a", "at-5"][0] + 1
    assert main(["suites", str(folder / "own.yaml"), "--json"]) == 0
    assert [s["name"] for s in json.loads(capsys.readouterr().out)] == ["a", "b", "c"]


def test_a_run_of_an_older_version_is_read(tmp_path: Path, suite_folder: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"{{name: s, suites: {suite_folder}, terms: alt text}}")
    assert main(["run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")]) == 0
    file = tmp_path / "out" / "run.json"
    raw = json.loads(file.read_text())
    for unit in raw["units"]:
        del unit["checkpoint"]["tokens"]
    file.write_text(json.dumps(raw))
    assert len(Store(tmp_path / "out").read("binding")["revision"].unique()) == 2
    assert main(["report", str(tmp_path / "out")]) == 0


def test_a_built_in_study_on_other_suites_and_in_the_other_protocol(tmp_path: Path, suite_folder: Path) -> None:
    words = ["--suites", f"{suite_folder}@10", "--protocol", "published"]
    assert main(["run", "pilot", *words, "--out", str(tmp_path / "out")]) == 0
    store = Store(tmp_path / "out")
    assert [unit.checkpoint.step for unit in store.read_run().units] == [10]
    assert store.read_run().experiment["protocol"] == "published"
    assert len(store.read("recognition")) == 15
    assert (store.read("recognition")["gold"] == 0).all()


def test_a_protocol_that_does_not_fit_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("{name: s, suites: tiny, prompts: p.jsonl}")
    for command in ("run", "plan"):
        out = ["--out", str(tmp_path / "out")] if command == "run" else []
        assert main([command, str(tmp_path / "s.yaml"), "--protocol", "published", *out]) == 2
        assert "a prompt file sets protocol itself" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_listing_shows_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suites"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (at,) = [i for i, text in enumerate(lines) if text.startswith("olmo-1b ")]
    assert lines[at].split() == ["olmo-1b", "8", "1.18", "B", "4", "B", "to", "3.09", "T"]
    assert lines[at + 1].split() == ["allenai/OLMo-1B-hf"]
    assert max(map(len, lines)) <= 80
    assert any("one blob for every step" in text for text in lines)
    assert main(["suites", "olmo-1b"]) == 0
    shown = capsys.readouterr().out
    for part in ("allenai/OLMo-1B-hf", "Apache-2.0", "1,176,764,416", "step330000-tokens1383B", "330,000", "1.38 T"):
        assert part in shown
    assert main(["suites", "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["pythia-1b"]["checkpoints"][1]["tokens"] == 15000 * 2097152
    assert main(["suites", "pythia-9b"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_help_says_what_each_study_is(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "plan"):
        assert main([command, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        for name in experiments.names():
            assert f"{name} {experiments.load(name).about.split('.')[0][:30]}" in shown
    assert main(["run", "pilo", "--out", "x"]) == 2
    error = capsys.readouterr().err
    assert "did you mean pilot" in error
    assert "bindscope run --help" in error


def test_a_suite_that_is_not_installed_is_still_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bindscope.checkpoints.suites.find_spec", lambda name: None)
    (gone,) = [s for s in catalogued() if s.name == "smollm2-135m"]
    assert gone.checkpoints == ()
    with pytest.raises(BindscopeError, match="pip install"):
        suite("smollm2-135m")


def test_the_example_of_the_page_is_a_file_of_suites(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(page.split("```yaml")[2].split("```")[0])
    first, second = suites(str(tmp_path / "mine.yaml"))
    assert [(ref.revision, ref.tokens) for ref in first.checkpoints][1] == ("step-1000", 1000 * 2097152)
    assert [(ref.revision, ref.step, ref.tokens) for ref in second.checkpoints] == [
        ("first", 100, None), ("second", 200, 500_000_000), ("third", None, None),
    ]  # fmt: skip
    assert {ref.tokenizer for ref in second.checkpoints} == {"org/words"}
