"""Runs of `infer.py` on the wrappings of a scan, and how their answers compare with the plain copy's."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from tests.prediction.wrappings import PLAIN, Wrapping
from utils.imaging.grids import transform_points
from utils.imaging.volume import Volume, label_boxes
from utils.verse.labels import rank_of_code

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "infer.py"
#: Deadline of a run: of its start, and of each scan.
START_S, SCAN_S = 120, 300
#: Wrappings whose files lie on disk at once, and which share a start of TensorFlow.
AT_ONCE = 12
PREDICTIONS = "predictions"
#: Largest distance between a scan and its mask for any reader, in mm.
ON_SCAN_MM = 0.01
#: How far the Dice of one vertebra may lie under what is asked of their mean.
BELOW_MEAN = 0.05
#: A vertebra nearer to the border of a scan than this is taken as cut by it.
CUT_MM = 3.0


@dataclass(frozen=True)
class Run:
    """What one call of `infer.py` said, and how it ended; None for one that was stopped at its deadline."""

    lines: tuple[str, ...]
    status: int | None


@dataclass(frozen=True)
class Answer:
    """What became of a wrapping.

    Attributes
    ----------
    masks : tuple of nibabel image
        Of the scans found in it.
    doubts : tuple of bool
        Whether its numbers were doubted, of each.
    fault : str
        What is wrong with the run, or with how the masks lie on the scans; "" if nothing.
    refusal : str
        The line that refuses it; "" if there is none.
    """

    masks: tuple[nibabel.Nifti1Image, ...]
    doubts: tuple[bool, ...]
    fault: str
    refusal: str


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes
    ----------
    title : str
        Which wrapping.
    equal : bool or None
        Whether the labels are those of the plain copy; None where there are none to compare.
    dice : tuple of float or None
        The mean over the labels of both, 0 for one that a mask lacks, and the lowest.
    fault : str
        Why the wrapping does not hold; "" if it does.
    refusal : str
        The line that refused it.
    """

    title: str
    equal: bool | None
    dice: tuple[float, float] | None
    fault: str
    refusal: str = ""

    def __str__(self) -> str:
        equal = {True: "yes", False: "no", None: "-"}[self.equal]
        dice = "-" if self.dice is None else "{:.3f} {:.3f}".format(*self.dice)
        verdict = self.fault or ("refused, as it must be" if self.refusal else "holds")
        return f"{self.title:44}{equal:>7}{dice:>13}  {verdict}"


HEAD = f"{'wrapping':44}{'labels':>7}{'Dice, lowest':>14} verdict"


def rows(
    ct: Volume, wrappings: Sequence[Wrapping], folder: Path, options: Sequence[str | Path] = ()
) -> Iterator[Row]:
    """Compare the answers to wrappings of a scan with the answer to its plain copy.

    Parameters
    ----------
    ct : Volume
        From `plain_scan`.
    wrappings : sequence of Wrapping
        `AT_ONCE` of them share a call of `infer.py`, but for those with changed environments.
    folder : Path
        For files; those of a wrapping are removed after it.
    options : sequence of str or Path
        Further options of `infer.py`.

    Yields
    ------
    Row
        Of the plain copy, then one a wrapping, in their order.

    Raises
    ------
    RuntimeError
        If the plain copy gets no answer.
    """
    plain = None
    everything = [PLAIN, *wrappings]
    for begin in range(0, len(everything), AT_ONCE):
        part, place = everything[begin : begin + AT_ONCE], folder / str(begin)
        found = answers(ct, part, place, options)
        plain = plain or found[0]
        if not plain.masks:
            raise RuntimeError(f"the plain copy gets no answer: {plain.refusal or plain.fault}")
        yield from (row_of(wrapping, answer, plain) for wrapping, answer in zip(part, found))
        for file in place.iterdir():
            if begin or file.name != PREDICTIONS:  # those of the first part hold the plain copy's
                shutil.rmtree(file)


def answers(
    ct: Volume, wrappings: Sequence[Wrapping], folder: Path, options: Sequence[str | Path] = ()
) -> list[Answer]:
    """Write wrappings of a scan and have them segmented; arguments as of `rows`.

    Those of one environment share a call, but what gets no word in it has a call of its own: another may have
    ended the process.
    """
    folder = folder.resolve()
    inputs = {}
    for wrapping in wrappings:
        place = folder / wrapping.folder_name
        place.mkdir(parents=True)
        inputs[wrapping] = wrapping.write(ct, place)
    together = [wrapping for wrapping in wrappings if not wrapping.environment]
    output = folder / PREDICTIONS
    shared = run_inference([inputs[each] for each in together], output, options) if together else None
    found = []
    for wrapping in wrappings:
        place = folder / wrapping.folder_name
        answer = answer_of(place, output, shared) if shared else None
        if answer is None or not (answer.masks or answer.refusal):
            own = folder / f"{PREDICTIONS} of {wrapping.folder_name}"
            changes = wrapping.environment.items()
            alone = {name: value and value.format(folder=place) for name, value in changes}
            answer = answer_of(place, own, run_inference([inputs[wrapping]], own, options, alone))
        found.append(answer)
    return found


def run_inference(
    inputs: Sequence[Path],
    output: Path,
    options: Sequence[str | Path] = (),
    environment: dict[str, str | None] | None = None,
) -> Run:
    """Call `infer.py` in a process of its own, with the changes of its environment."""
    command = [sys.executable, SCRIPT, *inputs, "--output", output, *options]
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})}
    variables = {name: value for name, value in variables.items() if value is not None}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(
            list(map(os.fspath, command)), env=variables, **streams, timeout=START_S + SCAN_S * len(inputs)
        )
    except subprocess.TimeoutExpired as error:
        return Run(tuple((error.stdout or b"").decode(errors="replace").splitlines()), None)
    return Run(tuple(done.stdout.decode(errors="replace").splitlines()), done.returncode)


def answer_of(place: Path, output: Path, run: Run) -> Answer:
    """Find what a run said of, and wrote for, the scans in the folder of a wrapping."""
    masks, doubts, faults = [], [], []
    for record in sorted(output.rglob("*_settings.json")):
        scan = Path(json.loads(record.read_text())["scan"]["path"])
        if place in (scan, *scan.parents):
            mask = record.with_name(record.name.replace("_settings.json", "_seg-vert_msk.nii.gz"))
            quality = json.loads(record.with_name(record.name.replace("_settings", "_quality")).read_text())
            masks.append(nibabel.load(mask))
            doubts.append(any(each["kind"] == "hu doubt" for each in quality["warnings"]))
            faults.append(off_scan(scan, mask))
    bad = [line for line in run.lines if "bad scan" in line]
    refusals = [line for line in bad if f"{place}" in line]
    faults.append("a traceback" if any("Traceback" in line for line in run.lines) else "")
    expected = 1 if bad or not any(output.rglob("*_settings.json")) else 0
    answered = bool(masks or refusals)
    # A process that died in the midst is held against the scan that got no answer.
    if run.status != expected and not (answered and run.status not in (0, 1)):
        faults.append(f"status {run.status}, expected {expected}; {' '.join(run.lines[-1:])[:150]}")
    if len(refusals) > 1:
        faults.append(f"{len(refusals)} lines about it")
    return Answer(tuple(masks), tuple(doubts), "; ".join(filter(None, faults)), "".join(refusals[:1]))


def off_scan(scan: Path, mask: Path) -> str:
    """Say where a mask does not lie on a NIfTI scan, by its forms, and as ITK opens both; "" elsewhere."""
    if not scan.name.lower().endswith((".nii", ".nii.gz", ".hdr")):
        return ""
    ours, theirs = (nibabel.load(path) for path in (mask, scan))
    for form in ("qform", "sform"):
        mine, wanted = (getattr(image, f"get_{form}")(coded=True) for image in (ours, theirs))
        if wanted[1] and (mine[1] != wanted[1] or np.abs(mine[0] - wanted[0]).max() > ON_SCAN_MM):
            return f"the mask's {form} is not the scan's"
    places = [itk_place(path) for path in (mask, scan)]
    if None not in places and np.abs(np.subtract(*places)).max() > ON_SCAN_MM:
        return f"mask and scan {np.abs(np.subtract(*places)).max():.2g} mm apart in ITK"
    return ""


def itk_place(path: Path) -> list[float] | None:
    """Give origin, spacing and directions, in three axes, as ITK reads them; None for what it cannot open."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    name = os.fspath(path)
    if not name.isascii() and name != os.fsencode(name).decode(errors="replace"):
        return None  # bytes that Python holds escaped end the process in SimpleITK
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    axes = reader.GetDimension()
    directions = np.reshape(reader.GetDirection(), (axes, axes))[:3, :3]
    return [*reader.GetOrigin()[:3], *reader.GetSpacing()[:3], *directions.ravel()]


# Comparison ------------------------------------------------------------------------------------------


def row_of(wrapping: Wrapping, answer: Answer, plain: Answer) -> Row:
    """Judge an answer by that to the plain copy, and by what is expected of the wrapping."""
    if answer.refusal:
        is_right = bool(wrapping.refusal) and re.search(wrapping.refusal, answer.refusal) is not None
        fault = answer.fault if is_right else f"{answer.fault} {answer.refusal}".strip()
        return Row(wrapping.title, None, None, fault, answer.refusal)
    if len(answer.masks) != wrapping.scans:
        found = f"{len(answer.masks)} predictions, expected {wrapping.scans}"
        return Row(wrapping.title, None, None, "; ".join(filter(None, (found, answer.fault))))
    scores = [dice_of_labels(mask, plain.masks[0]) for mask in answer.masks]
    if wrapping.is_resampled:
        scores = [without_cut_ends(*pair, plain.masks[0]) for pair in zip(scores, answer.masks)]
    equal = all(None not in each.values() for each in scores)
    dice = [value or 0.0 for each in scores for value in each.values()] or [1.0]
    faults = [answer.fault]
    if wrapping.refusal and not wrapping.may_be_read:
        faults.append("read, expected a refusal")
    if not equal:
        faults.append(f"labels {', '.join(sorted({words_of(each) for each in scores}))}")
    if np.mean(dice) < wrapping.least_dice or min(dice) < wrapping.least_dice - BELOW_MEAN:
        faults.append(f"Dice under {wrapping.least_dice:g}")
    if any(answer.doubts) and not any(plain.doubts):
        faults.append("HU doubted")
    scored = (float(np.mean(dice)), float(min(dice)))
    return Row(wrapping.title, equal, scored, "; ".join(filter(None, faults)))


def without_cut_ends(
    scores: dict[int, float | None], mask: nibabel.Nifti1Image, plain: nibabel.Nifti1Image
) -> dict[int, float | None]:
    """Leave out a first or last vertebra that one mask lacks, if it is cut by the border of the plain scan.

    Such a vertebra is on the verge of being told, and its voxels are not the same after resampling.
    """
    column = sorted(scores, key=rank_of_code)
    kept = dict(scores)
    for label in {*column[:1], *column[-1:]}:
        if scores[label] is None and any(_is_cut(image, label, plain) for image in (mask, plain)):
            del kept[label]
    return kept


def _is_cut(image: nibabel.Nifti1Image, label: int, plain: nibabel.Nifti1Image) -> bool:
    """Whether a label of a mask comes within `CUT_MM` of the border of the plain scan, or passes it."""
    voxels = np.argwhere(np.asanyarray(image.dataobj) == label)
    if not len(voxels):
        return False
    places = transform_points(voxels, image.affine, plain.affine)
    margin = CUT_MM / np.linalg.norm(plain.affine[:3, :3], axis=0)
    return bool((places < margin).any() or (places > np.array(plain.shape) - 1 - margin).any())


def words_of(scores: dict[int, float | None]) -> str:
    """Give the labels that only one of two masks has."""
    return "only in one: " + " ".join(str(label) for label, value in scores.items() if value is None)


def dice_of_labels(mask: nibabel.Nifti1Image, reference: nibabel.Nifti1Image) -> dict[int, float | None]:
    """Give the Dice of every label of two masks, compared in the world, on the grid of the reference.

    There a label of the other mask reaches as far as its linearly interpolated share is half or more.

    Returns
    -------
    dict of int to float or None
        By label; None where only one of the files has it.
    """
    other, plain = (np.asanyarray(image.dataobj) for image in (mask, reference))
    to_other = np.linalg.inv(mask.affine) @ reference.affine
    boxes = [label_boxes(numbers) for numbers in (other, plain)]
    found: dict[int, float | None] = {}
    for label in sorted({*boxes[0], *boxes[1]}):
        found[label] = None
        if label in boxes[0] and label in boxes[1]:
            begin, end = _box_of_both(boxes[0][label], boxes[1][label], to_other, plain.shape)
            where = {"output_shape": tuple(end - begin), "order": 1, "mode": "grid-constant"}
            offset = to_other[:3, :3] @ begin + to_other[:3, 3]
            share = ndimage.affine_transform(
                (other == label).astype(np.float32), to_other[:3, :3], offset, **where
            )
            this, that = share >= 0.5, plain[tuple(map(slice, begin, end))] == label
            voxels = np.count_nonzero(this) + np.count_nonzero(that)
            found[label] = 2 * np.count_nonzero(this & that) / voxels
    return found


def _box_of_both(
    other: tuple[slice, ...], plain: tuple[slice, ...], to_other: np.ndarray, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Give the first voxel of a box of the reference that holds a label of both masks, and the one after."""
    ends = np.array([[side.start - 1, side.stop] for side in other])
    corners = np.array(list(itertools.product(*ends)))
    back = np.linalg.inv(to_other)
    places = corners @ back[:3, :3].T + back[:3, 3]
    begin = np.minimum(np.floor(places.min(axis=0)), [side.start for side in plain])
    end = np.maximum(np.ceil(places.max(axis=0)) + 1, [side.stop for side in plain])
    return np.maximum(begin, 0).astype(int), np.minimum(end, shape).astype(int)
