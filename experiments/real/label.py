"""Label real scans with a trained network, correct its masks, and make training cases of them.

Command python experiments/real/label.py predict --segmentation MODELS/outlined --output starter/labels
        python experiments/real/label.py add --labels starter/labels --data-dir starter/data
        python experiments/real/label.py add --data-dir starter/data
Time    a minute for the five scans without labels, on two CPU cores; adding takes some seconds a scan
Result  training cases sub-real-<scan>: of scans that were labelled, or of those that have a reference mask

Reads   experiments/real/centres.json, the scans in SHARED, experiments/real/corrections/<scan>.txt
Writes  LABELS/<scan>_msk.nii.gz and <scan>.png, or DATA/own-training

`predict` goes from known centre to known centre, so that levels and their number are right, and only the
outlines are the network's; a scan whose mask is there is left as it is. Whoever looks at the pictures writes
down in `corrections` which vertebrae are accepted as they are, which are corrected and how, and which are
left out (see `apply_corrections`); the outlines of another network have another folder of corrections. `add`
makes a case of each scan, CT and mask at 1 mm: without LABELS of those that have a reference mask, brought to
VerSe's convention of where bone ends.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from experiments.real.facts import ScanFacts, available_scans
from experiments.real.masks import CONVENTIONS, reference_of
from experiments.steps import exit_status_of
from utils.imaging.crops import overlap
from utils.imaging.grids import transform_points, working_grid
from utils.imaging.growth import grown_mask
from utils.imaging.intensities import normalise_hu
from utils.imaging.nifti import read_ct, read_mask, write_volume
from utils.imaging.resampling import resample_ct, working_ct
from utils.imaging.volume import Volume
from utils.prediction.case import native_vertebrae
from utils.preparation.own_cases import add_own_case
from utils.settings import HU_RANGE, DataSettings, InferenceSettings
from utils.synthetic.rib_necks import rib_heads
from utils.verse.conventions import growth_mm
from utils.verse.labels import code_of_name, name_of_code, rank_of_code

CORRECTIONS = Path(__file__).with_name("corrections")
SPACING_MM = 1.0
#: Edge of a picture of a vertebra, mm.
PAGE_MM = 110.0


def case_key(name: str) -> str:
    """Give the key of the training case of a scan."""
    return f"sub-real-{name.removeprefix('sub-')}"


def predicted_mask(ct: Volume, facts: ScanFacts, networks: object) -> Volume:
    """Segment the vertebrae of a scan from their known centres.

    Parameters
    ----------
    ct : Volume
        The scan in HU.
    facts : ScanFacts
        Where its vertebrae are.
    networks : Networks
        Those of an inference; the segmentation network alone is asked.

    Returns
    -------
    Volume of uint8
        VerSe codes at 1 mm.
    """
    from utils.prediction.one_scan import walk_settings
    from utils.walk.along import walk_along

    working = working_ct(ct, networks.spacing_mm)
    normalised = Volume(normalise_hu(working.data), working.affine)
    codes = sorted(facts.points_mm, key=rank_of_code)
    points = np.array([facts.points_mm[code] for code in codes])
    centres = transform_points(points, np.eye(4), working.affine)
    settings = walk_settings(InferenceSettings(), **networks.walk)
    found = walk_along(normalised, centres, networks.patch, settings=settings).vertebrae
    own = [codes[vertebra.index] for vertebra in found]
    return native_vertebrae(found, working.affine, working_grid(ct.grid, SPACING_MM), codes=own).labels


def apply_corrections(mask: Volume, ct: Volume, lines: Sequence[str], *, source: str) -> Volume:
    """Apply the corrections of a scan to its mask.

    A line is a command and its words; what follows "#" is a remark:

    - `accept LEVEL ...`: these are right, or right once the other lines are applied.
    - `leave-out LEVEL ...`: these are not; the mask keeps them out.
    - `split UPPER LOWER SHARE`: what either holds beyond the plane between their centres of mass, at this
      share of the way, goes to the other.
    - `grow LEVEL HU MM`: add what is brighter, joined to it, and at most so far from it.
    - `close LEVEL MM`: fill holes and clefts up to this width.
    - `ribs LEVEL ...`: drop what lies where the heads of its ribs usually do, see `rib_heads`.
    - `largest LEVEL ...`: drop all pieces but the largest.
    - `widen MM`: move all surfaces outwards, to another convention of where bone ends.

    Parameters
    ----------
    mask, ct : Volume
        Codes and HU on one grid.
    lines : sequence of str
        Contents of the file.
    source : str
        The file, which errors name.

    Returns
    -------
    Volume of uint8
        Only what was accepted.

    Raises
    ------
    ValueError
        If a line cannot be understood, or the mask holds a vertebra that no line accepts or leaves out.
    """
    labels, accepted, left_out = mask.data.copy(), set(), set()
    spacing = mask.spacing_mm
    for number, line in enumerate(lines, start=1):
        command, *words = line.partition("#")[0].split() or [""]
        try:
            if command == "accept":
                accepted |= {code_of_name(word) for word in words}
            elif command == "leave-out":
                left_out |= {code_of_name(word) for word in words}
            elif command == "split":
                _split(labels, code_of_name(words[0]), code_of_name(words[1]), float(words[2]))
            elif command == "grow":
                _grow(labels, ct.data, code_of_name(words[0]), float(words[1]), float(words[2]), spacing)
            elif command == "close":
                _close(labels, code_of_name(words[0]), float(words[1]), spacing)
            elif command == "ribs":
                for word in words:
                    _cut_ribs(labels, code_of_name(word), spacing)
            elif command == "widen":
                labels = grown_mask(Volume(labels, mask.affine), mask.grid, float(words[0])).data
            elif command == "largest":
                for word in words:
                    _keep_largest(labels, code_of_name(word))
            elif command:
                raise ValueError(f"no command {command!r}")
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{source}, line {number}: expected a correction, found {line!r} ({error})."
            ) from None
    missing = sorted(set(mask.label_boxes) - accepted - left_out, key=rank_of_code)
    if missing:
        names = ", ".join(map(name_of_code, missing))
        raise ValueError(
            f"{source}: expected every vertebra to be accepted or left out, found neither of {names}."
        )
    labels[~np.isin(labels, [*accepted])] = 0
    return Volume(labels, mask.affine)


def _split(labels: np.ndarray, upper: int, lower: int, share: float) -> None:
    both = np.argwhere((labels == upper) | (labels == lower))
    above, below = (np.argwhere(labels == code).mean(axis=0) for code in (upper, lower))
    is_above = (both - (above + share * (below - above))) @ (below - above) < 0
    labels[tuple(both.T)] = np.where(is_above, upper, lower)


def _near(labels: np.ndarray, code: int, mm: float, spacing: np.ndarray) -> tuple[slice, ...]:
    box = ndimage.find_objects((labels == code).astype(np.uint8))[0]
    reach = np.ceil(mm / spacing).astype(int) + 1
    return tuple(slice(max(s.start - r, 0), min(s.stop + r, n)) for s, r, n in zip(box, reach, labels.shape))


def _grow(
    labels: np.ndarray, hu: np.ndarray, code: int, least_hu: float, mm: float, spacing: np.ndarray
) -> None:
    box = _near(labels, code, mm, spacing)
    here, own = labels[box], labels[box] == code
    near = ndimage.distance_transform_edt(~own, sampling=spacing) <= mm
    bright = ndimage.gaussian_filter(hu[box].astype(np.float32), 0.7 / spacing) > least_hu
    free = own | (near & bright & (here == 0))
    here[ndimage.binary_propagation(own, mask=free)] = code


def _close(labels: np.ndarray, code: int, mm: float, spacing: np.ndarray) -> None:
    box = _near(labels, code, mm, spacing)
    here, own = labels[box], labels[box] == code
    wide = ndimage.distance_transform_edt(~own, sampling=spacing) <= mm / 2
    closed = ndimage.distance_transform_edt(wide, sampling=spacing) > mm / 2
    filled = ndimage.binary_fill_holes(closed | own)
    here[filled & (here == 0)] = code


def _cut_ribs(labels: np.ndarray, code: int, spacing: np.ndarray) -> None:
    bone = labels == code
    if not bone.any():
        return
    centre = np.argwhere(bone).mean(axis=0)
    for first, inside in rib_heads(bone, centre, spacing):
        here, own = overlap(first, inside.shape, labels.shape)
        labels[here][bone[here] & inside[own]] = 0


def _keep_largest(labels: np.ndarray, code: int) -> None:
    pieces, _ = ndimage.label(labels == code)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    labels[(labels == code) & (pieces != sizes.argmax())] = 0


def page_of(ct: Volume, mask: Volume, *, title: str) -> Figure:
    """Draw every vertebra of a mask in three planes through its middle, with the outlines of all masks.

    Parameters
    ----------
    ct, mask : Volume
        HU and codes on one isotropic grid (P, R, I).
    title : str
        Title of the page.

    Returns
    -------
    matplotlib.figure.Figure
        Not yet saved.
    """
    codes = sorted(mask.label_boxes, key=rank_of_code)
    rows = max(1, -(-len(codes) // 2))
    figure = Figure(figsize=(20, 3.4 * rows), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(rows, 6, squeeze=False).reshape(-1, 3)
    half = round(PAGE_MM / 2 / SPACING_MM)
    for axes, code in zip(panels, codes):
        middle = np.argwhere(mask.data == code).mean(axis=0).round().astype(int)
        box = tuple(slice(max(m - half, 0), m + half) for m in middle)
        at = middle - [side.start for side in box]
        hu, labels = ct.data[box], mask.data[box]
        for axis, plane in zip(axes, (1, 0, 2)):
            shown, outlines = (np.take(array, at[plane], axis=plane) for array in (hu, labels))
            # I runs down the page; an axial plane has P down.
            shown, outlines = (shown.T, outlines.T) if plane != 2 else (shown, outlines)
            axis.imshow(shown, cmap="gray", vmin=-150, vmax=600)
            for other in np.unique(outlines[outlines > 0]):
                colour = "red" if other == code else "cyan"
                axis.contour(outlines == other, [0.5], colors=colour, linewidths=0.9)
            axis.set_axis_off()
        axes[0].set_title(name_of_code(code))
    for axis in panels[len(codes) :].ravel():
        axis.set_axis_off()
    return figure


# Commands ------------------------------------------------------------------------------------------


def predict(shared: Path, segmentation: Path | None, output: Path, names: Sequence[str]) -> None:
    """Write the network's mask and a picture of every scan that has vertebrae and no reference."""
    from utils.prediction.networks import STARTER_DIR, load_networks

    networks = load_networks(InferenceSettings(segmentation=segmentation, heatmap=STARTER_DIR / "heatmap"))
    output.mkdir(parents=True, exist_ok=True)
    for name, facts in available_scans(shared, names).items():
        if not facts.points_mm or (reference_of(facts) is not None and not names):
            continue
        path = output / f"{name}_msk.nii.gz"
        if path.exists():
            print(f"{name}: {path} is there", flush=True)
            continue
        ct = read_ct(shared / facts.ct)
        mask = predicted_mask(ct, facts, networks)
        codes = sorted(mask.label_boxes, key=rank_of_code)
        print(f"{name}: {' '.join(map(name_of_code, codes))}", flush=True)
        fine = resample_ct(ct, working_grid(ct.grid, SPACING_MM), bounds=HU_RANGE)
        page_of(fine, mask, title=name).savefig(output / f"{name}.png", dpi=55)
        # Last, so that a mask that is there has its picture.
        write_volume(path, mask)


def add(shared: Path, labels: Path | None, data_dir: Path, corrections: Path = CORRECTIONS) -> None:
    """Make a training case of every scan that has labels and corrections; without labels, a reference."""
    for name, facts in available_scans(shared).items():
        mask_path = mask_of(facts, shared, labels, corrections)
        if mask_path is None:
            continue
        ct = read_ct(shared / facts.ct)
        grid = working_grid(ct.grid, SPACING_MM)
        fine = resample_ct(ct, grid, bounds=HU_RANGE)
        mask = read_mask(mask_path)
        if labels is None:
            mask = grown_mask(mask, grid, growth_mm(CONVENTIONS[facts.labels]))
        else:
            source = corrections / f"{name}.txt"
            mask = apply_corrections(mask, fine, source.read_text().splitlines(), source=str(source))
        # What the scan shows of a vertebra whose body lies outside is no target.
        mask.data[~np.isin(mask.data, [*facts.points_mm])] = 0
        _add_case(data_dir, case_key(name), fine, mask)
        print(f"{name}: {len(mask.label_boxes)} vertebrae", flush=True)


def mask_of(
    facts: ScanFacts, shared: Path, labels: Path | None, corrections: Path = CORRECTIONS
) -> Path | None:
    """Give the mask that a scan is added with: of `labels` if it has corrections, or its reference."""
    reference = reference_of(facts)
    if labels is None:
        return None if reference is None else shared / reference
    labelled = labels / f"{facts.name}_msk.nii.gz"
    is_ready = (corrections / f"{facts.name}.txt").is_file() and labelled.is_file()
    return labelled if is_ready and reference is None else None


def _add_case(data_dir: Path, key: str, ct: Volume, mask: Volume) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = {"ct": Path(folder) / "ct.nii.gz", "mask": Path(folder) / "mask.nii.gz"}
        write_volume(paths["ct"], Volume(np.rint(ct.data).astype(np.int16), ct.affine))
        write_volume(paths["mask"], mask)
        add_own_case(DataSettings(source="pairs", data_dir=data_dir, key=key, **paths))


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and label; gives the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("predict", "add"):
        command = commands.add_parser(name)
        command.add_argument(
            "--shared", type=Path, default=Path("../shared"), help="folder of the real scans"
        )
    predicting, adding = commands.choices["predict"], commands.choices["add"]
    predicting.add_argument("--segmentation", type=Path, help="model directory; as infer.py has it")
    predicting.add_argument("--output", type=Path, required=True, help="folder of masks and pictures")
    predicting.add_argument("--scans", nargs="+", default=(), help="by default those without a reference")
    adding.add_argument(
        "--labels", type=Path, help="folder that `predict` wrote; without it scans that have a mask are added"
    )
    adding.add_argument(
        "--corrections", type=Path, default=CORRECTIONS, help="folder of the corrections of these labels"
    )
    adding.add_argument("--data-dir", type=Path, required=True, help="the data set")
    chosen = parser.parse_args(arguments)
    if chosen.command == "predict":
        run = partial(predict, chosen.shared, chosen.segmentation, chosen.output, chosen.scans)
    else:
        run = partial(add, chosen.shared, chosen.labels, chosen.data_dir, chosen.corrections)
    return exit_status_of(run)


if __name__ == "__main__":
    sys.exit(main())
