"""Tokenizers of the kinds that published models use, trained on the texts of this repository.

They stand in for real ones, which a contributor's clone does not have: the pipelines (normalizer, pre-tokenizer,
model, decoder) are those of the named models, and only the vocabularies are small.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_ROOT = Path(__file__).parents[1]
_SPECIAL = ["<|endoftext|>", "<unk>"]
#: How Llama 3 and GPT-4 cut a text before merges: contractions, words with their space, up to three digits.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_MARKER = "\u2581"
_SIZE = 3000


@cache
def _texts() -> tuple[str, ...]:
    """Lines of the data files and pages of this repository."""
    data = _ROOT / "src" / "bindscope" / "data"
    files = [*sorted((data / "terms").glob("*.yaml")), data / "neutral.txt", data / "frames.yaml"]
    return tuple(line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def _byte_level(size: int = _SIZE) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=_SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def _gpt2() -> Tokenizer:
    """Byte-level BPE as in GPT-2; the offsets of a token leave out its space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return _trained(tokenizer, _byte_level())


def _neox() -> Tokenizer:
    """Byte-level BPE as in GPT-NeoX and Pythia: NFC, offsets with the space, runs of spaces as added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _trained(tokenizer, _byte_level())
    tokenizer.add_tokens([AddedToken(" " * n, normalized=False) for n in range(2, 9)])
    return tokenizer


def _llama3() -> Tokenizer:
    """Byte-level BPE behind a regular expression, as in Llama 3; few merges, so that words are several tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA_3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _trained(tokenizer, _byte_level(700))


def _sentencepiece() -> Tokenizer:
    """BPE with byte fallback on words with a marker in front; as in SentencePiece, no piece spans two words."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement=_MARKER, prepend_scheme="always"), pre_tokenizers.Punctuation("isolated")]
    )
    special = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    _trained(
        tokenizer, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False, limit_alphabet=90)
    )
    tokenizer.decoder = _marker_decoder()
    return tokenizer


def _marker_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [decoders.Replace(_MARKER, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def _llama2() -> Tokenizer:
    """SentencePiece BPE as in Llama 2: the normalizer puts a marker for every space and one at the start."""
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_MARKER), normalizers.Replace(" ", _MARKER)])
    tokenizer.pre_tokenizer = None
    return tokenizer


def _metaspace() -> Tokenizer:
    """SentencePiece BPE as newer conversions write it: the pre-tokenizer puts the markers."""
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_MARKER, prepend_scheme="always")
    return tokenizer


def _metaspace_split() -> Tokenizer:
    """As in XLM-R: white space is dropped first, and every word gets a marker."""
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=_MARKER, prepend_scheme="always")]
    )
    return tokenizer


def _lone_marker() -> Tokenizer:
    """Metaspace with a vocabulary in which no piece joins the marker to a letter: the marker is a token of its own."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=_MARKER, prepend_scheme="always")]
    )
    words = sorted({word for text in _texts() for word in text.split() if word.isalpha()})
    pieces = [_MARKER, *sorted({letter for word in words for letter in word}), "re", "ad", "er", "sc", "en"]
    pieces += ["read", "reader", "scre", "screen"]
    vocabulary = {piece: i for i, piece in enumerate([*_SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), *pieces])}
    merges = [("r", "e"), ("a", "d"), ("e", "r"), ("s", "c"), ("e", "n"), ("re", "ad"), ("read", "er"), ("sc", "re")]
    tokenizer.model = models.BPE(
        vocab=vocabulary, merges=[*merges, ("scre", "en")], byte_fallback=True, fuse_unk=True, unk_token="<unk>"
    )
    tokenizer.decoder = _marker_decoder()
    return tokenizer


def _unigram() -> Tokenizer:
    """SentencePiece unigram as in T5 and XLNet."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_MARKER, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=_MARKER, prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=1200, special_tokens=_SPECIAL, show_progress=False, unk_token="<unk>")
    return _trained(tokenizer, trainer)


def _wordpiece() -> Tokenizer:
    """WordPiece as in BERT, with case kept."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(
        tokenizer, trainers.WordPieceTrainer(vocab_size=_SIZE, special_tokens=_SPECIAL, show_progress=False)
    )


_MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2-like": _gpt2,
    "neox-like": _neox,
    "llama3-like": _llama3,
    "llama2-like": _llama2,
    "metaspace": _metaspace,
    "metaspace-split": _metaspace_split,
    "lone-marker": _lone_marker,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}
KINDS = tuple(_MAKERS)


@cache
def made(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of one kind; trained once a process."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_MAKERS[kind](), bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<unk>"
    )
