"""A tokenizer alone: from a tokenizer.json file, or that of a model, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bindscope.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """By path of a tokenizer.json, folder, catalogue name or hub id. Raises ModelError, UnknownName."""
    path = Path(name)
    if path.suffix == ".json":
        return _from_file(path)
    if (path / "tokenizer.json").is_file():
        return _from_file(path / "tokenizer.json")
    from bindscope.models.files import fetch, identify
    from bindscope.models.load import load_tokenizer
    from bindscope.models.suites import one

    ref, _ = one(name, None)
    sources = identify(ref)
    if ref.gguf:
        from bindscope.models.load import load

        return load(ref, sources=sources).tokenizer
    files = [
        f for f in sources.tokenizer.files if f == "config.json" or "token" in f or f.startswith(("vocab", "merges"))
    ]
    return load_tokenizer(fetch(sources.tokenizer, files), name)


def _from_file(path: Path) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the tokenizers library raises plain Exception for every malformed file
        raise ModelError(f"{path} cannot be read as a tokenizer.json: {' '.join(str(error).split())[:200]}") from error
