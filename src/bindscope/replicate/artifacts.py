"""What else could make the published numbers: the length of a term, the place of the answer, spans on wrong tokens, and
how few independent units stand behind each p."""

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
    """EB* and token count among the control terms, per model; with how many values are the previous-token constant.

    two_token and real_two_token: mean EB* of control terms of two tokens, and of the study's own terms of two tokens at
    the same checkpoint.
    """
    rows = []
    for (model, size, checkpoint), part in data.controls.groupby(["model", "size", "checkpoint"], sort=False):
        found = spearman(part["eb_star"], part["n_term_tokens"].astype(float))
        real = data.binding
        real = real[(real["model"] == model) & (real["checkpoint"] == checkpoint) & (real["n_term_tokens"] == 2)]
        two = part[part["n_term_tokens"] == 2]["eb_star"]
        same = constants(data)
        same = same[(same["model"] == model) & (same["checkpoint"] == checkpoint) & (same["source"] == "controls")]
        groups = part.groupby("control_group")[["n_term_tokens", "eb_star"]].mean().sort_values("eb_star")
        told = [f"{name} EB* {eb:.2f} at {k:.1f} tokens" for name, k, eb in groups.itertuples()]
        rows.append(
            {
                "model": model,
                "size": size,
                "checkpoint": checkpoint,
                "terms": len(part),
                "k": f"{part['n_term_tokens'].min()}-{part['n_term_tokens'].max()}",
                "rho": found.rho,
                "p": found.p,
                "reason": found.reason,
                "equal": len(same),
                "groups": ", ".join(told),
                "two_token": two.mean() if len(two) else None,
                "real_two_token": real["eb_star"].mean() if len(real) else None,
            }
        )
    columns = ["model", "size", "checkpoint", "terms", "k", "rho", "p", "reason", "equal", "groups"]
    return pd.DataFrame(rows, columns=[*columns, "two_token", "real_two_token"])


def constants(data: Published) -> pd.DataFrame:
    """Every value of EB* that equals 2/k (1 - 1/H) to the six digits stored, for models whose H is known."""
    parts = []
    for source, frame in (("controls", data.controls), ("prompts", data.binding)):
        part = frame[["model", "size", "checkpoint", "term", "n_term_tokens", "eb_star"]].assign(source=source)
        parts.append(part[part["size"].isin(paper()["heads"]) & (part["n_term_tokens"] > 0)])
    rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    heads = rows["size"].map(paper()["heads"]).astype(float)
    # One head of the H of a layer looks at the token before, the others look elsewhere: 2/k less its mean over heads.
    rows["constant"] = 2 / rows["n_term_tokens"].astype(float) * (1 - 1 / heads)
    return rows[(rows["eb_star"].astype(float) - rows["constant"]).abs() < 1e-6].reset_index(drop=True)


def answers(data: Published) -> pd.DataFrame:
    """Per prompt set and size, over all checkpoints and at each: the gold option, the options predicted, the accuracy.

    guesser: accuracy of one who always chooses A. preferred: the option predicted most often, with its share.
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
    said = part["predicted_idx"].astype(int).value_counts()
    gold_at = part["gold"].astype(int).value_counts()
    # An index past D exists in no prompt of the study; it would be in no column, so it is counted under its number.
    letters = {_letter(i): int(said[i]) for i in said.index}
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
    """Every prompt of the binding records: the tokens its published span stands on, and the term's own tokens.

    Published positions count BOS at 0, which is true of the Pythia records; those of other models are not compared,
    for the files do not say what their position 0 is. records counts checkpoints of all sizes.
    """
    if tokenizer is None or data.binding.empty:
        return pd.DataFrame(columns=_SPAN_COLUMNS)
    # Terms keep their order; one prompt may have been given several spans, each is a row.
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
    # BOS shifts every position by one and changes nothing else, so the tokenizer need not know which token it is.
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
    """The characters of tokens, BOS at 0; the space that belongs to a token is shown."""
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
    """Beside every published statistic: the n it was printed with, and how many independent units the data hold."""
    columns = ["statistic", "n", "p", "terms", "prompts", "checkpoints", "runs", "note"]
    return pd.DataFrame([*_unit_pairs(data), *_unit_gains(data), *_unit_ablation(data)], columns=columns)


def _unit_pairs(data: Published) -> Iterator[list[Any]]:
    joined = pairs(data)
    for (name, size), part in joined.groupby(["set", "size"], sort=False):
        found = spearman(part["eb_star"], part["score"])
        prompts = part[["term", "prompt_template"]].drop_duplicates()
        counts: list[Any] = [part["term"].nunique(), len(prompts), part["checkpoint"].nunique(), 1]
        note = f"the same {len(prompts)} prompts at every checkpoint of one training run"
        yield [f"{name} {size}: Spearman(EB*, score)", found.n, found.p, *counts, note]
    for size, part in data.terms.groupby("size", sort=False):
        found = spearman(part["eb_star"], part["beh_avg"])
        counts = [part["term"].nunique(), None, part["checkpoint"].nunique(), 1]
        note = "behavior is one value a term and checkpoint, repeated for each of its rows"
        yield [f"term table {size!s}: Spearman(EB*, Beh)", found.n, found.p, *counts, note]


def _unit_gains(data: Published) -> Iterator[list[Any]]:
    for row in gains(data).to_dict("records"):
        part = data.few_shot[(data.few_shot["file"] == row["file"]) & (data.few_shot["shots"] == 0)]
        note = "no p is printed; both prompts of a term get the same exemplar"
        counts = [part["term"].nunique(), len(part), 1, 1]
        yield [f"{row['size']} {row['checkpoint']}: one-shot gain {row['pp']:+.1f} pp", row["n"], None, *counts, note]


def _unit_ablation(data: Published) -> Iterator[list[Any]]:
    """p of the drop under the top heads among the random sets, (b + 1) / (R + 1), where the trials are stored."""
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
