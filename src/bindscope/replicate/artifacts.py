"""Other explanations of the published numbers.

They are the length of a term, the position of the answer, spans on wrong tokens, and the number of independent units.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from bindscope.errors import PromptError
from bindscope.prompts.library import library
from bindscope.prompts.spans import Encoded, encode, locate
from bindscope.replicate.checks import gold
from bindscope.replicate.numbers import effects, gains, pairs, paper, spearman
from bindscope.replicate.published import Published
from bindscope.stats.compare import permutation_p

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LETTERS = "ABCD"
_SPAN_COLUMNS = ["set", "term", "task", "prompt_id", "prompt", "published", "published_text", "located", "located_text"]
_SPAN_COLUMNS += ["agree", "records", "reason"]


def length(data: Published) -> pd.DataFrame:
    """The correlation of EB* and token count over control terms: a row per model and checkpoint.

    data: the published tables

    Columns
    terms, k: number of control terms, and range of their token counts
    rho, p, reason: Spearman's rho of EB* and token count, or why it cannot be computed
    equal: number of values that equal the constant of a previous-token head, see `constants`
    groups: mean EB* and token count of each control group
    two_token, real_two_token: mean EB* of control terms, and of real terms, of two tokens at the same checkpoint
    """
    rows = []
    for (model, size, checkpoint), part in data.controls.groupby(["model", "size", "checkpoint"], sort=False):
        rank = spearman(part["eb_star"], part["n_term_tokens"].astype(float))
        real = data.binding
        real = real[(real["model"] == model) & (real["checkpoint"] == checkpoint) & (real["n_term_tokens"] == 2)]
        two = part[part["n_term_tokens"] == 2]["eb_star"]
        same = constants(data)
        same = same[(same["model"] == model) & (same["checkpoint"] == checkpoint) & (same["source"] == "controls")]
        groups = part.groupby("control_group")[["n_term_tokens", "eb_star"]].mean().sort_values("eb_star")
        texts = [f"{name} EB* {eb:.2f} at {k:.1f} tokens" for name, k, eb in groups.itertuples()]
        rows.append(
            {
                "model": model,
                "size": size,
                "checkpoint": checkpoint,
                "terms": len(part),
                "k": f"{part['n_term_tokens'].min()}-{part['n_term_tokens'].max()}",
                "rho": rank.rho,
                "p": rank.p,
                "reason": rank.reason,
                "equal": len(same),
                "groups": ", ".join(texts),
                "two_token": two.mean() if len(two) else None,
                "real_two_token": real["eb_star"].mean() if len(real) else None,
            }
        )
    columns = ["model", "size", "checkpoint", "terms", "k", "rho", "p", "reason", "equal", "groups"]
    return pd.DataFrame(rows, columns=[*columns, "two_token", "real_two_token"])


def constants(data: Published) -> pd.DataFrame:
    """The published values of EB* that equal 2/k (1 - 1/H) to six digits, for models whose number of heads H is known.

    This constant is EB* of a layer in which one head always attends to the previous token and the others to no token
    of the term.
    """
    parts = []
    for source, frame in (("controls", data.controls), ("prompts", data.binding)):
        part = frame[["model", "size", "checkpoint", "term", "n_term_tokens", "eb_star"]].assign(source=source)
        parts.append(part[part["size"].isin(paper()["heads"]) & (part["n_term_tokens"] > 0)])
    rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    heads = rows["size"].map(paper()["heads"]).astype(float)
    rows["constant"] = 2 / rows["n_term_tokens"].astype(float) * (1 - 1 / heads)
    return rows[(rows["eb_star"].astype(float) - rows["constant"]).abs() < 1e-6].reset_index(drop=True)


def answers(data: Published) -> pd.DataFrame:
    """The right and the predicted options: a row per prompt set, size and checkpoint, and for all checkpoints together.

    data: the published tables

    Columns
    items: number of answers
    gold: the right options with their counts
    A, B, C, D: how often each option is predicted
    accuracy: share of right predictions
    guesser: accuracy of always choosing A
    preferred, preferred_share: the option predicted most often, and its share
    """
    rows = data.behavior[(data.behavior["task"] == "recognition") & data.behavior["predicted_idx"].notna()]
    key = gold(data)
    if rows.empty or key.empty:
        return pd.DataFrame(columns=["set", "size", "checkpoint", "items", "gold", *LETTERS, "accuracy", "guesser"])
    rows = rows.merge(key, on=["term", "prompt_id", "prompt_template"])
    out = []
    for (name, size), part in rows.groupby(["set", "size"], sort=False):
        steps = [(step, at) for step, at in part.groupby("checkpoint", sort=False)]
        steps.sort(key=lambda item: item[1]["step"].iloc[0])
        for checkpoint, at in [("all", part), *steps]:
            out.append({"set": name, "size": size, "checkpoint": checkpoint, **_positions(at)})
    return pd.DataFrame(out)


def _positions(part: pd.DataFrame) -> dict[str, Any]:
    predicted = part["predicted_idx"].astype(int).value_counts()
    gold_at = part["gold"].astype(int).value_counts()
    # No published prompt has more than four options; an index past D would be counted in a column of its number.
    letters = {_letter(i): int(predicted[i]) for i in predicted.index}
    return {
        "items": len(part),
        "gold": ", ".join(f"{_letter(i)} {gold_at[i]}" for i in sorted(gold_at.index)),
        **dict.fromkeys(LETTERS, 0),
        **letters,
        "accuracy": float((part["predicted_idx"] == part["gold"]).mean()),
        "guesser": float((part["gold"] == 0).mean()),
        "preferred": max(letters, key=lambda letter: letters[letter]),
        "preferred_share": max(letters.values()) / len(part),
    }


def _letter(index: int) -> str:
    return LETTERS[index] if 0 <= index < len(LETTERS) else str(index)


def spans(data: Published, tokenizer: PreTrainedTokenizerBase | None) -> pd.DataFrame:
    """The published span of every prompt compared with the tokens of the term: a row per prompt and span.

    Positions count from BOS at 0, as in the Pythia records. The spans of other models are not compared, since their
    files do not say which token has position 0.

    data: the published tables
    tokenizer: the tokenizer of the Pythia models, None to return no rows

    Columns
    published, published_text: the published positions and the text of their tokens
    located, located_text: the positions of the term and the text of its tokens
    agree: whether both are the same, None where they cannot be compared
    records: number of records of the prompt, over all sizes and checkpoints
    reason: how they differ, or why they cannot be compared
    """
    if tokenizer is None or data.binding.empty:
        return pd.DataFrame(columns=_SPAN_COLUMNS)
    # A prompt with several published spans has a row for each.
    rows = data.binding.assign(
        published=data.binding["span_indices"].map(tuple), known=data.binding["model"].str.startswith(paper()["bos"])
    )
    key = ["set", "term", "task", "prompt_id", "prompt_template", "published", "known"]
    out = []
    for _, part in rows.groupby(key, sort=False):
        name, term, task, prompt_id, prompt, published, known = part.iloc[0][key]
        tail: list[Any] = [None, [], "", None, len(part), "whether position 0 is BOS is not known for this model"]
        if known:
            tail = _compare(tokenizer, str(term), str(prompt), published, len(part))
        out.append([name, term, task, prompt_id, prompt, list(published), *tail])
    return pd.DataFrame(out, columns=_SPAN_COLUMNS)


def _compare(
    tokenizer: PreTrainedTokenizerBase, term: str, prompt: str, published: tuple[int, ...], n: int
) -> list[Any]:
    # BOS only shifts every position by one, so the text is encoded without it.
    encoded = encode(tokenizer, prompt, "off")
    at = _texts(encoded, published)
    known = library().terms.get(term)
    try:
        span = locate(encoded, term, known.aliases if known else ())
    except PromptError as error:
        return [at, [], "", None, n, str(error)]
    located = [position + 1 for position in span.tokens]
    agree = located == list(published)
    beyond = [i for i in published if i > len(encoded.ids)]
    reason = None if agree else f"position {beyond[0]} is past the end" if beyond else _why(published, located)
    return [at, located, _texts(encoded, located), agree, n, reason]


def _texts(encoded: Encoded, positions: Any) -> str:
    """The characters of the tokens at some positions (BOS at 0), with spaces shown as dots."""
    shown = []
    for position in positions:
        if position == 0:
            shown.append("<BOS>")
        elif 0 < position <= len(encoded.ids):
            a, b = encoded.offsets[position - 1]
            shown.append(encoded.text[a:b].replace(" ", "\u00b7"))
        else:
            shown.append("<past the end>")
    return "|".join(shown)


def _why(published: tuple[int, ...], located: list[int]) -> str:
    shift = published[0] - located[0] if published else 0
    if published and [i - shift for i in published] == located:
        return f"{abs(shift)} token{'s' if abs(shift) > 1 else ''} too {'late' if shift > 0 else 'early'}"
    return f"{len(published)} tokens instead of {len(located)}" if len(published) != len(located) else "other tokens"


def units(data: Published) -> pd.DataFrame:
    """The n of every published statistic, and the numbers of independent units in the data: a row per statistic."""
    columns = ["statistic", "n", "p", "terms", "prompts", "checkpoints", "runs", "note"]
    return pd.DataFrame([*_unit_pairs(data), *_unit_gains(data), *_unit_ablation(data)], columns=columns)


def _unit_pairs(data: Published) -> Iterator[list[Any]]:
    joined = pairs(data)
    for (name, size), part in joined.groupby(["set", "size"], sort=False):
        rank = spearman(part["eb_star"], part["score"])
        prompts = part[["term", "prompt_template"]].drop_duplicates()
        counts: list[Any] = [part["term"].nunique(), len(prompts), part["checkpoint"].nunique(), 1]
        note = f"the same {len(prompts)} prompts at every checkpoint of one training run"
        yield [f"{name} {size}: Spearman(EB*, score)", rank.n, rank.p, *counts, note]
    for size, part in data.terms.groupby("size", sort=False):
        rank = spearman(part["eb_star"], part["beh_avg"])
        counts = [part["term"].nunique(), None, part["checkpoint"].nunique(), 1]
        note = "behavior is one value a term and checkpoint, repeated for each of its rows"
        yield [f"term table {size!s}: Spearman(EB*, Beh)", rank.n, rank.p, *counts, note]


def _unit_gains(data: Published) -> Iterator[list[Any]]:
    for row in gains(data).to_dict("records"):
        part = data.few_shot[(data.few_shot["file"] == row["file"]) & (data.few_shot["shots"] == 0)]
        note = "no p is printed; both prompts of a term get the same exemplar"
        counts = [part["term"].nunique(), len(part), 1, 1]
        yield [f"{row['size']} {row['checkpoint']}: one-shot gain {row['pp']:+.1f} pp", row["n"], None, *counts, note]


def _unit_ablation(data: Published) -> Iterator[list[Any]]:
    """The rows of ablations, with p = (b + 1) / (R + 1) of the top heads' drop where the random trials are stored."""
    for row in effects(data).to_dict("records"):
        if row["task"] != "recognition" or pd.isna(row["top_drop"]):
            continue
        part = data.ablation[(data.ablation["file"] == row["file"]) & (data.ablation["task"] == "recognition")]
        random = part[(part["condition"] == "random") & part["trial"].notna()]["value"]
        n = None if pd.isna(row["n"]) else int(row["n"])
        items = f"{abs(row['top_drop']) * n:.0f} of {n} items change; " if n else ""
        p, note = None, f"{items}the random trials are not stored one by one"
        if len(random):
            p = permutation_p(abs(row["top_drop"]), (row["baseline"] - random).abs())
            note = f"{items}with {len(random)} random sets p cannot be below {1 / (len(random) + 1):.2f}"
        name = f"{row['size']} {row['checkpoint']}: ablation {-100 * row['top_drop']:+.1f} pp"
        yield [name, n, p, None, n, 1, 1, note]
