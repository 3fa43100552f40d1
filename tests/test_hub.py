"""Checkpoints from a hub: identified without a download, loaded exactly, and what happens when the hub misbehaves.

Everything runs over HTTP against a hub on the loopback interface (loopback.py), with tiny random models.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from bindscope.checkpoints.files import CheckpointFiles, HubNotAsked, fetch, identify
from bindscope.checkpoints.load import Loaded, load
from bindscope.checkpoints.suites import one
from bindscope.errors import ModelError
from bindscope.records import CheckpointRef
from loopback import TOKEN, Hub, hub_fixture  # noqa: F401  the fixture `hub`

REPO = "lab/tiny"
TEXT = (
    "Gradient descent follows the slope of the loss. ",
    "A hash table maps keys to values. ",
    "Attention heads bind the words of a term. ",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Zoo:
    """Two checkpoints of one run as folders, with their weights, and the tokenizer alone."""

    steps: dict[str, Path]
    weights: dict[str, dict[str, torch.Tensor]]
    tokenizer: Path


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    root = tmp_path_factory.mktemp("zoo")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        TEXT, vocab_size=320, min_frequency=1, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained.to_str()), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(root / "tokenizer")
    config = GPTNeoXConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    steps, weights = {}, {}
    for seed, name in enumerate(("step1", "step2")):
        torch.manual_seed(seed)
        model = GPTNeoXForCausalLM(config)
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        (root / name / "README.md").write_text("# Tiny\n")
        (root / name / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        steps[name] = root / name
        weights[name] = {key: value.clone() for key, value in model.state_dict().items()}
    return Zoo(steps, weights, root / "tokenizer")


def _ref(revision: str | None = None, repo: str = REPO, tokenizer: str | None = None) -> CheckpointRef:
    return CheckpointRef("tiny", repo, revision, tokenizer=tokenizer)


def _load(ref: CheckpointRef, files: CheckpointFiles | None = None) -> Loaded:
    return load(ref, dtype="float32", device="cpu", files=files)


def _same(loaded: Loaded, weights: dict[str, torch.Tensor]) -> bool:
    found = loaded.model.state_dict()
    return found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)


def _fails(ref: CheckpointRef, *words: str) -> str:
    """Loading raises ModelError, in one line with these words."""
    with pytest.raises(ModelError) as caught:
        _load(ref)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def _variant(zoo: Zoo, folder: Path, drop: tuple[str, ...] = ()) -> Path:
    """A copy of step1 without some of its files."""
    shutil.copytree(zoo.steps["step1"], folder)
    for name in drop:
        (folder / name).unlink()
    return folder


def _with_pickle(zoo: Zoo, folder: Path, drop: tuple[str, ...] = ()) -> Path:
    """A copy of step1 with its weights as a pickle, too."""
    _variant(zoo, folder, drop=drop)
    torch.save(zoo.weights["step1"], folder / "pytorch_model.bin")
    return folder


def test_a_revision_is_identified_without_a_download(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    first, second, main = (identify(_ref(r)) for r in ("step1", "step2", None))
    assert first.identity.commit == hub.commit(REPO, "step1")
    assert main.identity == second.identity
    assert main.identity.commit == hub.commit(REPO)
    assert first.identity.fingerprint != second.identity.fingerprint
    assert first.identity.repo == REPO
    assert set(first.weights.hashes) == {"config.json", "model.safetensors", *TOKENIZER_FILES}
    assert len(first.weights.hashes["model.safetensors"]) == 64
    assert len(first.weights.hashes["config.json"]) == 40
    assert hub.requests
    assert not hub.asked("/resolve/")
    assert not list(Path(constants.HF_HUB_CACHE).rglob("blobs/*"))


def test_the_fingerprint_is_of_the_content_not_of_the_commit(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, {"a": zoo.steps["step1"]})
    hub.move(REPO, "b", zoo.steps["step1"], salt="another commit")
    a, b = identify(_ref("a")).identity, identify(_ref("b")).identity
    assert a.commit != b.commit
    assert a.fingerprint == b.fingerprint
    assert identify(_ref(a.commit)).identity == a


def test_each_revision_loads_exactly_its_weights_and_only_once(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    for step, weights in zoo.weights.items():
        loaded = _load(_ref(step))
        assert _same(loaded, weights)
        assert loaded.files is not None
        assert loaded.files.identity.commit == hub.commit(REPO, step)
        text = "Attention heads bind"
        assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text
    assert not _same(loaded, zoo.weights["step1"])
    assert hub.fetched().count("model.safetensors") == 2
    assert "README.md" not in hub.fetched()
    hub.requests.clear()
    assert _same(_load(_ref("step1")), zoo.weights["step1"])
    assert not hub.asked("/resolve/")


def test_a_repository_named_by_the_user_is_found(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    ref, _ = one(REPO, "step1")
    assert identify(ref).identity == identify(_ref("step1")).identity
    assert identify(one(REPO)[0]).identity == identify(_ref("step2")).identity


@pytest.mark.parametrize("down", ["stopped", "offline", "failing"])
def test_the_cache_answers_when_the_hub_does_not(
    hub: Hub, zoo: Zoo, monkeypatch: pytest.MonkeyPatch, down: str
) -> None:
    hub.add(REPO, zoo.steps)
    refs = [_ref("step1"), _ref(None), _ref(hub.commit(REPO, "step1"))]
    online = [identify(ref) for ref in refs]
    for files in online:
        fetch(files.weights)
    if down == "stopped":
        hub.stop()
    elif down == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.fail("/", times=1000, status=503)
    assert [identify(ref).identity for ref in refs] == [files.identity for files in online]
    assert _same(_load(refs[0]), zoo.weights["step1"])
    assert _same(_load(refs[1], online[1]), zoo.weights["step2"])


def test_an_incomplete_cache_is_not_an_answer(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    folder = fetch(identify(_ref("step1")).weights)
    (folder / "model.safetensors").unlink()
    hub.stop()
    _fails(_ref("step1"), hub.url, REPO)
    hub.start()
    assert _same(_load(_ref("step1")), zoo.weights["step1"])


def test_the_tokenizer_may_come_from_another_repository(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    bare = _variant(zoo, tmp_path / "bare", drop=TOKENIZER_FILES)
    hub.add(REPO, {"main": bare})
    hub.add("lab/words", {"main": zoo.tokenizer})
    ref = _ref(tokenizer="lab/words")
    files = identify(ref)
    assert set(files.tokenizer.hashes) == set(TOKENIZER_FILES)
    assert files.tokenizer.commit == hub.commit("lab/words")
    _fails(_ref(), "no tokenizer files")
    loaded = _load(ref)
    assert _same(loaded, zoo.weights["step1"])
    assert loaded.tokenizer("A hash table")["input_ids"]
    hub.stop()
    assert identify(ref).identity == files.identity


def test_an_unknown_revision_is_named_with_the_branches(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    _fails(_ref("step3"), "'step3'", REPO, hub.url, "step1, step2, main")
    assert not hub.asked("/resolve/")


def test_names_from_outside_cannot_leave_the_cache(hub: Hub, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are named after revisions and commits: neither a user's revision nor a hub's commit may be a path."""
    hub.add(REPO, zoo.steps)
    _fails(_ref("../../x"), "'../../x' is not a revision of")
    assert not hub.requests
    info = HfApi.model_info

    def hostile(*args: Any, **options: Any) -> Any:
        answer = info(*args, **options)
        answer.sha = "../../x"
        return answer

    monkeypatch.setattr(HfApi, "model_info", hostile)
    _fails(_ref("step1"), "'../../x' as the commit of", hub.url)


def test_offline_asks_the_cache_alone(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    with pytest.raises(HubNotAsked, match="the hub is not to be asked, and it is not in the cache"):
        identify(_ref("step1"), offline=True)
    assert not hub.requests
    fetch(identify(_ref("step1")).weights)
    hub.requests.clear()
    assert identify(_ref("step1"), offline=True).identity == identify(_ref("step1")).identity
    assert len(hub.requests) == 1


def test_an_unknown_repository_is_named(hub: Hub) -> None:
    _fails(_ref(repo="lab/none"), "'lab/none'", hub.url)


def test_a_private_repository_needs_a_token(hub: Hub, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, zoo.steps, private=True)
    _fails(_ref("step1"), REPO, "hf auth login")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert _same(_load(_ref("step1")), zoo.weights["step1"])


def test_a_gated_repository_is_called_gated(hub: Hub, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, zoo.steps, gated=True)
    assert identify(_ref("step1")).identity.commit == hub.commit(REPO, "step1")
    message = _fails(_ref("step1"), REPO, "gated", "hf auth login")
    assert "run again" not in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert _same(_load(_ref("step1")), zoo.weights["step1"])


def test_a_hub_that_is_down_is_named(hub: Hub, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, zoo.steps)
    hub.stop()
    _fails(_ref("step1"), hub.url, REPO, "step1", constants.HF_HUB_CACHE)
    hub.start()
    files = identify(_ref("step1"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=REPO):
        fetch(files.weights)


def test_an_error_of_the_hub_is_one_line_and_the_next_run_succeeds(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    hub.fail("/api/models/lab/tiny/revision")
    _fails(_ref("step1"), hub.url, REPO, "500")
    assert _same(_load(_ref("step1")), zoo.weights["step1"])


@pytest.mark.parametrize("what", ["/api/models/lab/tiny/tree", "HEAD /lab/tiny"])
def test_an_error_in_the_middle_of_a_download_is_not_noticed(hub: Hub, zoo: Zoo, what: str) -> None:
    hub.add(REPO, zoo.steps)
    hub.fail(what)
    assert _same(_load(_ref("step1")), zoo.weights["step1"])
    assert len(hub.asked(what)) >= 2


def test_pickles_are_not_fetched_beside_safetensors(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    hub.add(REPO, {"plain": zoo.steps["step1"], "both": _with_pickle(zoo, tmp_path / "both")})
    assert identify(_ref("both")).identity.fingerprint == identify(_ref("plain")).identity.fingerprint
    assert _same(_load(_ref("both")), zoo.weights["step1"])
    assert sorted(hub.fetched()) == sorted(["config.json", "model.safetensors", *TOKENIZER_FILES])


def test_weights_in_subfolders_are_not_of_the_model(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    nested = _variant(zoo, tmp_path / "nested")
    (nested / "onnx").mkdir()
    shutil.copy(nested / "model.safetensors", nested / "onnx" / "model.safetensors")
    hub.add(REPO, {"plain": zoo.steps["step1"], "nested": nested})
    assert identify(_ref("nested")).identity.fingerprint == identify(_ref("plain")).identity.fingerprint
    assert _same(_load(_ref("nested")), zoo.weights["step1"])
    assert hub.fetched().count("model.safetensors") == 1
    assert "onnx/model.safetensors" not in hub.fetched()


def test_a_repository_with_a_pickle_alone_loads(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    hub.add(REPO, {"main": _with_pickle(zoo, tmp_path / "pickled", drop=("model.safetensors",))})
    files = identify(_ref())
    assert _same(_load(_ref(), files), zoo.weights["step1"])
    assert sorted(hub.fetched()) == sorted(["config.json", "pytorch_model.bin", *TOKENIZER_FILES])
    hub.stop()
    assert identify(_ref()).identity == files.identity


def test_a_repository_without_weights_is_refused_before_a_download(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    hub.add(REPO, {"main": _variant(zoo, tmp_path / "empty", drop=("model.safetensors",))})
    _fails(_ref(), REPO, "no weights")
    hub.add("lab/words", {"main": zoo.tokenizer})
    _fails(_ref(repo="lab/words"), "lab/words", "config.json")
    assert not hub.asked("/resolve/")


def test_a_short_interruption_is_not_noticed(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    hub.cut("model.safetensors", after=20_000)
    assert _same(_load(_ref("step1")), zoo.weights["step1"])
    assert hub.fetched().count("model.safetensors") == 2


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_long_interruption_is_an_error_and_the_next_run_goes_on(hub: Hub, zoo: Zoo, reset: bool) -> None:
    hub.add(REPO, zoo.steps)
    hub.cut("model.safetensors", after=20_000, times=1000, reset=reset)
    _fails(_ref("step1"), REPO, hub.commit(REPO, "step1"), "run again")
    begun = set(
        hub.fetched()
    )  # files come side by side: one that had not begun when the weights failed is not asked for
    assert "model.safetensors" in begun
    hub.heal()
    hub.requests.clear()
    assert _same(_load(_ref("step1")), zoo.weights["step1"])
    rest = {"config.json", "model.safetensors", *TOKENIZER_FILES} - begun
    assert sorted(hub.fetched()) == sorted({"model.safetensors", *rest})


def test_a_slow_hub_is_waited_for(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    hub.slow("/", 0.2)
    assert _same(_load(_ref("step1")), zoo.weights["step1"])


def test_a_moved_branch_is_another_checkpoint(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, {"main": zoo.steps["step1"]})
    old = identify(_ref())
    assert _same(_load(_ref()), zoo.weights["step1"])
    commit = hub.move(REPO, "main", zoo.steps["step2"])
    new = identify(_ref())
    assert new.identity.commit == commit != old.identity.commit
    assert new.identity.fingerprint != old.identity.fingerprint
    assert _same(_load(_ref()), zoo.weights["step2"])
    assert _same(_load(_ref(), old), zoo.weights["step1"])


def test_a_branch_that_moves_between_identity_and_download_changes_nothing(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, {"main": zoo.steps["step1"]})
    files = identify(_ref())
    hub.move(REPO, "main", zoo.steps["step2"])
    assert _same(_load(_ref(), files), zoo.weights["step1"])


def test_damaged_weights_are_one_line(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    hub.corrupt("model.safetensors", at=0, damage=b"\xff" * 16)
    _fails(_ref("step1"), "tiny", hub.commit(REPO, "step1"))
    hub.heal()
    assert _same(_load(_ref("step2")), zoo.weights["step2"])


def test_a_new_process_needs_the_environment_alone(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    hub.add(REPO, zoo.steps)
    code = (
        "from bindscope.checkpoints.files import fetch, identify\nfrom bindscope.records import CheckpointRef\n"
        f"found = identify(CheckpointRef('tiny', {REPO!r}, 'step1'))\nfetch(found.weights)\n"
        "import json; print(json.dumps([found.identity.commit, found.identity.fingerprint]))"
    )
    env = os.environ | hub.environment(tmp_path / "another-cache")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    here = identify(_ref("step1")).identity
    assert json.loads(done.stdout) == [here.commit, here.fingerprint]
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))


def test_damaged_bytes_are_noticed_and_fetched_again(hub: Hub, zoo: Zoo) -> None:
    """The hub's client compares sizes only: flipped bytes would load as other weights under the right fingerprint."""
    hub.add(REPO, zoo.steps)
    hub.corrupt("model.safetensors", at=100_000, damage=b"\0" * 16)
    _fails(_ref("step1"), "run again")
    hub.heal()
    assert _same(_load(_ref("step1")), zoo.weights["step1"])


def test_an_answer_from_the_cache_says_so(hub: Hub, zoo: Zoo) -> None:
    hub.add(REPO, zoo.steps)
    _load(_ref("step1"))
    assert identify(_ref("step1")).notes == ()
    hub.stop()
    (note,) = identify(_ref("step1")).notes
    assert "could not be asked" in note
