"""What the chain is worth: simulated spines, the chain's vertebrae against plain peaks over a threshold.

Prints a line for each kind of spine: bodies found, false points a spine, whole spines right, of the chain
and of the peaks at the threshold that is best for them, then how often a scan without a spine gets one. A
minute:

    python -m benchmarks.trial_chain
"""

from __future__ import annotations

import time

import numpy as np

from tests.localisation.simulated_spines import (
    candidates_at,
    draw_candidates,
    draw_seen,
    draw_spine,
    level_votes,
)
from utils.localisation.chain import chain_of

SPINES = 100
THRESHOLDS = np.linspace(0.2, 0.7, 11)
KINDS = {
    "all": {},
    "steep kyphosis, 15 mm steps": {"count": 12, "first": 3, "scale": 0.78, "curve": 2.3},
    "scoliosis, Cobb 80 degrees": {"cobb_degrees": 80.0},
    "weak heat": {},
    "false peaks as high": {},
    "no levels": {},
}
PEAKS = {"weak heat": {"heat": (9, 4)}, "false peaks as high": {"false_heat": (15, 3)}}


def counts(chosen: np.ndarray, bodies: int) -> np.ndarray:
    """Give bodies found, points that are none, and whether nothing is wrong."""
    right = len(set(chosen[chosen >= 0].tolist()))
    return np.array([right, len(chosen) - right, right == bodies and len(chosen) == bodies])


def measure(kind: str, seed: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Give the number of bodies, the counts of the chain, and those of the peaks over every threshold."""
    rng = np.random.default_rng(seed)
    spine = draw_spine(rng, **KINDS[kind])
    candidates, which = draw_candidates(spine, rng, **PEAKS.get(kind, {}))
    if kind == "no levels":
        candidates = candidates_at(candidates.points_mm, candidates.heat, seen=candidates.vertebra_log_odds)
    chain = chain_of(candidates)
    distance = np.linalg.norm(candidates.points_mm[None] - chain.candidates.points_mm[:, None], axis=2)
    of_chain = which[distance.argmin(axis=1)] if chain.has_spine else np.zeros(0, int)
    shown = int((which >= 0).sum())
    plain = [counts(which[candidates.heat > threshold], shown) for threshold in THRESHOLDS]
    return shown, counts(of_chain, shown), np.array(plain)


def random_scan(seed: int) -> bool:
    """Say whether peaks at random places, of the heat of false ones, are taken for a spine."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 15))
    points, heat = rng.uniform(0, [300, 250, 400], (count, 3)), rng.beta(2.2, 5, count)
    votes, seen = level_votes(rng.integers(1, 27, count), rng), draw_seen(rng, np.full(count, 2))
    return chain_of(candidates_at(points, heat, votes, seen=seen)).has_spine


def main() -> None:
    """Measure, and print."""
    for kind in KINDS:
        begin = time.perf_counter()
        shown, chain, plain = zip(*(measure(kind, seed) for seed in range(SPINES)))
        bodies, chain, plain = sum(shown), np.sum(chain, axis=0), np.sum(plain, axis=0)
        best = plain[np.argmax(plain[:, 0] - plain[:, 1])]
        words = [
            f"{c[0] / bodies:.3f} found, {c[1] / SPINES:.2f} false, {c[2]:3d} whole" for c in (chain, best)
        ]
        took = (time.perf_counter() - begin) / SPINES
        print(f"{kind:28s} chain {words[0]} | peaks {words[1]} | {1000 * took:.0f} ms", flush=True)
    print(f"spine where there is none: {sum(map(random_scan, range(SPINES)))} of {SPINES}")


if __name__ == "__main__":
    main()
