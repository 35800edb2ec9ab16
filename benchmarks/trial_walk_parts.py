"""Trial of the walk along known centres: what does a second look at a vertebra bring, and what the check?

The walk is taken as it is, with a second look, and without the check that a prediction holds its own centre
best, from centres that stand for those of a localisation: known ones, moved by chance. The second look, which
the walk once had, moves a patch once, to the centre of mass of what the first one found.

Reads   `experiments/real/centres.json` and the CTs and masks that it names, below ../shared; the networks
        shipped, or those of --work-dir. Phantoms are made
Writes  nothing

    python benchmarks/trial_walk_parts.py --phantoms 10 --jitter-mm 3

Takes five seconds a scan on two cores. Results: `docs/design.md`, "What a second look brings".
A column in the table, over all scans:

- `own`: centres with a vertebra of their own, of all: most of the voxels within 5 mm of the centre that
  are of a vertebra are of one that no other centre has; `cut` the same of those that the scan's border cuts
- `Dice`: mean over the vertebrae of a mask, on the working grid, and how many; a missed one counts 0
- `calls`: calls of the network a centre
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402

from utils.imaging.formats import read_scan  # noqa: E402
from utils.imaging.grids import transform_points  # noqa: E402
from utils.imaging.intensities import normalise_hu  # noqa: E402
from utils.imaging.nifti import read_mask  # noqa: E402
from utils.imaging.resampling import resample_labels, working_ct  # noqa: E402
from utils.imaging.volume import Volume  # noqa: E402
from utils.prediction.networks import load_networks  # noqa: E402
from utils.prediction.one_scan import walk_settings  # noqa: E402
from utils.settings import InferenceSettings  # noqa: E402
from utils.synthetic.phantom.make import make_phantom  # noqa: E402
from utils.verse.labels import code_of_name, rank_of_code  # noqa: E402
from utils.walk import along  # noqa: E402
from utils.walk.look import PatchReader  # noqa: E402
from utils.walk.records import FoundVertebra, PredictPatch, WalkResult, WalkSettings  # noqa: E402

SHARED = PROJECT.parent / "shared"
FACTS = PROJECT / "experiments" / "real" / "centres.json"
STYLES = ("2019", "2020", "2020-ax", "2020-sag")
OWN_MM = 5.0
#: A second look is taken if what was found lies further from where it should.
MOVE_MM = 3.0


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan on the working grid, its centres from the top down, and its mask where there is one."""

    name: str
    ct: Volume
    codes: tuple[int, ...]
    centres: np.ndarray
    cut: frozenset[int]
    mask: np.ndarray | None


def real_scans(facts: Path, spacing_mm: float, names: Sequence[str]) -> Iterator[Scan]:
    """Give the scans of a file of facts that show vertebrae; those named, or all."""
    for name, known in json.loads(facts.read_text())["scans"].items():
        if not known["vertebrae"] or (names and name not in names):
            continue
        points = {code_of_name(level): point for level, point in known["vertebrae"].items()}
        ct = working_ct(read_scan(SHARED / known["ct"]), spacing_mm)
        masks = [SHARED / path for path in known.get("others", ()) if path.endswith("_seg-vert_msk.nii.gz")]
        mask = resample_labels(read_mask(masks[0]), ct.grid).data if masks else None
        yield scan_of(name, ct, points, frozenset(map(code_of_name, known["cut"])), mask)


def phantoms(count: int, spacing_mm: float) -> Iterator[Scan]:
    """Give phantoms, on which the networks were not trained."""
    for seed in range(5000, 5000 + count):
        made = make_phantom(seed, style=STYLES[seed % len(STYLES)])
        ct = working_ct(Volume(made.ct, made.affine), spacing_mm)
        mask = resample_labels(Volume(made.mask, made.affine), ct.grid).data
        yield scan_of(f"phantom {seed}", ct, dict(made.points), frozenset(), mask)


def scan_of(
    name: str, ct: Volume, points: dict[int, Sequence[float]], cut: frozenset[int], mask: np.ndarray | None
) -> Scan:
    """Put a scan together; points in world mm by VerSe code."""
    codes = tuple(sorted(points, key=rank_of_code))
    centres = transform_points(np.array([points[code] for code in codes], float), np.eye(4), ct.affine)
    return Scan(name, Volume(normalise_hu(ct.data), ct.affine), codes, centres, cut, mask)


def labels_at(labels: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
    """Give the label that most labelled voxels around each centre have; 0 where there is none."""
    grid = np.indices(labels.shape, sparse=True)
    found = []
    for centre in centres:
        near = sum((axis - at) ** 2 for axis, at in zip(grid, centre)) <= radius**2
        votes = np.bincount(labels[near & (labels > 0)], minlength=1)
        found.append(int(np.argmax(votes)) if votes.any() else 0)
    return np.array(found)


def scores(scan: Scan, result: WalkResult) -> dict[str, list[float]]:
    """Give the numbers of one walk, each a list to be pooled over scans."""
    labels = result.labels.data
    at = labels_at(labels, scan.centres, OWN_MM / float(result.labels.spacing_mm[0]))
    own = [bool(label) and np.count_nonzero(at == label) == 1 for label in at]
    dice = []
    for label, code in zip(at, scan.codes):
        true = np.zeros(labels.shape, bool) if scan.mask is None else scan.mask == code
        found = (labels == label) & (label > 0)
        if true.any():
            voxels = np.count_nonzero(true) + np.count_nonzero(found)
            dice.append(2 * np.count_nonzero(true & found) / voxels)
    whole = [is_own for is_own, code in zip(own, scan.codes) if code not in scan.cut]
    cut = [is_own for is_own, code in zip(own, scan.codes) if code in scan.cut]
    calls = [result.calls / len(scan.centres)]
    return {"own": whole, "cut": cut, "Dice": dice, "calls": calls}


def remembering(predict: PredictPatch) -> PredictPatch:
    """Give the network with a memory of its answers: the rows of the table ask much the same."""
    known: dict[bytes, np.ndarray] = {}

    def answer(ct: np.ndarray, memory: np.ndarray) -> np.ndarray:
        key = hashlib.blake2b(ct.tobytes() + memory.tobytes()).digest()
        if key not in known:
            known[key] = predict(ct, memory).astype(np.float16)
        return known[key].astype(np.float32)

    return answer


def walk_all(
    scans: Sequence[Scan], predict: PredictPatch, settings: WalkSettings, jitter_mm: float
) -> dict[str, list[float]]:
    """Walk every scan and pool the numbers."""
    pooled: dict[str, list[float]] = {name: [] for name in ("own", "cut", "Dice", "calls")}
    for scan in scans:
        rng = np.random.default_rng([7, len(scan.centres)])
        moved = scan.centres + rng.normal(0, jitter_mm / settings.spacing_mm, scan.centres.shape)
        result = along.walk_along(scan.ct, moved, predict, settings=settings)
        for name, numbers in scores(scan, result).items():
            pooled[name] += numbers
    return pooled


def looking_twice(look: Callable[..., FoundVertebra | None]) -> Callable[..., FoundVertebra | None]:
    """Give the walk's look with a second one, if what the first one found lies elsewhere."""

    def look_twice(
        point: np.ndarray, reader: PatchReader, labels: np.ndarray, settings: WalkSettings
    ) -> FoundVertebra | None:
        first = look(point, reader, labels, settings)
        if first is None or np.linalg.norm(first.centre - point) * settings.spacing_mm <= MOVE_MM:
            return first
        return look(first.centre, reader, labels, settings) or first

    return look_twice


def row(title: str, pooled: dict[str, list[float]]) -> str:
    """Give one line of the table."""
    own, cut, dice = (pooled[name] for name in ("own", "cut", "Dice"))
    mean = f"{np.mean(dice):.4f} of {len(dice)}" if dice else "no mask"
    counts = f"{sum(own):>5} of {len(own):<5}{sum(cut):>4} of {len(cut):<4}"
    return f"{title:24}{counts}{mean:>16}{np.mean(pooled['calls']):8.2f}"


def main() -> int:
    """Print the tables, real scans and phantoms apart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scans", nargs="*", help="names in the file of facts (default: all)")
    parser.add_argument("--facts", type=Path, default=FACTS)
    parser.add_argument("--phantoms", type=int, default=0)
    parser.add_argument("--jitter-mm", type=float, default=0.0, help="spread of the centres' error, an axis")
    parser.add_argument("--work-dir", type=Path, default=InferenceSettings().work_dir)
    options = parser.parse_args()
    inference = InferenceSettings(work_dir=options.work_dir)
    networks = load_networks(inference)
    predict = remembering(networks.patch)
    settings = walk_settings(inference, **networks.walk)
    rows = {
        "as it is": {},
        "with a second look": {"_look": looking_twice(along._look)},
        "without the check": {"_holds": lambda *_: True},
    }
    sets = {
        "real scans": list(real_scans(options.facts, networks.spacing_mm, options.scans)),
        "phantoms": list(phantoms(options.phantoms, networks.spacing_mm)),
    }
    for kind, scans in sets.items():
        if not scans:
            continue
        heads = f"{'own':>7}{'cut':>15}{'Dice':>16}{'calls':>8}"
        print(f"{kind} ({len(scans)})".ljust(24) + heads, flush=True)
        for title, changes in rows.items():
            with ExitStack() as changed:
                for name, part in changes.items():
                    changed.enter_context(patch.object(along, name, part))
                print(row(title, walk_all(scans, predict, settings, options.jitter_mm)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
