"""How many sets of heads `conditions.run` ablates in a second, compared with the simple loop.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py > ablation.md     # docs/performance.md has a part of its table

Two models of GPT-2 small's and Pythia-160M's shape with random weights, float32, one thread; about five minutes.
--parts sets how many of the eight parts of the questions each model is asked, --conditions how many sets run together.
The tokenizer is the one named by --tokenizer, else a small one trained on the questions themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from time import process_time as clock
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from byte_pairs import trained_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from bindscope.checkpoints.tokenizer import tokenizer_by_name
from bindscope.engine import conditions
from bindscope.engine.attention import during, hooked
from bindscope.engine.capture import TextInput
from bindscope.engine.edits import mask, replacing
from bindscope.engine.passes import pack
from bindscope.engine.trunk import layers
from bindscope.measures.head_sets import sets
from bindscope.prompts.build import build
from bindscope.prompts.library import library
from bindscope.prompts.spans import continuation, encode
from bindscope.records import Ablation, Head, Prompt

LAYERS, PARTS = 12, 8
#: Where the four top heads sit: two in each of two layers.
PLACES = {"low": (0, 1), "middle": (5, 6), "high": (9, 10)}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2 small": ("gpt2", {"vocab_size": 50257}),
    "Pythia-160M": (
        "gpt_neox",
        {
            "vocab_size": 50304, "hidden_size": 768, "num_hidden_layers": LAYERS, "num_attention_heads": 12,
            "intermediate_size": 3072, "max_position_embeddings": 2048,
        },
    ),
}  # fmt: skip


def shaped(name: str) -> PreTrainedModel:
    """Random weights, large enough that taking heads out is seen in every score."""
    kind, config = SHAPES[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05)
    return model


def questions(words: str) -> tuple[list[TextInput], str]:
    """One listed question for each of the 41 terms, its kind another from term to term; and which tokenizer."""
    asked: dict[str, list[Prompt]] = {}
    for prompt in build(library().select("a11y-41"), "listed", "given"):
        if prompt.task == "recognition":
            asked.setdefault(prompt.term, []).append(prompt)
    chosen = [mine[n % len(mine)] for n, mine in enumerate(asked.values())]
    there = Path(words).is_file()
    tok = tokenizer_by_name(words) if there else trained_tokenizer([p.text for p in chosen], 4000)
    rows = []
    for prompt in chosen:
        encoded = encode(tok, prompt.text, "off")
        rows.append(TextInput(encoded.ids, tuple(continuation(tok, encoded, choice) for choice in prompt.choices)))
    return rows, Path(words).parent.name if there else "trained on the questions"


def drawn(place: tuple[int, int], n: int) -> list[tuple[Head, ...]]:
    """Random sets as a run draws them, for top heads in these layers."""
    values = np.zeros((LAYERS, 12))
    values[list(place), :2] = 1
    return [s.heads for s in sets({"bsi": values}, Ablation(random=n), 12) if s.name == "random"]


@torch.inference_mode()
def naive(model: PreTrainedModel, rows: list[TextInput], heads: tuple[Head, ...]) -> list[conditions.Logs]:
    """One condition: set the edit, one plain forward pass per prompt and choice."""
    out = []
    with during(edit=replacing(mask([heads], 1, 12, model.device), None)):
        for row in rows:
            mine = []
            for tokens in row.continuations:
                logits = model(torch.tensor([row.ids + tokens]), use_cache=False).logits[0]
                logs = logits[len(row.ids) - 1 : -1].log_softmax(-1)
                mine.append(logs[range(len(tokens)), list(tokens)].numpy())
            out.append(mine)
    return out


def largest(a: list[conditions.Logs], b: list[conditions.Logs]) -> float:
    return max(float(np.abs(x - y).max()) for i, j in zip(a, b, strict=True) for x, y in zip(i, j, strict=True))


def share(model: PreTrainedModel, rows: list[TextInput], lowest: int) -> tuple[float, float]:
    """The least work of a condition as a share of the naive loop's: in the layers alone, and with the vocabulary, whose
    part cannot be shared (a multiplication per weight and token; attention scores, below 3%, are left out)."""
    _, plain, packed, reads = counts(rows)
    layer = sum(p.numel() for p in layers(model)[0].parameters() if p.dim() > 1)
    vocabulary = model.get_output_embeddings().weight.numel()
    above = (LAYERS - lowest) * layer * packed
    whole = plain * (LAYERS * layer + vocabulary)
    return above / (LAYERS * layer * plain), (above + reads * vocabulary) / whole


def counts(rows: list[TextInput]) -> tuple[int, int, int, int]:
    """Forward passes and tokens of the naive loop; tokens of the packed rows, and those whose logits are read."""
    passes = sum(len(row.continuations) for row in rows)
    plain = sum(len(row.ids) + len(c) for row in rows for c in row.continuations)
    return passes, plain, sum(map(len, rows)), len(pack(rows, "cpu").reads)


@contextmanager
def timed(model: PreTrainedModel) -> Iterator[dict[str, float]]:
    """Seconds within this block: shared pass below the edits, and of the edited passes layers and vocabulary."""
    spent = dict.fromkeys(("shared pass", "edited layers", "vocabulary"), 0.0)
    now, plain, started = "shared pass", conditions.forward, [0.0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal now
        now = "edited" if kwargs else "shared pass"
        start = clock()
        try:  # the shared pass ends by an exception behind the highest layer that is wanted
            return plain(*args, **kwargs)
        finally:
            if now == "shared pass":
                spent[now] += clock() - start

    def before(*_: Any) -> None:
        started[0] = clock()

    def after(name: str) -> Any:
        def hook(*_: Any) -> None:
            if now == "edited":
                spent[name] += clock() - started[0]

        return hook

    modules = [(m, "edited layers") for m in layers(model)] + [(model.get_output_embeddings(), "vocabulary")]
    handles = [h for m, n in modules for h in (m.register_forward_pre_hook(before), m.register_forward_hook(after(n)))]
    try:
        with patch.object(conditions, "forward", forward):
            yield spent
    finally:
        for handle in handles:
            handle.remove()


def compare(name: str, parts: list[list[TextInput]], n: int) -> tuple[float, float, list[str], list[str]]:
    """Largest difference, smallest effect of a set, the rows of the table and where the time goes."""
    model = shaped(name)
    seconds: dict[str, tuple[list[float], list[float]]] = {place: ([], []) for place in PLACES}
    worst, effect, table, spent = 0.0, np.inf, [], []
    with hooked(model):
        naive(model, parts[0][:1], ())
        conditions.run(model, parts[0][:1], [()], "zero", conditions.EditValues())
        for turn, rows in enumerate(parts):
            for place, where in PLACES.items():
                chosen = drawn(where, n)
                start = clock()
                slow = naive(model, rows, chosen[turn % n])
                middle = clock()
                with timed(model) as mine:
                    fast = conditions.run(model, rows, chosen, "zero", conditions.EditValues())
                end = clock()
                seconds[place][0].append((middle - start) / len(rows))
                seconds[place][1].append((end - middle) / n / len(rows))
                worst = max(worst, largest(slow, fast[turn % n]))
                effect = min([effect, *(largest(fast[0], other) for other in fast[1:])])
                if turn == len(parts) - 1:
                    mine["rest"] = end - middle - sum(mine.values())
                    split = ", ".join(f"{what} {100 * s / (end - middle):.0f}%" for what, s in mine.items())
                    spent.append(f"- {name}, {place}: {split}")
    asked = [row for part in parts for row in part]
    _, plain, packed, _ = counts(asked)
    for place, (slow_s, fast_s) in seconds.items():
        a, b, lowest = median(slow_s), median(fast_s), PLACES[place][0]
        ratio = median(x / y for x, y in zip(slow_s, fast_s, strict=True))
        in_layers, whole = share(model, asked, lowest)
        table.append(
            f"| {name} | {place}, {PLACES[place][0]}-{PLACES[place][1]} | {41 * a:.1f} | {41 * b:.1f} | {ratio:.1f} "
            f"({min(x / y for x, y in zip(slow_s, fast_s, strict=True)):.1f}) | {lowest} of {LAYERS} | "
            f"{plain} / {packed} | {LAYERS - lowest}/{LAYERS} x {packed / plain:.3f} = {in_layers:.3f} | "
            f"{whole:.3f} = 1/{1 / whole:.1f} | {b / a:.3f} | {b / a / whole:.2f} |"
        )
    return worst, effect, table, spent


def main() -> None:
    parser = argparse.ArgumentParser()
    shared = Path(__file__).parents[2] / "shared/tokenizers/neox/tokenizer.json"
    parser.add_argument("--tokenizer", default=str(shared))
    parser.add_argument("--conditions", type=int, default=8)
    parser.add_argument("--parts", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = perf_counter()
    rows, words = questions(args.tokenizer)
    parts = [rows[i::PARTS] for i in range(PARTS)]
    passes, plain, packed, reads = counts(rows)
    results = []
    for m, name in enumerate(SHAPES):  # the second model goes on where the first stopped: together all questions
        mine = [parts[(m * args.parts + i) % PARTS] for i in range(args.parts)]
        results.append((name, *compare(name, mine, args.conditions)))
    print("# Speed of head ablation\n")
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    print(f"{versions}, CPU, one thread, float32; random weights; tokenizer: {words}.")
    print("Written by `python benchmarks/ablation.py`.\n")
    print(f"The {len(rows)} listed questions of a11y-41, one of each term, with 4 choices: {passes} forward passes and")
    print(f"{plain} tokens for a condition in the naive loop; {packed} packed tokens, {reads} of them read.")
    print(f"Random sets of 4 heads matched by layer, {args.conditions} in a run; naive: one of them, under the same")
    print(f"edit, unpacked and unbatched. Interleaved; medians of {args.parts} repetitions, each on another eighth")
    print(f"of the questions, in processor seconds, scaled to {len(rows)}. In brackets the lowest ratio seen.\n")
    for name, worst, effect, *_ in results:
        print(f"{name}: largest difference of a token's log P {worst:.1e}; two sets differ by {effect:.1e} or more.\n")
    print("| model | heads in layers | naive, s per condition | run, s per condition | times faster | layers shared "
          "| tokens naive / packed | floor in layers | with vocabulary | of naive | of the floor |")  # fmt: skip
    print("|---|---|" + "---:|" * 9)
    print("\n".join(line for *_, table, _ in results for line in table))
    print("\nThe floor: layers above the lowest edit x packed tokens, and the vocabulary where it is read, over the")
    print("same counts of the naive loop. It leaves out the shared pass, which more conditions would thin out. A run")
    print("can come out below it: batches use the processor better than the naive loop's single short rows.\n")
    print("Where a run's time goes:\n")
    print("\n".join(line for *_, spent in results for line in spent))
    print(f"\nIn all {perf_counter() - begun:.0f} s.")


if __name__ == "__main__":
    main()
