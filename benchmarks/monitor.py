"""What watching a training run costs: time of a measurement over that of 500 training steps; used by speed.py."""

from __future__ import annotations

import tempfile
import time
from statistics import median
from typing import Any

import torch

from bindscope.checkpoints.load import load
from bindscope.checkpoints.suites import one
from bindscope.monitor import Monitor

EVERY = 500
#: Suite -> rows and tokens of a training batch, steps between two timed measurements, rounds.
RUNS = {"tiny": (16, 128, 50, 5), "smollm2-135m": (8, 256, 1, 5)}


def overhead(name: str) -> dict[str, Any]:
    """A round is some steps (AdamW, float32) and one measurement of pilot-3 with all defaults."""
    rows, length, between, rounds = RUNS[name]
    ref, suite = one(name)
    loaded = load(ref, bos=suite.bos, dtype="float32", device="cpu")
    model = loaded.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(5, int(model.config.vocab_size), (rows, length), generator=torch.Generator().manual_seed(0))
    steps: list[float] = []
    measured: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        monitor = Monitor(loaded.tokenizer, "pilot-3", folder, every=EVERY, bos=suite.bos)
        for n in range(rounds):
            for _ in range(between):
                begun = time.perf_counter()
                model(ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                steps.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            monitor(model, n * EVERY)
            measured.append(time.perf_counter() - begun)
    step, measurement = median(steps), median(measured)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": rows * length,
        "step": step,
        "measurement": measurement,
        "share": measurement / (EVERY * step),
    }
