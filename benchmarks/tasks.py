"""What benchmarks/speed.py hands to each program: folders of weights, and prompts as tokens."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from model import pythia_160m, save, smollm2_135m

from bindscope import experiment as experiments
from bindscope.checkpoints.load import Loaded, load
from bindscope.checkpoints.suites import one
from bindscope.engine.capture import TextInput
from bindscope.engine.prepare import TokenizedPrompt, neutral_inputs, neutral_text, premise_inputs, prepare
from bindscope.prompts.spans import encode
from bindscope.records import Prompt, Protocol

#: New tokens: the study's.
NEW_TOKENS = 20
#: Tokens of a comparison on long texts.
LONG_TOKENS = 6144
#: Every so many prompts.
_SHARES = {"all": 1, "half": 2, "quarter": 4, "eighth": 8, "sixteenth": 16}
_TERM = "screen reader"


def folders(cache: Path, tokenizer: Path | None) -> dict[str, Path]:
    """Model -> its weights, made once. Next to Pythia's stands a second folder whose config allows longer texts."""
    made = {"smollm2-135m": cache / "smollm2-135m"}
    if not made["smollm2-135m"].exists():
        save(*smollm2_135m(), made["smollm2-135m"])
    if tokenizer is None:
        return made
    pythia = cache / "pythia-160m"
    if not pythia.exists():
        save(*pythia_160m(tokenizer), pythia)
        long = Path(shutil.copytree(pythia, cache / "pythia-160m-long", dirs_exist_ok=True))
        config = json.loads((long / "config.json").read_text())
        (long / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return {"pythia-160m": pythia, **made}


def write_work(kind: str, model: str, folder: Path, cache: Path) -> Path:
    """kind: "all" prompts of a11y-41 in the published protocol, a share of them, or "long-N", texts of N tokens."""
    ref, suite = one(str(folder), None)
    loaded = load(ref, bos=suite.bos, dtype="float32")
    raw = _long(loaded, int(kind.removeprefix("long-"))) if kind.startswith("long-") else _study(loaded, kind)
    path = cache / f"{model}-{kind}.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def _study(loaded: Loaded, kind: str) -> dict[str, Any]:
    prompts = experiments.changed(experiments.load("canonical-41"), "published").build_prompts()
    items = [prepare(loaded, p) for p in prompts if p.shot == "zero"][:: _SHARES[kind]]
    rows = [_row(item) for item in items]
    neutral, _ = neutral_inputs(loaded)
    _, premises = premise_inputs(loaded.tokenizer, Protocol().premise, loaded.bos, items)
    n, m = len(rows), len(rows) + len(neutral)
    return {
        "rows": [*rows, *map(_text, [*neutral, *premises])],
        "binding": [i for i, item in enumerate(items) if item.span],
        "recognition": [i for i, item in enumerate(items) if item.choices],
        "generation": [i for i, item in enumerate(items) if item.prompt.task == "generation"],
        "neutral": list(range(n, m)),
        "premises": list(range(m, m + len(premises))),
        "max_new_tokens": NEW_TOKENS,
    }


def _row(item: TokenizedPrompt) -> dict[str, Any]:
    return {
        "id": item.prompt.id,
        "term": item.prompt.term,
        "text": item.prompt.text,
        "ids": item.encoded.ids,
        "span": item.span.tokens if item.span else [],
        "choices": item.choices,
        "choice_texts": [f" {choice}" for choice in item.prompt.choices],
    }


def _text(text: TextInput) -> dict[str, Any]:
    return {"id": "", "text": "", "ids": text.ids, "choices": text.continuations}


def _long(loaded: Loaded, length: int) -> dict[str, Any]:
    """Texts of exactly so many tokens: the neutral prose again and again, each beginning elsewhere, the term in the
    middle."""
    words = neutral_text().split()
    rows = []
    for n in range(max(1, LONG_TOKENS // length)):
        prose = words[7 * n :] + words * (2 + length // len(words))
        fewest, most = 1, length
        while most - fewest > 1:
            middle = (fewest + most) // 2
            fewest, most = (middle, most) if _tokens(loaded, prose, middle) <= length else (fewest, middle)
        text = _around(prose, fewest)
        while _tokens(loaded, text.split(" "), 0) < length:
            text += " a"
        rows.append(_row(prepare(loaded, Prompt(f"long-{n}", _TERM, text, "generation"))))
    if {len(row["ids"]) for row in rows} != {length}:
        raise ValueError(f"texts of {sorted({len(row['ids']) for row in rows})} tokens where {length} were asked for")
    neutral, _ = neutral_inputs(loaded)
    n = len(rows)
    return {
        "rows": [*rows, *map(_text, neutral)],
        "binding": list(range(n)),
        "recognition": [],
        "generation": [],
        "neutral": list(range(n, n + len(neutral))),
        "max_new_tokens": 0,
    }


def _around(words: Sequence[str], count: int) -> str:
    """The first words with the term in their middle; count 0: all of them as they are."""
    return " ".join([*words[: count // 2], _TERM, *words[count // 2 : count]] if count else words)


def _tokens(loaded: Loaded, words: Sequence[str], count: int) -> int:
    return len(encode(loaded.tokenizer, _around(words, count), loaded.bos).ids)
