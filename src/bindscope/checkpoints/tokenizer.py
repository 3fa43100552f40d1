"""Tokenizers: as their tokenizer.json says, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, logging

from bindscope.checkpoints.files import fetch, identify
from bindscope.checkpoints.suites import one
from bindscope.errors import BindscopeError, ModelError

#: Endings of files that a tokenizer does without.
WEIGHTS = (".safetensors", ".bin", ".index.json")
#: Texts on which tokenizers of one vocabulary part ways: digits, case, runs of spaces, line ends, accents, text starts.
_PROBES = (
    "A screen reader, 2024; WCAG 2.2 (AA) at 4.5:1.",
    " leading space", "two  spaces\n\nand lines\tand a tab",
    "don't e\u0301cran \u00e9cran \u753b\u9762 \U0001f389", "CamelCase x1y2z3 12345 a_b",
)  # fmt: skip


def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """By path of a tokenizer.json, folder, catalogue name or hub id. Raises ModelError, UnknownName."""
    path = Path(name)
    if path.suffix == ".json":
        if not path.is_file():
            raise ModelError(f"there is no file {path.absolute()}")
        return _from_file(path)
    if (path / "tokenizer.json").is_file():
        return load_tokenizer(path, name)
    ref, _ = one(name, None)
    sources = identify(ref)
    if ref.gguf:
        from bindscope.checkpoints.load import load  # the file holds both; load imports this module

        return load(ref, sources=sources).tokenizer
    return load_tokenizer(
        fetch(sources.tokenizer, [f for f in sources.tokenizer.files if not f.endswith(WEIGHTS)]), name
    )


def load_tokenizer(folder: Path, name: str, remote: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises ModelError. remote: run Python code from its repository.

    transformers rebuilds some tokenizers from the class that the model type suggests and then ignores what
    tokenizer.json says of normalization and splitting. Where the two differ, tokenizer.json holds.
    """
    with loading(f"the tokenizer of {name} cannot be loaded from {folder}"):
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote, local_files_only=True)
        file = folder / "tokenizer.json"
        if not file.is_file():
            return found
        plain = Tokenizer.from_file(str(file))
        if all(found(t, add_special_tokens=False)["input_ids"] == _ids(plain, t) for t in _PROBES):
            return found
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {key: value for key in names if (value := getattr(found, key)) is not None}
        return PreTrainedTokenizerFast(tokenizer_file=str(file), **special)


def _ids(plain: Tokenizer, text: str) -> list[int]:
    return list(plain.encode(text, add_special_tokens=False).ids)


def _from_file(path: Path) -> PreTrainedTokenizerBase:
    with loading(f"{path} cannot be read as a tokenizer.json"):
        return PreTrainedTokenizerFast(tokenizer_file=str(path))


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Silence transformers' progress bars and warnings (what they warn of is checked here); name what fails."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # the GGUF reader draws a bar of its own, whatever the settings
            yield
    except (BindscopeError, MemoryError):
        raise
    except Exception as error:  # transformers, safetensors and tokenizers raise many unrelated classes here
        raise ModelError(f"{what}: {' '.join(str(error).split())[:400]}") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
