"""Where the time of bindscope's own jobs goes: cProfile over one run of each, after one that warms up."""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from pathlib import Path

import torch

#: Part -> the functions whose time it is: ("own", ...) without the functions that they call, ("all", ...) with them.
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "linear layers": ("own", ("<built-in method torch._C._nn.linear>",)),
    "heads' outputs (softmax or kernel)": ("all", ("attention.py:output", "attention.py:fused")),
    "reading attention": ("all", ("capture.py:_observe",)),
    "activation": ("own", ("<built-in method torch._C._nn.gelu>", "<built-in method torch._C._nn.silu>")),
    "softmax over the vocabulary": ("all", ("passes.py:_logprobs",)),
    "nulls and tables": ("all", ("spans.py:add", "spans.py:columns", "spans.py:prompts")),
    "tokenization": ("all", ("prepare.py:prepare",)),
}
#: The same time split by the text that is read; all of it is also inside the parts above.
CONTROLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "neutral text (previous-token scores)": ("all", ("measuring.py:previous_token_scores",)),
    "premises (PMI)": ("all", ("measuring.py:_unconditional",)),
}


def seconds(folder: Path, work: Path, job: str, threads: int) -> dict[str, float]:
    """Part -> seconds, and "whole"."""
    import ours
    from work import Work

    sys.argv[1:] = ["--model", str(folder), "--work", str(work)]
    torch.set_num_threads(threads)
    with torch.no_grad():
        run = ours.load(folder, Work.read(work))[job]
        run()
        watch = cProfile.Profile()
        begun = time.perf_counter()
        watch.runcall(run)
        whole = time.perf_counter() - begun
    stats = pstats.Stats(watch).stats  # type: ignore[attr-defined]
    by_name: dict[str, tuple[float, float]] = {}
    for (file, _, function), (_, _, own, both, _) in stats.items():
        name = function if file == "~" else f"{Path(file).name}:{function}"
        a, b = by_name.get(name, (0.0, 0.0))
        by_name[name] = a + own, b + both
    return {"whole": whole} | {
        part: sum(by_name.get(name, (0.0, 0.0))[kind == "all"] for name in names)
        for part, (kind, names) in {**PARTS, **CONTROLS}.items()
    }
