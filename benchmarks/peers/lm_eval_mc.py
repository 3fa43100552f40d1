"""lm-evaluation-harness, HFLM.loglikelihood: `recognition` at batch 16 and `recognition_1` at batch 1.

Contexts and continuations are texts (https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/model_guide.md).
Where the prompts begin with BOS and the tokenizer adds none, the text of BOS is put in front. Before anything is
measured, the tokens are compared with those of the other programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from work import Row, Work
from worker import Job, serve


def context(lm: HFLM, row: Row) -> str:
    """The text of a prompt that this model encodes as the row's ids."""
    bos = lm.tokenizer.bos_token
    for text in (row.text, f"{bos}{row.text}"):
        pairs = [lm._encode_pair(text, choice) for choice in row.choice_texts]
        if pairs == [(list(row.ids), list(choice)) for choice in row.choices]:
            return text
    raise ValueError(f"lm-eval encodes prompt {row.id!r} with its choices as other tokens than the work file has")


def recognition(lm: HFLM, requests: list[Instance], rows: int) -> Mapping[str, np.ndarray]:
    sums = [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    return {"logprob": np.array(sums).reshape(rows, -1)}


def load(folder: Path, work: Work) -> Mapping[str, Job]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    by_size = {n: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=n, device="cpu") for n in (1, 16)}
    pairs = [(context(by_size[1], row), choice) for row in work.recognition for choice in row.choice_texts]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return {
        "recognition": partial(recognition, by_size[16], requests, len(work.recognition)),
        "recognition_1": partial(recognition, by_size[1], requests, len(work.recognition)),
    }


if __name__ == "__main__":
    serve(load, "lm-eval", "transformers")
