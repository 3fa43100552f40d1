"""How often the statistics of bindscope.stats are wrong when the truth is known, and what they can see.

    python benchmarks/calibration.py | python docs/sections.py calibration simulations

Simulated studies; about five minutes on one thread. Bootstraps take 400 draws here, not 2,000, and the mixed model 500
studies, not 1,000.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bindscope.stats.compare import paired_difference, stratified_difference, wilson
from bindscope.stats.correlate import (
    Undefined,
    clustered_repeated,
    clustered_spearman,
    mixed_slope,
    repeated_measures,
    spearman,
    spearman_of_means,
)
from bindscope.stats.leadlag import lead_lag, surrogate_null, swap_test
from bindscope.stats.resample import cluster_mean
from bindscope.stats.variance import icc

Floats = NDArray[np.float64]
CHECKPOINTS, DRAWS, STUDIES, MIXED = 8, 400, 1000, 500
RISE = 1.5 * (1 - np.exp(-np.arange(CHECKPOINTS) / 2))
TIME = np.linspace(-1, 1, CHECKPOINTS)


def ar(rng: np.random.Generator, shape: tuple[int, ...], phi: float = 0.6) -> Floats:
    """Stationary AR(1) noise of variance 1 along the last axis."""
    gaps = np.abs(np.subtract.outer(np.arange(shape[-1]), np.arange(shape[-1])))
    return rng.standard_normal(shape) @ np.linalg.cholesky(phi**gaps).T


def experiment(rng: np.random.Generator, terms: int, coupling: float, rise: float = 1.0) -> tuple[Floats, Floats]:
    """EB and behavior [term, checkpoint]: term levels, a shared rise, term trends and AR(1) noise, some of it EB's."""

    def course() -> Floats:
        return 0.7 * rng.standard_normal((terms, 1)) + rise * RISE + 0.5 * rng.standard_normal((terms, 1)) * TIME

    noise, other = ar(rng, (terms, CHECKPOINTS)), ar(rng, (terms, CHECKPOINTS))
    return course() + noise, course() + other + coupling * noise


Method = Callable[[Floats, Floats, NDArray[Any], NDArray[Any]], Any]


def partialled(x: Floats, y: Floats, term: NDArray[Any], checkpoint: NDArray[Any]) -> Any:
    """Bland & Altman's r after the checkpoint means are taken off."""
    x, y = (v - (np.bincount(checkpoint, v) / np.bincount(checkpoint))[checkpoint] for v in (x, y))
    return repeated_measures(x, y, term)


COUPLING: dict[str, Method] = {
    "Spearman, pooled (published)": lambda x, y, term, checkpoint: spearman(x, y),
    "Spearman of term means": lambda x, y, term, checkpoint: spearman_of_means(x, y, term),
    "Spearman, bootstrap over terms": lambda x, y, term, checkpoint: clustered_spearman(x, y, term, draws=DRAWS),
    "Spearman within checkpoints, bootstrap over terms": lambda x, y, term, checkpoint: clustered_spearman(
        x, y, term, within=checkpoint, draws=DRAWS
    ),
    "repeated measures r": lambda x, y, term, checkpoint: repeated_measures(x, y, term),
    "repeated measures r, checkpoint partialled": partialled,
    "the same, jackknife over terms": lambda x, y, term, checkpoint: clustered_repeated(x, y, term, within=checkpoint),
    "mixed model, jackknife over terms": lambda x, y, term, checkpoint: mixed_slope(y, x, checkpoint, term),
    "mixed model, its own standard error": lambda x, y, term, checkpoint: own(mixed_slope(y, x, checkpoint, term)),
}


def own(found: Any) -> Any:
    """The slope with what the mixed model alone says about it."""
    half = 1.96 * found.se_model
    return found._replace(p=found.p_model, low=found.slope - half, high=found.slope + half)


def measured(method: Method, x: Floats, y: Floats) -> Any:
    """The method on [term, checkpoint] arrays, None where undefined."""
    term, checkpoint = (a.ravel() for a in np.indices(x.shape))
    try:
        return method(x.ravel(), y.ravel(), term, checkpoint)
    except Undefined:
        return None


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Prints a table; floats are shares in percent."""
    head = list(head)
    print("| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("| " + " | ".join(f"{100 * v:.1f}%" if isinstance(v, float) else str(v) for v in row) + " |")
    print()


def expected(method: Method, coupling: float) -> float:
    """What the method estimates: its mean over eight studies of 2,500 terms."""
    drawn = (experiment(np.random.default_rng(seed), 2500, coupling) for seed in range(8))
    return float(np.mean([measured(method, *both)[0] for both in drawn]))


def coupling_rows() -> Iterator[list[Any]]:
    """Rejections at 0.05 under no coupling, rejections and coverage under coupling, for each method."""
    worlds = [(41, 0.0, 0.0), (41, 0.0, 1.0), (41, 0.4, 1.0), (11, 0.0, 1.0), (11, 0.4, 1.0)]
    fits: list[list[Any]] = []
    truth: dict[float, float] = {}
    for name, method in COUPLING.items():
        mixed, again = name.startswith("mixed"), name.endswith("its own standard error")
        row: list[Any] = [name]
        truth = {coupling: expected(method, coupling) for coupling in (0.0, 0.4)} if not again else truth
        if mixed or "checkpoint" in name or name.startswith("the same"):
            truth[0.0] = 0.0
        for world, (terms, coupling, rise) in enumerate(worlds):
            rng = np.random.default_rng(100 + world)
            if again:
                found = [own(each) for each in fits[world]]
            else:
                drawn = (experiment(rng, terms, coupling, rise) for _ in range(MIXED if mixed else STUDIES))
                found = [each for each in (measured(method, *both) for both in drawn) if each is not None]
                fits += [found] if mixed else []
            row.append(float(np.mean([each.p < 0.05 for each in found])))
            if rise and hasattr(found[0], "low"):
                row.append(float(np.mean([each.low <= truth[coupling] <= each.high for each in found])))
            elif rise:
                row.append("")
        yield row
    lost = [MIXED - len(each) for each in fits]
    print(f"\nMixed model undefined (no convergence or no variance between terms): {lost} of {MIXED} studies.")


def runs(
    rng: np.random.Generator,
    count: int,
    *,
    shock: float = 0.0,
    noisier: float = 1.0,
    later: float = 0.0,
    lead: float = 0.0,
) -> tuple[Floats, Floats]:
    """EB and behavior [run, term, checkpoint], 41 terms: shared shocks, unequal noise, a later rise, a lead."""
    shape = (count, 41, CHECKPOINTS + 1)
    one, other = ((1 - shock) ** 0.5 * ar(rng, shape) + shock**0.5 * ar(rng, (count, 1, shape[-1])) for _ in range(2))
    other = (1 - lead**2) ** 0.5 * other
    other[..., 1:] += lead * one[..., :-1]
    curve = 1.5 * (1 - np.exp(-np.arange(CHECKPOINTS) / 2))
    delayed = 1.5 * (1 - np.exp(-np.maximum(np.arange(CHECKPOINTS) - later, 0) / 2))
    return curve + one[..., 1:], delayed + noisier * other[..., 1:]


def lead_rows() -> Iterator[list[Any]]:
    """Rejections at 0.05, one-sided, of the published binomial, the surrogate (one run) and the swap (5 runs)."""
    worlds: dict[str, dict[str, float]] = {
        "none; terms independent": {},
        "none; half of the noise shared by the run": {"shock": 0.5},
        "none; half shared, behavior three times as noisy": {"shock": 0.5, "noisier": 3.0},
        "none in the noise; behavior's shared rise comes one checkpoint later": {"shock": 0.5, "later": 1.0},
        "EB leads, r = 0.5; terms independent": {"lead": 0.5},
        "EB leads, r = 0.5; half of the noise shared": {"shock": 0.5, "lead": 0.5},
    }
    for world, (name, how) in enumerate(worlds.items()):
        rng = np.random.default_rng(200 + world)
        hits = np.zeros((STUDIES, 4))
        for k in range(STUDIES):
            eb, beh = runs(rng, 5, **how)
            published = lead_lag(eb[0], beh[0])
            surrogate = surrogate_null(eb[0], beh[0], draws=DRAWS, seed=k)
            hits[k] = published.fraction, published.p < 0.05, surrogate.p < 0.05, swap_test(eb, beh).p < 0.05
        yield [name, *(float(share) for share in hits.mean(0))]


def nested(rng: np.random.Generator, terms: int, frames: int, spread: float = 1.0) -> tuple[Floats, NDArray[Any]]:
    """Values of terms x frames with term effects, and the term of each."""
    values = spread * rng.standard_normal((terms, 1)) + rng.standard_normal((terms, frames))
    return values.ravel(), np.repeat(np.arange(terms), frames)


def matched(rng: np.random.Generator, terms: int) -> Any:
    """Real terms (mean 0.5 higher) and as many controls, in three strata of unequal means, six frames each."""
    stratum = rng.integers(0, 3, 2 * terms)
    real = np.repeat([True, False], terms)
    base, cluster = nested(rng, 2 * terms, 6)
    return stratified_difference(base + (stratum + 0.5 * real)[cluster], real[cluster], stratum[cluster], cluster)


def interval_rows() -> Iterator[list[Any]]:
    """Coverage of the other 95% intervals with 41 and with 11 terms of six frames."""

    def paired(rng: np.random.Generator, terms: int) -> Any:
        values, term = nested(rng, terms, 6)
        return paired_difference(values, 0 * values, term)

    def redrawn(rng: np.random.Generator, terms: int) -> Any:
        return cluster_mean(*nested(rng, terms, 6), draws=DRAWS)

    def alike(rng: np.random.Generator, terms: int) -> Any:
        return icc(*nested(rng, terms, 6))

    def unequal(rng: np.random.Generator, terms: int) -> Any:
        values, term = nested(rng, terms, 6)
        kept = rng.random(len(values)) < np.linspace(0.3, 1, terms)[term]
        return icc(values[kept], term[kept])

    def share(rng: np.random.Generator, terms: int) -> Any:
        return wilson(int(rng.binomial(terms, 0.7)), terms)

    cases: dict[str, tuple[Callable[[np.random.Generator, int], Any], float]] = {
        "paired_difference": (paired, 0.0),
        "resample.cluster_mean": (redrawn, 0.0),
        "stratified_difference": (matched, 0.5),
        "icc, equal groups": (alike, 0.5),
        "icc, unequal groups": (unequal, 0.5),
        "wilson, true share 0.7": (share, 0.7),
    }
    for name, (draw, truth) in cases.items():
        row: list[Any] = [name]
        for terms in (41, 11):
            rng = np.random.default_rng(300)
            found = [draw(rng, terms) for _ in range(STUDIES)]
            row.append(float(np.mean([each.low <= truth <= each.high for each in found])))
        yield row


def least(power: Callable[[float], float], grid: Floats) -> float:
    """Where power crosses 80% on the grid, by interpolation; NaN if it does not."""
    seen = np.array([power(float(size)) for size in grid])
    k = int(np.argmax(seen >= 0.8))
    if seen[k] < 0.8:
        return float("nan")
    if k == 0:
        return float(grid[0])
    return float(np.interp(0.8, seen[k - 1 : k + 1], grid[k - 1 : k + 1]))


def power_rows() -> Iterator[list[Any]]:
    """The effects that 41 terms see with power 80%: r within checkpoints, difference in EB*, lead share."""

    def noisy(rng: np.random.Generator, r: float, frames: int, seeds: int) -> Any:
        noise = (1 / frames) ** 0.5
        x, y = (ar(rng, (41, seeds, CHECKPOINTS)) for _ in range(2))
        y = r * x + (1 - r * r) ** 0.5 * y
        x, y = (v + noise * rng.standard_normal(v.shape) for v in (x, y))
        term, _, checkpoint = (a.ravel() for a in np.indices(x.shape))
        return clustered_repeated(x.ravel(), y.ravel(), term, within=checkpoint)

    def coupled(r: float, frames: int, seeds: int) -> float:
        rng = np.random.default_rng(400)
        return float(np.mean([noisy(rng, r, frames, seeds).p < 0.05 for _ in range(150)]))

    def difference(frames: int, seeds: int) -> float:
        spread = (0.05**2 + 0.10**2 / (frames * seeds)) ** 0.5 / 41**0.5
        cut = stats.t.ppf(0.975, 40)
        return least(lambda d: float(stats.nct.sf(cut, 40, d / spread)), np.linspace(0.005, 0.15, 300))

    def leading(seeds: int) -> str:
        if 2.0**-seeds > 0.05:
            return f"none (least p {2.0**-seeds:g})"

        def power(lead: float) -> float:
            rng = np.random.default_rng(401)
            drawn = (runs(rng, seeds, shock=0.5, lead=lead) for _ in range(150))
            return float(np.mean([swap_test(eb, beh).p < 0.05 for eb, beh in drawn]))

        size = least(power, np.linspace(0.1, 0.9, 9))
        eb, beh = runs(np.random.default_rng(402), 300, shock=0.5, lead=size)
        share = float(np.mean([lead_lag(x, y).fraction for x, y in zip(eb, beh, strict=True)]))
        return f"{share:.2f}"

    for seeds in (1, 3, 5, 10):
        for frames in (1, 6):
            r = least(partial(coupled, frames=frames, seeds=seeds), np.linspace(0.05, 0.5, 10))
            yield [seeds, frames, f"{r:.2f}", f"{difference(frames, seeds):.3f}", leading(seeds)]


def main() -> None:
    """Prints the tables; the words about them stand on the page."""
    began = time.perf_counter()
    print("## Coupling (C1-A)\n")
    print(
        "Both series have term levels (sd 0.7), a rise that all terms share (1.5), term trends (sd 0.5) and AR(1) noise"
    )
    print("(0.6, sd 1). Coupled: behavior takes 0.4 of EB's noise. Rejections at 0.05; coverage of the 95% interval.\n")
    markdown(
        ["method", "no rise, uncoupled: rejects", "rise, uncoupled: rejects", "covers", "coupled: rejects", "covers",
         "11 terms, uncoupled: rejects", "covers", "11 terms, coupled: rejects", "covers"],
        coupling_rows(),
    )  # fmt: skip
    print("## Precedence (C1-B)\n")
    print("41 terms; the binomial and the surrogate see one run, the swap test five. Rejections at one-sided 0.05.\n")
    markdown(["truth", "mean lead share", "binomial (published)", "surrogate_null", "swap_test"], lead_rows())
    print("## Other intervals\n")
    print("Six frames a term, term effects as large as frame effects. Coverage of the 95% interval.\n")
    markdown(["interval", "41 terms", "11 terms"], interval_rows())
    print("## Effects seen with power 80%, 41 terms\n")
    print("r: correlation of EB and behavior within term and checkpoint before measurement noise (variance 1/frames of")
    print("the signal's), clustered_repeated. EB\\*: paired difference, sd 0.05 between terms, 0.10 between frames and")
    print("seeds. Lead share: swap_test, half of the noise shared by a run; it does not depend on frames here.\n")
    markdown(["seeds", "frames", "r", "EB\\* difference", "lead share"], power_rows())
    print(f"({time.perf_counter() - began:.0f} s)", file=sys.stderr)


if __name__ == "__main__":
    main()
