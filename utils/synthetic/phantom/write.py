"""Write phantoms as a VerSe data set, with VerSe's names, orientations and habits, good and bad."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from utils.execution import outcomes
from utils.files import written_whole
from utils.imaging.grids import oriented_grid
from utils.imaging.volume import Grid
from utils.settings import DataSettings, worker_count
from utils.synthetic.phantom.make import STEP_MM, Phantom, make_phantom
from utils.synthetic.phantom.ranges import RANGES, USUAL
from utils.synthetic.phantom.record import enter_phantoms, set_name
from utils.synthetic.phantom.variants import choose_spines

FOLDERS = {
    "2019": [f"VerSe19/dataset-verse19{split}" for split in ("training", "validation", "test")],
    "2020": ("VerSe20/dataset-01training", "VerSe20/dataset-02validation", "VerSe20/dataset-03test"),
}
# Numbers of one split start where the last one's end: no subject is in two splits.
_NUMBERS_A_SPLIT = 10_000
_THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
MAX_WORKERS = 8


@dataclass(frozen=True)
class PhantomSeries:
    """One scan to write.

    Attributes
    ----------
    folder : str
        Folder of its split, such as "VerSe20/dataset-01training".
    subject_key, key : str
        Name of the subject's folder, and the stem of the series' files.
    style : str
        See `draw_acquisition`.
    subject, series : int
        Numbers that, with the seed, fix the phantom.
    whole : tuple of int, optional
        Codes of the first and the last vertebra to be seen whole; drawn if left out.
    """

    folder: str
    subject_key: str
    key: str
    style: str
    subject: int
    series: int
    whole: tuple[int, int] | None = None

    def paths(self, data_dir: Path, seed: int) -> dict[str, Path]:
        """Where CT, mask and centroids go."""
        # VerSe renamed its centroid files between releases; both names are still about.
        kind = ("vb", "vb", "subreg")[np.random.default_rng([seed, self.subject, self.series, 7]).integers(3)]
        raw = data_dir / self.folder / "rawdata" / self.subject_key
        derived = data_dir / self.folder / "derivatives" / self.subject_key
        return {
            "ct": raw / f"{self.key}_ct.nii.gz",
            "mask": derived / f"{self.key}_seg-vert_msk.nii.gz",
            "centroids": derived / f"{self.key}_seg-{kind}_ctd.json",
        }


def plan_data_set(counts: tuple[int, int, int]) -> list[PhantomSeries]:
    """Decide which series there are.

    Parameters
    ----------
    counts : tuple of int
        PhantomSeries for training, validation and test.

    Returns
    -------
    list of PhantomSeries
        A larger count only adds series at the end of a split, so a data set can be made to grow.
    """
    return [_plan_series(split, k) for split, count in enumerate(counts) for k in range(count)]


def plan_variants(
    counts: tuple[int, int, int], *, seed: int, variants: str, ranges: str = USUAL.name
) -> list[PhantomSeries]:
    """Decide which series there are where spines are looked for their levels (see `choose_spines`).

    Parameters
    ----------
    counts : tuple of int
        Series for training, validation and test, which take the chosen spines in this order.
    seed : int
        Seed of the data set.
    variants : str
        "natural", "half" or "rare".
    ranges : str
        Name of the ranges that they are drawn in.

    Returns
    -------
    list of PhantomSeries
        Their names hold variants, seed and number, so that sets of several seeds may lie in one folder.
    """
    folders = [folder for folder, count in zip(FOLDERS["2020"], counts) for _ in range(count)]
    keys = [f"sub-{set_name(variants, ranges)}{seed}x{number:03d}" for number in range(len(folders))]
    spines = choose_spines(len(folders), seed=seed, variants=variants, ranges=RANGES[ranges])
    return [
        PhantomSeries(folder, key, key, spine.style, spine.subject, 0, spine.whole)
        for folder, key, spine in zip(folders, keys, spines)
    ]


def _plan_series(split: int, position: int) -> PhantomSeries:
    number = split * _NUMBERS_A_SPLIT + position
    if position % 2 == 0:
        key = f"sub-verse{_serial(4, split, position)}"
        return PhantomSeries(FOLDERS["2019"][split], key, key, "2019", number, 0)
    folder = FOLDERS["2020"][split]
    if position % 8 in (1, 3):  # two series of one patient
        key = f"sub-verse{_serial(400, split, position // 8)}"
        name = f"{key}_split-verse{_serial(200, split, position)}"
        return PhantomSeries(folder, key, name, "2020", number - position % 8 + 1, position % 8 // 2)
    key = f"sub-verse{_serial(500, split, position)}"
    direction = "ax" if position % 8 == 5 else "sag"
    return PhantomSeries(folder, key, f"{key}_dir-{direction}", f"2020-{direction}", number, 0)


def _serial(first: int, split: int, position: int) -> str:
    """A number of three digits, as VerSe's; of more where a split outgrows its share."""
    share = {4: 66, 400: 6, 200: 66, 500: 160}[first]
    block, rest = divmod(position, share)
    return f"{first + split * share + rest + 1000 * block:03d}"


def write_phantoms(settings: DataSettings) -> list[str]:
    """Write generated series: source "phantom" of `get_verse_data.py`.

    Returns
    -------
    list of str
        A line for every series whose process was killed.
    """
    workers = worker_count(settings.workers)
    how = {
        "seed": settings.seed,
        "variants": settings.variants,
        "ranges": settings.ranges,
        "workers": workers,
    }
    try:
        write_phantom_data_set(settings.data_dir, settings.phantoms, **how)
    except UnwrittenPhantoms as error:
        return str(error).splitlines()
    return []


class UnwrittenPhantoms(ValueError):
    """Series whose process was killed, a line for each; all others are written."""


def write_phantom_data_set(
    data_dir: Path,
    counts: tuple[int, int, int],
    *,
    seed: int,
    variants: str | None = None,
    ranges: str = USUAL.name,
    workers: int | None = None,
    step_mm: float = STEP_MM,
) -> list[Path]:
    """Write a data set of phantoms as a VerSe tree; series that are complete already are kept.

    Parameters
    ----------
    data_dir : Path
        Where `VerSe19` and `VerSe20` go.
    counts : tuple of int
        PhantomSeries for training, validation and test.
    seed : int
        Seed of the data set: the same seed gives the same arrays.
    variants : str, optional
        Look for spines with rare levels: "natural", "half" or "rare" (see `plan_variants`).
    ranges : str
        Name of the ranges that they are drawn in, "usual" or "wide".
    workers : int, optional
        Processes; as many as there are cores, up to 8, if left out. With one, all runs in this process.
    step_mm : float
        Spacing of the grid on which bodies are rendered.

    Returns
    -------
    list of Path
        The CT of every series, in the order training, validation, test.

    Raises
    ------
    ValueError
        If a count is negative, or the folder holds phantoms of another seed or other ranges (see
        `enter_phantoms`); `UnwrittenPhantoms` if a process was killed.
    """
    data_dir = Path(data_dir)
    if len(counts) != 3 or min(counts) < 0:
        raise ValueError(
            f"Expected three counts of 0 or more (training, validation, test), received {counts}."
        )
    drawn = {"seed": seed, "variants": variants, "ranges": ranges}
    enter_phantoms(data_dir, counts, **drawn)
    plan = plan_data_set(counts) if variants is None else plan_variants(counts, **drawn)
    missing = [s for s in plan if not all(p.exists() for p in s.paths(data_dir, seed).values())]
    write = partial(_write_series, data_dir=data_dir, seed=seed, ranges=ranges, step_mm=step_mm)
    workers = workers or min(os.cpu_count() or 1, MAX_WORKERS)
    bad = []
    bar = tqdm(total=len(plan), initial=len(plan) - len(missing), desc="phantoms", unit="scan")
    with bar, _one_thread_each():
        for series, killed in outcomes(write, missing, workers=workers):
            if killed:
                bad.append(f"{series.paths(data_dir, seed)['ct']}: expected to be written, found {killed}.")
            bar.set_postfix_str(series.key)
            bar.update()
    if bad:
        raise UnwrittenPhantoms("\n".join(bad))
    return [series.paths(data_dir, seed)["ct"] for series in plan]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Keep the numerical libraries of new processes to one thread: the processes are the parallelism."""
    before = {name: os.environ.get(name) for name in _THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(_THREAD_SETTINGS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _write_series(series: PhantomSeries, *, data_dir: Path, seed: int, ranges: str, step_mm: float) -> None:
    chosen = {name: getattr(series, name) for name in ("subject", "series", "style", "whole")}
    phantom = make_phantom(seed, **chosen, step_mm=step_mm, ranges=RANGES[ranges])
    rng = np.random.default_rng([seed, series.subject, series.series, 8])
    paths = series.paths(data_dir, seed)
    is_2019 = series.style == "2019"
    codes = (1, 1) if is_2019 else [(1, 1), (2, 0), (0, 1), (1, 2)][rng.integers(4)]
    axes = "".join(nib.aff2axcodes(phantom.affine))
    declared = axes if is_2019 or rng.random() < 0.7 else "PIR"
    mask = phantom.mask if is_2019 or rng.random() < 0.75 else _as_float(rng, phantom.mask)
    _write(paths["mask"], _nifti(mask, phantom.affine, codes))
    _write(paths["centroids"], json.dumps(centroid_records(phantom, declared)).encode())
    _write(paths["ct"], _nifti(phantom.ct, phantom.affine, codes))


def _as_float(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A mask as a scaled file gives it back: float64, labels off by rounding errors."""
    noisy = mask.astype(np.float64)
    noisy[mask > 0] += rng.normal(0, 1e-6, np.count_nonzero(mask))
    return noisy


def _nifti(array: np.ndarray, affine: np.ndarray, codes: tuple[int, int]) -> bytes:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    return gzip.compress(image.to_bytes(), compresslevel=3, mtime=0)


def _write(path: Path, content: bytes) -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def centroid_records(phantom: Phantom, direction: str) -> list[dict]:
    """Body centres in VerSe's form.

    Parameters
    ----------
    phantom : Phantom
        The scan.
    direction : str
        Three axis codes such as "PIR": the indices count along the axes of the scan reoriented to them.

    Returns
    -------
    list of dict
        The header, then label, X, Y and Z of each vertebra.
    """
    affine = oriented_grid(Grid(phantom.ct.shape, phantom.affine), direction).affine
    records: list[dict] = [{"direction": list(direction)}]
    for code, point in phantom.points:
        x, y, z = nib.affines.apply_affine(np.linalg.inv(affine), point)
        records.append({"label": code, "X": round(x, 2), "Y": round(y, 2), "Z": round(z, 2)})
    return records
