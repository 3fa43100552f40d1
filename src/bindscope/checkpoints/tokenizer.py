"""Tokenizers that cut texts as their tokenizer.json says, whatever transformers makes of the model type."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bindscope.checkpoints.files import fetch, identify
from bindscope.checkpoints.gguf import converted
from bindscope.checkpoints.loading import loading
from bindscope.checkpoints.suites import one
from bindscope.errors import ModelError

#: Endings of weight files, which a tokenizer does not need.
WEIGHT_ENDINGS = (".safetensors", ".bin", ".index.json")
#: Texts on which tokenizers of one vocabulary differ: digits, case, runs of spaces, line ends, accents, text starts.
_PROBES = (
    "A screen reader, 2024; WCAG 2.2 (AA) at 4.5:1.",
    " leading space",
    "two  spaces\n\nand lines\tand a tab",
    "don't e\u0301cran \u00e9cran \u753b\u9762 \U0001f389",
    "CamelCase x1y2z3 12345 a_b",
)


def tokenizer_by_name(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a tokenizer.json, a folder, a suite of the catalogue, a GGUF file or a hub repository.

    Raises ModelError where there is none or it cannot be read, UnknownName for an unknown name.
    """
    path = Path(name)
    if path.suffix == ".json":
        if not path.is_file():
            raise ModelError(f"there is no file {path.absolute()}")
        with loading(f"{path} cannot be read as a tokenizer.json"):
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
    if (path / "tokenizer.json").is_file():
        return load_tokenizer(path, name)
    ref, _ = one(name, None)
    files = identify(ref)
    if ref.gguf:
        folder = converted(fetch(files.weights), ref.gguf, files.identity.fingerprint)
    else:
        folder = fetch(files.tokenizer, [f for f in files.tokenizer.hashes if not f.endswith(WEIGHT_ENDINGS)])
    return load_tokenizer(folder, name)


def load_tokenizer(folder: Path, name: str, remote: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    name: what messages call it.
    remote: run Python code from its repository.

    transformers rebuilds some tokenizers from the class that the model type suggests and then ignores what
    tokenizer.json says about normalization and splitting. Where the two cut a probe text differently, tokenizer.json
    is followed. Raises ModelError.
    """
    with loading(f"the tokenizer of {name} cannot be loaded from {folder}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote, local_files_only=True)
        file = folder / "tokenizer.json"
        if not file.is_file():
            return tokenizer
        plain = Tokenizer.from_file(str(file))
        if all(tokenizer(text, add_special_tokens=False)["input_ids"] == _ids(plain, text) for text in _PROBES):
            return tokenizer
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {key: value for key in names if (value := getattr(tokenizer, key)) is not None}
        return PreTrainedTokenizerFast(tokenizer_file=str(file), **special)


def _ids(plain: Tokenizer, text: str) -> list[int]:
    return list(plain.encode(text, add_special_tokens=False).ids)
