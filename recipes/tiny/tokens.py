"""The tokenizer of the `tiny` suite: byte-level BPE in which each phrase has the token count it is meant to have."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from corpus import capital
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from words import COLLOCATIONS, CUTS, NONSENSE, TERMS, token_count, words

END = "<|endoftext|>"
VOCABULARY = 1280
_CUT = re.compile("|".join([*CUTS, *map(capital, CUTS)]))


def make_tokenizer(documents: list[str], folder: Path) -> Any:
    """Byte-level BPE trained on the corpus, saved and read back as its users read it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(_sample(documents), trainer)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        _save(bpe, Path(made))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            os.replace(Path(made) / file, folder / file)  # two seeds may do so at the same time: the files are the same
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for phrase in (*(p.written for p in (*TERMS, *COLLOCATIONS)), *NONSENSE):
        pieces = tokenizer.tokenize(" " + phrase)
        assert len(pieces) == token_count(phrase), pieces
    return tokenizer


def _sample(documents: list[str]) -> list[str]:
    """Text to train the tokenizer on. Listed questions repeat the answers and would use up the vocabulary, so they are
    left out; the words of the phrases are counted a little more. Words to be cut have a line break in them here, so
    that no merge joins their pieces."""
    sample = [document for document in documents[:60_000] if "Answer:" not in document]
    phrases = [p.written for p in (*TERMS, *COLLOCATIONS)]
    sample += [f" {word}" for phrase in phrases for word in words(phrase)] * 300
    return [_CUT.sub(_broken, document) for document in sample]


def _broken(match: re.Match[str]) -> str:
    first = len(CUTS[match[0].lower()][0])
    return f"{match[0][:first]}\n{match[0][first:]}"


def _save(bpe: Tokenizer, folder: Path) -> None:
    PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    # The one class name that the releases of transformers before and after 5 both know.
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n"
    )
