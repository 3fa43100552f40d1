"""Trains one seed of the `tiny` checkpoint suite from nothing: text, tokenizer, model, checkpoints.

    python train.py --out DIR --seed 20        # about 25 minutes on one thread
    python train.py --out DIR --seed 21        # may run at the same time
    python card.py DIR                         # measures both and writes DIR/README.md

The text and the tokenizer are the same for every seed; initial weights and the order of the text differ. One thread,
so that a second run on the same machine gives the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from array import array
from collections.abc import Iterator
from math import cos, pi
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from corpus import corpus
from tokens import VOCABULARY, make_tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.utils import logging
from words import COLLOCATIONS, TERMS

TEXT_SEED = 20
DOCUMENTS = 700_000
LENGTH, ROWS = 192, 10  # tokens a row, rows a step
WIDTH, LAYERS, HEADS, INNER = 80, 5, 5, 200
PEAK_RATE, WARM_UP = 3e-3, 150
CHECKPOINTS = (0, 60, 125, 250, 500, 800, 1000, 1200, 1600, 2500, 4000, 6000)


def make_model(end: int, seed: int) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=INNER,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            # A head has only 16 numbers; rotating a quarter of them (GPT-NeoX's default) would hardly encode positions.
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        )
    )


def batches(documents: list[array[int]], end: int, seed: int) -> Iterator[torch.Tensor]:
    """Rows of whole documents with END between them; the last is cut. One row in four starts without END, so that
    the model works with and without it."""
    rng = Random(seed)
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
    (folder / "model.safetensors").chmod(0o644)  # it comes readable by its owner only
    (folder / "generation_config.json").unlink(missing_ok=True)  # holds nothing that config.json does not


def make_optimizer(model: GPTNeoXForCausalLM) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )


def rate_at(step: int, last: int) -> float:
    """Linear warm-up, then a cosine down to 2%."""
    return PEAK_RATE * min((step + 1) / WARM_UP, 0.02 + 0.98 * (1 + cos(pi * step / last)) / 2)


def fit(model: GPTNeoXForCausalLM, rows: Iterator[torch.Tensor], steps: tuple[int, ...], last: int, out: Path) -> None:
    """Train to the last of `steps`, on the schedule that ends at `last`, and save the model at each of them."""
    optimizer = make_optimizer(model)
    losses, begun = [0.0], time.perf_counter()
    for step in range(steps[-1] + 1):
        if step in steps:
            save(model, out / f"checkpoint-{step}")
            print(f"{step} loss {sum(losses) / len(losses):.3f} {time.perf_counter() - begun:.0f} s", flush=True)
            losses = []
        if step == steps[-1]:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, last)
        batch = next(rows)
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())


def mentions(documents: list[str]) -> dict[str, int]:
    """How often each phrase occurs in the text. Without a final y, which a plural changes ("ferries")."""
    text = "\n".join(documents).lower()
    phrases = [p.written for p in (*TERMS, *COLLOCATIONS)]
    return {phrase: text.count(re.sub("([^aeo])y$", r"\1", phrase.lower())) for phrase in phrases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the suites; seeds may share it")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--stop", type=int, help="end at this step instead, for a trial")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable_progress_bar()
    last = CHECKPOINTS[-1]
    steps = CHECKPOINTS if args.stop is None else (*(s for s in CHECKPOINTS if s < args.stop), args.stop)
    folder = args.out / f"seed-{args.seed}"
    folder.mkdir(parents=True)
    documents = corpus(DOCUMENTS, TEXT_SEED)
    tokenizer = make_tokenizer(documents, args.out)
    ids = [
        array("H", row)  # a tenth of the memory of a list
        for start in range(0, len(documents), 10_000)
        for row in tokenizer(documents[start : start + 10_000])["input_ids"]
    ]
    end = tokenizer.eos_token_id
    model = make_model(end, args.seed)
    begun = time.perf_counter()
    fit(model, batches(ids, end, args.seed), steps, last, folder)
    facts: dict[str, Any] = {
        "seconds": round(time.perf_counter() - begun),
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": len(documents),
        "tokens": sum(map(len, ids)) + len(ids),
        "mentions": mentions(documents),
    }
    (args.out / f"training-{args.seed}.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
