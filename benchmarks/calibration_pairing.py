"""How often the statistics of recombined pairings are wrong when the truth is known, and what they can see.

    python benchmarks/calibration_pairing.py | python docs/sections.py calibration pairings

1,000 simulated grids a cell, 999 permutations each; ten minutes on one thread of a busy machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from calibration import Floats, markdown
from scipy import stats

from bindscope.stats.grid import Grid
from bindscope.stats.pairing import PairingTest, TermIntervals, jackknife_by_term, pairing_test, pooled

GRIDS, R, SIZES, EFFECTS = 1000, 999, (8, 16, 24), (0.25, 0.5, 1, 2)


@dataclass(frozen=True)
class World:
    """What the grids are like.

    shared: share of the terms that take a row of another term, and of those that take a column.
    left_out: share of the cells without a term that are left out.
    heavy: all effects have the tails of t with 2 degrees of freedom instead of the normal ones.
    layers: number of layers; the noise of two layers correlates by 0.5.
    """

    name: str
    shared: float = 0.0
    left_out: float = 0.0
    heavy: bool = False
    layers: int = 1


NORMAL = World("normal")
HEAVY = World("heavy tails, 10% left out", left_out=0.1, heavy=True)
EIGHTH = World("the same, an eighth shared", shared=0.125, left_out=0.1, heavy=True)
QUARTER = World("the same, a quarter shared", shared=0.25, left_out=0.1, heavy=True)
LAYERED = World("the same, a quarter shared, six layers", shared=0.25, left_out=0.1, heavy=True, layers=6)


def grid(rng: np.random.Generator, world: World, n: int, effect: float = 0.0, spread: float = 0.0) -> Grid:
    """n terms; row and column effects three times the noise; each term adds effect x (1 + spread x normal)."""
    shared = round(world.shared * n)
    size = n - shared
    while True:
        rows, columns = (np.r_[np.arange(size), rng.integers(0, size, shared)] for _ in range(2))
        columns = rng.permutation(columns)
        if len(np.unique(rows * size + columns)) == n:
            break
    free = np.setdiff1d(np.arange(size * size), rows * size + columns)
    out = np.zeros(size * size, dtype=bool)
    out[rng.choice(free, round(world.left_out * len(free)), replace=False)] = True

    def effects(*shape: int) -> Floats:
        return rng.standard_t(2, shape) if world.heavy else rng.standard_normal(shape)

    noise = effects(size, size, 1)
    if world.layers > 1:
        noise = 0.5**0.5 * (noise + effects(size, size, world.layers))
    M = 3 * effects(size, 1, 1) + 3 * effects(1, size, 1) + noise
    M[rows, columns] += effect * (1 + spread * rng.standard_normal((n, 1)))
    return Grid(M[..., 0] if world.layers == 1 else M, rows, columns, out.reshape(size, size))


def tests_of(world: World, n: int, effect: float) -> list[PairingTest]:
    """The test of each simulated grid."""
    rng = np.random.default_rng(500 + n)
    drawn = (grid(rng, world, n, effect) for _ in range(GRIDS))
    return [pairing_test(each.M, each.rows, each.cols, each.left_out, R=R, seed=k) for k, each in enumerate(drawn)]


def calibrated(tests: list[PairingTest]) -> list[Any]:
    """Rejections at 0.05, one-sided and two-sided, and the p of Kolmogorov and Smirnov that p is uniform."""
    one, two = (np.array([getattr(test, name) for test in tests]) for name in ("p_greater", "p_two_sided"))
    return [float((one <= 0.05).mean()), float((two <= 0.05).mean()), f"{stats.kstest(one, 'uniform').pvalue:.2f}"]


def null_rows() -> Iterator[list[Any]]:
    """The test where nothing is paired."""
    for world in (NORMAL, HEAVY, EIGHTH, QUARTER, LAYERED):
        for n in SIZES:
            yield [world.name, n, *calibrated(tests_of(world, n, 0.0))]


def covered(found: list[TermIntervals], truths: dict[str, float]) -> list[Any]:
    """How often each named interval covers its truth, of those that there are."""
    out: list[Any] = []
    for name, truth in truths.items():
        intervals = [getattr(each, name) for each in found if not getattr(each, name).reason]
        out.append(float(np.mean([each.low <= truth <= each.high for each in intervals])) if intervals else "none")
    return out


def interval_rows() -> Iterator[list[Any]]:
    """Coverage where nothing is paired, and where terms add 1 (sd 0.5 between terms)."""
    truths = {0.0: {"excess": 0.0, "interaction": 0.0, "percentile": 0.5}, 1.0: {"excess": 1.0, "interaction": 1.0}}
    for world in (NORMAL, HEAVY, EIGHTH, QUARTER):
        for n in SIZES:
            row: list[Any] = [world.name, n]
            for effect, truth in truths.items():
                rng = np.random.default_rng(700 + n)
                drawn = (grid(rng, world, n, effect, 0.5) for _ in range(GRIDS))
                found = [jackknife_by_term(each.M, each.rows, each.cols, each.left_out) for each in drawn]
                row += covered(found, truth)
            yield row


def pooled_row() -> list[Any]:
    """Grids of 8 and 16 terms pooled, the second ten times as large: the test, then coverage."""
    rng = np.random.default_rng(600)
    found = []
    for k in range(GRIDS):
        small, large = grid(rng, EIGHTH, 8), grid(rng, EIGHTH, 16)
        found.append(pooled([small, replace(large, M=10 * np.asarray(large.M))], R, k))
    truth = {"excess": 0.0, "interaction": 0.0, "percentile": 0.5}
    return [*calibrated([each.test for each in found]), *covered([each.intervals for each in found], truth)]


def power_rows() -> Iterator[list[Any]]:
    """Rejections at one-sided 0.05 where every term adds the same."""
    for world in (NORMAL, QUARTER, LAYERED):
        name = world.name.replace("the same", HEAVY.name)
        for n in SIZES:
            hits = [np.mean([test.p_greater <= 0.05 for test in tests_of(world, n, size)]) for size in EFFECTS]
            yield [name, n, *map(float, hits)]


def main() -> None:
    """Prints the tables; the words about them stand on the page."""
    began = time.perf_counter()
    print("## Recombined pairings\n")
    print("Row and column effects have three times the scale of the noise. *Heavy tails*: all are t with 2 degrees of")
    print(
        "freedom. *Shared*: that part of the terms takes the row of another term, and as many the column. Rejections of"
    )
    print("`pairing_test` at 0.05 where nothing is paired; KS: p that its one-sided p is uniform.\n")
    markdown(["grids", "terms", "one-sided", "two-sided", "KS"], null_rows())
    print(
        "Coverage of the 95% intervals of `jackknife_by_term`; *none*: fewer than six units. *Paired*: terms add 1 on"
    )
    print("average, with a standard deviation of 0.5 between terms.\n")
    markdown(
        ["grids", "terms", "excess", "interaction", "percentile", "paired: excess", "paired: interaction"],
        interval_rows(),
    )
    print("`pooled`, a grid of 8 and one of 16 terms with ten times the scale; an eighth shared, nothing paired:\n")
    heads = ["one-sided", "two-sided", "KS", "excess covers", "interaction covers", "percentile covers"]
    markdown(["grids", *heads], [["pooled", *pooled_row()]])
    print("Power of `pairing_test`, one-sided, where each term adds so many scales of the noise:\n")
    markdown(["grids", "terms", *map(str, EFFECTS)], power_rows())
    print(f"({time.perf_counter() - began:.0f} s)", file=sys.stderr)


if __name__ == "__main__":
    main()
