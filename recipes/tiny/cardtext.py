"""The text of the model card, filled with what was counted and measured."""

from __future__ import annotations

from typing import Any

from corpus import LISTED, STATED
from tokens import END, VOCABULARY
from train import HEADS, INNER, LAYERS, LENGTH, PEAK_RATE, ROWS, TEXT_SEED, WARM_UP, WIDTH
from words import COLLOCATIONS, FREQUENCY_RATIO, NONSENSE, TERMS

from bindscope.stats.compare import Stratified
from bindscope.stats.resample import Interval

NAMES = {"eb_star": "EB\\*", "eb_star_mass": "EB\\*_mass", "excess": "excess"}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [" | ".join(head), " | ".join(["---:"] * len(head)), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _number(value: float | Interval | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value.mean if isinstance(value, Interval) else value:.{digits}f}"


def _interval(value: Interval | Stratified | None) -> str:
    if value is None:
        return "-"
    middle = value.mean if isinstance(value, Interval) else value.value
    return f"{middle:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def _verdict(difference: Stratified | None) -> str:
    if difference is None:
        return "cannot be said: the null has too few windows"
    if difference.low > 0:
        return "yes, concepts are higher"
    return "concepts are lower" if difference.high < 0 else "no, the interval holds 0"


def _training(seed: dict[str, Any]) -> str:
    """Accuracy and EB* over the checkpoints of a seed."""
    head = ["step", "listed", "cloze", "EB\\*, library prompts", *(f"EB\\*, {g} in carriers" for g in _groups(seed))]
    rows = [
        [
            str(r["step"]),
            *(_number(r[column]) for column in ("listed", "cloze", "eb_star")),
            *(_number(r["groups"][group, None]["eb_star"]) for group in _groups(seed)),
        ]
        for r in seed["rows"]
    ]
    return f"Seed {seed['seed']}:\n\n" + _table(head, rows)


def _groups(seed: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(group for group, _ in seed["rows"][-1]["groups"]))


def _ground_truth(seed: dict[str, Any]) -> str:
    """Groups and token counts at the end."""
    head = ["group", "k", "phrases", "EB\\*", "EB\\*_mass", "excess over the window null", "listed", "cloze"]
    rows = [
        [
            *(group, "all" if k is None else str(k), str(cell["n"])),
            *(_number(cell["eb_star"]), _number(cell["eb_star_mass"]), _interval(cell["excess"])),
            *(_number(cell["listed"]), _number(cell["cloze"])),
        ]
        for (group, k), cell in seed["rows"][-1]["groups"].items()
    ]
    return f"Seed {seed['seed']}, step {seed['rows'][-1]['step']}:\n\n" + _table(head, rows)


def _answers(seeds: list[dict[str, Any]]) -> str:
    """The two questions, per seed and control group, at the end."""
    head = ["seed", "concept minus", "quantity", "difference at equal k [95% interval]", "separates them?"]
    rows = [
        [str(seed["seed"]), other, NAMES[column], _interval(value), _verdict(value)]
        for seed in seeds
        for (other, column), value in seed["rows"][-1]["contrasts"].items()
    ]
    return _table(head, rows)


def _course(seeds: list[dict[str, Any]]) -> str:
    """EB*, concept minus collocation at equal k, over the checkpoints."""
    head = ["step", *(f"seed {seed['seed']}" for seed in seeds)]
    rows = [
        [str(row["step"]), *(_interval(s["rows"][i]["contrasts"]["collocation", "eb_star"]) for s in seeds)]
        for i, row in enumerate(seeds[0]["rows"])
    ]
    return _table(head, rows)


def _by_rank(seeds: list[dict[str, Any]]) -> str:
    """How often term and collocation of each rank occur, and whether the term's facts are found."""
    head = ["term", "mentions", *(f"listed, seed {s['seed']}" for s in seeds), "collocation", "mentions"]
    count = seeds[0]["mentions"]
    rows = [
        [term.written, str(count[term.written])]
        + [_number(s["rows"][-1]["by_term"][term.name], 2) for s in seeds]
        + [other.written, str(count[other.written])]
        for term, other in zip(TERMS, COLLOCATIONS, strict=True)
    ]
    return _table(head, rows)


def render(seeds: list[dict[str, Any]]) -> str:
    """The model card."""
    one, steps = seeds[0], [row["step"] for row in seeds[0]["rows"]]
    seen = steps[-1] * ROWS * LENGTH
    return f"""# tiny: checkpoint suites with known ground truth

{len(seeds)} training runs of a GPT-NeoX language model of {one["parameters"]:,} parameters ({LAYERS} layers,
{HEADS} heads, width {WIDTH}, inner width {INNER}, tied embeddings), each saved at {len(steps)} points from step 0 to
step {steps[-1]}. Trained from random weights by `recipes/tiny/train.py`; nothing was taken from another model. Weights
are stored in float16.

**For:** seeing every part of bindscope work offline in minutes, tests, examples, and checking measures of binding and
knowledge on models whose training text is fully known. **Not for:** any statement about language models in
general, about accessibility, or as a source of advice: they have read only the sentences of one small grammar.

## Ground truth

- **concept**: the {len(TERMS)} accessibility terms of the library. The text holds their facts (5 kinds a term) and
  uses them in neutral sentences.
- **collocation**: {len(COLLOCATIONS)} phrases mentioned as often as the terms, rank by rank, and made of equally many
  words and tokens; neutral sentences only, no facts.
- **nonsense**: {len(NONSENSE)} pairs, each of a term's word and a collocation's word, which never stand side by side in
  the text. Their words are as frequent as those of the other groups, since they are the same words.

Collocations and nonsense pairs are in `tiny-controls.yaml`. Each rank has as many tokens in all three groups.

## Training

- Text: {one["documents"]:,} short documents ({one["tokens"]:,} tokens) generated with seed {TEXT_SEED} by
  `recipes/tiny/corpus.py`, the same for every seed: {LISTED:.0%} are questions with a list of options,
  {STATED:.0%} facts stated without options, the others mention phrases without facts or single words of them.
  Frames are the same for all terms.
- The library's own stems and openings and bindscope's carrier sentences were kept out of the text, in any letter case,
  and the recipe checks that. The *answers* were in it, and the trained wordings are close to the stems in kind. So
  recognition here means: facts that were taught are found under wordings that were not. It is no test of knowledge
  beyond the text.
- The most frequent term is mentioned {FREQUENCY_RATIO:.0f} times as often as the least frequent. Rank and token count
  do not go together.
- Tokens: byte-level BPE, {VOCABULARY} entries, trained on the same text. The words of the phrases are one token each
  inside a sentence, but for some that are two by design, so that phrases have 2, 3 or 4 (inflected and capitalized
  forms may have more). `{END}` starts and ends documents. Suites are run with it in front (`bos: on`).
- {steps[-1]:,} steps of {ROWS} rows of {LENGTH} tokens ({seen / 1e6:.1f} million tokens,
  {seen / one["tokens"]:.1f} passes over the text), AdamW, cosine rate from {PEAK_RATE} after {WARM_UP} steps, one CPU
  thread, {" and ".join(f"{s['seconds'] / 60:.0f}" for s in seeds)} minutes. Seeds differ in initial weights and order
  of the text. Positions beyond {LENGTH} were never trained.

## Measured over training

On the saved float16 weights read as float32, with `{END}` in front. Recognition by mean log-probability per token of a
choice, chance 0.25. Listed: {len(TERMS) * 20} prompts ({len(TERMS) * 5} questions, each with its options in four
rotations). Cloze: the stems alone. The prompts of one question are alike. Nothing was tuned for EB\\*.

{chr(10).join(_training(seed) + chr(10) for seed in seeds)}
## Measured at the end, by ground truth and token count

All three groups in the same six carrier sentences (`carriers` in bindscope's `data/frames.yaml`), one run a
checkpoint. Excess is EB\\* minus its mean over windows of as many tokens in these sentences, with the 95% bootstrap
interval over phrases.

{chr(10).join(_ground_truth(seed) + chr(10) for seed in seeds)}
### Does the published quantity separate concepts from mere collocations? Does the controlled one?

Differences within strata of token count and sentence; 95% intervals by the jackknife over phrases
(`bindscope.stats.compare.stratified_difference`). The pooled null depends on the token count only, so at equal token
count in one run excess and EB\\* differ by a constant and give the *same* difference: matching on k is the control, and
excess adds to it only where counts differ.

{_answers(seeds)}

EB\\*, concept minus collocation at equal k, over training:

{_course(seeds)}

## Frequency

Mentions in the {one["documents"]:,} documents, and listed accuracy of the term (20 prompts) at the end.

{_by_rank(seeds)}

## Files

`seed-S/checkpoint-N/` holds config.json and model.safetensors of step N; the tokenizer is in the root.
To make the suites again: `python recipes/tiny/train.py --out DIR --seed S` for
S = {", ".join(str(s["seed"]) for s in seeds)}, then `python recipes/tiny/card.py DIR`.
"""
