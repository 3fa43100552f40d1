"""Trains the `tiny` checkpoint suite from nothing: tokenizer, model, checkpoints, measurements and model card.

    python recipes/tiny/train.py --out DIR

One thread and one seed, so that a second run on the same machine gives the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from math import cos, pi
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from corpus import COLLOCATIONS, FREQUENCY_RATIO, TERM_ORDER, corpus, surface
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from bindscope.records import Format, Prompt
from bindscope.terms.library import library
from bindscope.terms.prompts import build
from bindscope.terms.spans import find

SEED = 20
DOCUMENTS = 400_000
END = "<|endoftext|>"
VOCABULARY = 896
LENGTH, ROWS = 256, 8  # tokens a row, rows a step
PEAK_RATE, WARM_UP = 3e-3, 100
CHECKPOINTS = (0, 30, 60, 125, 250, 500, 700, 900, 1200, 1700, 2600, 4000)


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
    # Listed questions repeat the answers four times over and would use up the vocabulary; the rare terms would be
    # spelled in letters. So those are left out, and each term is counted a little more.
    sample = [document for document in documents[:60_000] if "Answer:" not in document]
    sample += [f" {surface(name)}{ending}" for name in TERM_ORDER for ending in ("", "s")] * 200
    bpe.train_from_iterator(sample, trainer)
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
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name in TERM_ORDER:
        pieces = tokenizer.tokenize(" " + surface(name))
        assert 2 <= len(pieces) <= 4, pieces
    return tokenizer


def make_model(end: int) -> GPTNeoXForCausalLM:
    torch.manual_seed(SEED)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=80,
            num_hidden_layers=5,
            num_attention_heads=5,
            intermediate_size=256,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            # 16 numbers a head are few; a quarter of them (the default of GPT-NeoX) would hardly tell positions apart.
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        )
    )


def batches(documents: list[list[int]], end: int) -> Iterator[torch.Tensor]:
    """Rows of whole documents with END between them; the last is cut. One row in four starts without END, so that
    the model works with and without it."""
    rng = Random(SEED)
    queue: list[int] = []
    rows: list[list[int]] = []
    while True:
        row = [] if rng.random() < 0.25 else [end]
        while len(row) <= LENGTH:
            if not queue:
                queue = list(range(len(documents)))
                rng.shuffle(queue)
            row += [*documents[queue.pop()], end]
        rows.append(row[: LENGTH + 1])
        if len(rows) == ROWS:
            yield torch.tensor(rows)
            rows = []


def save(model: GPTNeoXForCausalLM, folder: Path) -> None:
    """The weights in float16, which halves the package; measurements are made on what is saved here."""
    half = GPTNeoXForCausalLM(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # holds nothing that config.json does not


def train(out: Path, checkpoints: tuple[int, ...]) -> dict[str, Any]:
    documents = corpus(DOCUMENTS, SEED)
    tokenizer = make_tokenizer(documents, out)
    end = tokenizer.eos_token_id
    ids: list[list[int]] = []
    for start in range(0, len(documents), 10_000):
        ids += tokenizer(documents[start : start + 10_000])["input_ids"]
    model = make_model(end)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    last, begun = checkpoints[-1], time.perf_counter()
    losses: list[float] = []
    for step, rows in enumerate(batches(ids, end)):
        if step in checkpoints:
            save(model, out / f"checkpoint-{step}")
            print(
                f"step {step}  loss {sum(losses) / max(len(losses), 1):.3f}  {time.perf_counter() - begun:.0f} s",
                flush=True,
            )
            losses = []
        if step == last:
            break
        rate = PEAK_RATE * min((step + 1) / WARM_UP, 0.02 + 0.98 * (1 + cos(pi * step / last)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(rows[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return {
        "seconds": time.perf_counter() - begun,
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": len(documents),
        "tokens": sum(map(len, ids)) + len(ids),
        # Without a final y, which the plural changes ("ferries").
        "mentions": {
            name: sum(name.removesuffix("y") in text for text in map(str.lower, documents))
            for name in (*TERM_ORDER, *COLLOCATIONS)
        },
    }


@torch.no_grad()
def scores(model: Any, tokenizer: Any, prompts: list[Prompt]) -> torch.Tensor:
    """Mean log-probability per token of " " + choice after END and each prompt: prompts x choices."""
    pairs = [(p.text, " " + choice) for p in prompts for choice in p.choices]
    values: list[float] = []
    for start in range(0, len(pairs), 44):
        texts = [
            (tokenizer(END + text)["input_ids"], tokenizer(choice)["input_ids"])
            for text, choice in pairs[start : start + 44]
        ]
        longest = max(len(a) + len(b) for a, b in texts)
        # Padding stands behind the text, where causal attention never looks.
        rows = torch.tensor([a + b + [0] * (longest - len(a) - len(b)) for a, b in texts])
        logs = model(rows[:, :-1], use_cache=False).logits.log_softmax(-1).gather(-1, rows[:, 1:, None])[..., 0]
        values += [logs[i, len(a) - 1 : len(a) + len(b) - 1].mean().item() for i, (a, b) in enumerate(texts)]
    return torch.tensor(values).view(len(prompts), -1)


@torch.no_grad()
def binding(model: Any, tokenizer: Any, prompts: list[Prompt]) -> float:
    """EB*, mean over the prompts: the largest lead of a head over the mean head of its layer in the attention from
    later to earlier tokens of the term."""
    values = []
    for prompt in prompts:
        text = END + prompt.text
        coded = tokenizer(text, return_offsets_mapping=True)
        first, last = find(text, prompt.term, prompt.aliases)[0]
        span = [i for i, (a, b) in enumerate(coded["offset_mapping"]) if a < last and b > first]
        layers = model(torch.tensor([coded["input_ids"]]), output_attentions=True, use_cache=False).attentions
        pairs = [(i, j) for n, i in enumerate(span) for j in span[:n]]
        bsi = torch.stack([torch.stack([a[0, :, i, j] for i, j in pairs]).mean(0) for a in layers])
        values.append((bsi.max(1).values - bsi.mean(1)).max().item())
    return sum(values) / len(values)


def measure(out: Path, checkpoints: tuple[int, ...]) -> list[dict[str, Any]]:
    """Recognition and binding of the saved checkpoints on the library's own prompts."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    terms = library().select(["set-A", "set-B"])
    formats: tuple[Format, ...] = ("listed", "cloze")
    asked = {form: [p for p in build(terms, form) if p.task == "recognition"] for form in formats}
    table = []
    for step in checkpoints:
        # "eager" is the implementation that returns attention.
        model = AutoModelForCausalLM.from_pretrained(
            out / f"checkpoint-{step}", dtype=torch.float32, attn_implementation="eager"
        ).eval()
        row: dict[str, Any] = {"step": step, "binding": binding(model, tokenizer, asked["listed"]), "terms": {}}
        for form, prompts in asked.items():
            best = scores(model, tokenizer, prompts).argmax(1).tolist()
            right = [(p.term, b == p.answer) for b, p in zip(best, prompts, strict=True)]
            row[form] = sum(r for _, r in right) / len(right)
            if form == "listed":
                by_term = {name: [r for t, r in right if t == name] for name in TERM_ORDER}
                row["terms"] = {name: sum(r) / len(r) for name, r in by_term.items()}
        table.append(row)
        print(
            f"step {step}  listed {row['listed']:.3f}  cloze {row['cloze']:.3f}  EB* {row['binding']:.4f}  "
            + " ".join(f"{v:.2f}" for v in row["terms"].values()),
            flush=True,
        )
    return table


def card(facts: dict[str, Any], table: list[dict[str, Any]]) -> str:
    """The model card, from what was counted and measured in this run."""
    steps = [row["step"] for row in table]
    overall = "\n".join(f"| {r['step']} | {r['listed']:.3f} | {r['cloze']:.3f} | {r['binding']:.3f} |" for r in table)
    by_term = "\n".join(
        f"| {name} | {facts['mentions'][name]} | " + " | ".join(f"{r['terms'][name]:.2f}" for r in table) + " |"
        for name in TERM_ORDER
    )
    neutral = ", ".join(f"{name} ({facts['mentions'][name]})" for name in COLLOCATIONS)
    return f"""# tiny: a checkpoint suite for trying things out

A GPT-NeoX language model of {facts["parameters"]:,} parameters (5 layers, 5 heads, width 80, tied embeddings), saved
at {len(table)} points of its training from step 0 to step {steps[-1]}. It was trained from random weights by
`recipes/tiny/train.py`; nothing was taken from another model. Weights are stored in float16.

**For:** seeing every part of bindscope work offline in minutes, tests, examples, checking new measures on a model
whose training text is known to the word. **Not for:** any statement about language models in general, about
accessibility, or as a source of advice. It has met only some hundred words, in the
sentences of one small grammar.

## Training

- Text: {facts["documents"]:,} short documents ({facts["tokens"]:,} tokens) generated with seed {SEED} by
  `recipes/tiny/corpus.py`. The facts are the right answers of the term library (11 terms, 5 kinds of question each),
  told in many wordings, as statements and as questions, half of them with a list of options. The rest are
  sentences with neutral collocations that carry no facts, and filler that uses the words of both apart.
- The library's own stems and openings were kept out of the text, in any letter case, and the recipe checks that.
  The *answers* were in it, and the trained wordings are close to the stems in kind. So recognition here means: facts
  that were taught are found under wordings that were not. It is no test of knowledge beyond the text.
- The most frequent term is mentioned about {FREQUENCY_RATIO:.0f} times as often as the least frequent.
- Tokens: byte-level BPE, {VOCABULARY} entries, trained on the same text with the terms weighted up, so that each
  term has two to four tokens. `{END}` starts and ends documents. Suites are run with it in front (`bos: on`).
- {steps[-1]} steps of {ROWS} rows of {LENGTH} tokens
  ({steps[-1] * ROWS * LENGTH / 1e6:.1f} million tokens in all, so not every document was reached), AdamW,
  cosine rate from {PEAK_RATE} after {WARM_UP} steps, one CPU thread, {facts["seconds"] / 60:.0f} minutes.
  Positions beyond {LENGTH} were never trained.
- The steps to save were chosen after a short trial, to lie close together where recognition rises.

## Measured

On the saved float16 weights read as float32, with `{END}` in front, by mean log-probability per token of a choice.
Listed: 220 prompts (55 questions, each with its options in four rotations). Cloze: the 55 stems alone. Chance is 0.25.
The prompts of one question are alike, so differences of 0.1 near chance mean nothing. EB*: mean over the listed
prompts of the largest lead (over layers) of a head over the mean head in attention within the term. Nothing was tuned
for it.

| step | listed | cloze | EB* |
|---:|---:|---:|---:|
{overall}

Listed accuracy by term (20 prompts each), most frequent term first:

| term | documents of the text that mention it | {" | ".join(str(s) for s in steps)} |
|---|---:|{"---:|" * len(steps)}
{by_term}

Collocations without facts, with the number of documents that mention them: {neutral}.

## Files

`checkpoint-N/` holds config.json and model.safetensors of step N; the tokenizer is in the root.
To make the suite again: `python recipes/tiny/train.py --out DIR`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="new folder of the suite")
    parser.add_argument("--stop", type=int, help="end at this step instead, for a trial")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()
    steps = CHECKPOINTS if args.stop is None else (*(s for s in CHECKPOINTS if s < args.stop), args.stop)
    args.out.mkdir(parents=True)
    facts = train(args.out, steps)
    table = measure(args.out, steps)
    (args.out / "README.md").write_text(card(facts, table), encoding="utf-8")


if __name__ == "__main__":
    main()
