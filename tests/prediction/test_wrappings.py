"""The same anatomy gives the same answer, whatever it is wrapped in.

Every wrapping is read as the plain copy of a generated spine, and six of them are segmented as it. With
LONG_TESTS=1 all of them are segmented, of the generated spine and of a real CT; some five minutes each.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from tests.imaging.examples import DATA, NO_DATA, VERSE_FILES
from tests.prediction.wrapping_files import stored_as, write_nifti
from tests.prediction.wrapping_runs import (
    Answer,
    Row,
    Run,
    answer_of,
    dice_of_labels,
    off_scan,
    row_of,
    rows,
    without_cut_ends,
)
from tests.prediction.wrappings import (
    PLAIN,
    QUICK,
    RESAMPLED_DICE,
    WRAPPINGS,
    Wrapping,
    plain_scan,
    write_plain,
)
from utils.imaging.formats import read_scan
from utils.imaging.volume import Grid, Volume
from utils.prediction.scans import find_scans
from utils.synthetic.phantom.make import make_phantom
from utils.verse.labels import code_of_name

REAL_CT = DATA / VERSE_FILES[0]
LONG = pytest.mark.skipif(not os.environ.get("LONG_TESTS"), reason="LONG_TESTS is not set")
BY_TITLE = {wrapping.title: wrapping for wrapping in WRAPPINGS}
#: Largest difference from the plain copy in HU: of a voxel that is the same, and the median of those of a
#: scan that is resampled, or moved by less than half a voxel. Moved by a whole one it would be 5.
SAME_HU, TYPICAL_HU = 0.5, 4.5


@functools.cache
def generated_spine() -> Volume:
    """A small scan, L1 to L4 seen whole, that no network was trained on."""
    made = make_phantom(7, whole=(code_of_name("L1"), code_of_name("L4")))
    return plain_scan(Volume(made.ct, made.affine))


def rows_of(ct: Volume, wrappings: list[Wrapping], folder: Path) -> dict[str, Row]:
    options = ("--work-dir", folder / "work", "--device", "cpu")
    return {row.title: row for row in rows(ct, wrappings, folder, options)}


def check(row: Row) -> None:
    assert not row.fault, row


@pytest.fixture(scope="module")
def quick_rows(tmp_path_factory) -> dict[str, Row]:
    return rows_of(generated_spine(), [BY_TITLE[title] for title in QUICK], tmp_path_factory.mktemp("quick"))


@pytest.mark.parametrize("title", [PLAIN.title, *QUICK])
def test_six_wrappings_get_the_answer_of_the_plain_copy(quick_rows, title):
    check(quick_rows[title])


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory):
    """Give all rows of a scan by its name; each scan is taken through them once."""

    @functools.cache
    def of(name: str) -> dict[str, Row]:
        ct = generated_spine() if name == "generated" else plain_scan(read_scan(REAL_CT))
        return rows_of(ct, list(WRAPPINGS), tmp_path_factory.mktemp(name))

    return of


@LONG
@pytest.mark.timeout(2 * 3600)  # the first one of a scan takes all
@pytest.mark.parametrize("title", [PLAIN.title, *BY_TITLE])
@pytest.mark.parametrize("scan", ["generated", "sub-verse014"])
def test_every_wrapping_gets_the_answer_of_the_plain_copy(long_rows, scan, title):
    if scan != "generated" and not REAL_CT.is_file():
        pytest.skip(NO_DATA)
    check(long_rows(scan)[title])


# What is read ----------------------------------------------------------------------------------------


def small_scan() -> Volume:
    """A part of the generated spine, smooth, so that another grid can show it as well."""
    ct = generated_spine()
    part = ct.data[60:100, 40:70, 50:86].astype(np.float32)
    return plain_scan(Volume(ndimage.gaussian_filter(part, 1.5), ct.affine))


def read_all(path: Path) -> tuple[list[Volume], list[str]]:
    """Give what is read, and why anything is not."""
    scans, refusals = [], []
    try:
        found = find_scans([path])
        refusals += found.bad
        scans += [read_scan(scan.path, scan.series) for scan in found.scans]
    except ValueError as error:
        refusals.append(str(error))
    return scans, refusals


def shown_at(scan: Volume, grid: Grid) -> np.ndarray:
    """Give the HU of a scan, linearly interpolated, where the voxels of a grid lie."""
    to_scan = np.linalg.inv(scan.affine) @ grid.affine
    where = {"output_shape": grid.shape, "order": 1, "mode": "nearest"}
    data = scan.data.astype(np.float64)
    return ndimage.affine_transform(data, to_scan[:3, :3], to_scan[:3, 3], **where)


@pytest.mark.parametrize("title", [title for title, one in BY_TITLE.items() if not one.environment])
def test_every_wrapping_is_read_as_the_plain_copy(tmp_path, title):
    wrapping, ct = BY_TITLE[title], small_scan()
    folder = tmp_path / wrapping.folder_name
    folder.mkdir()
    scans, refusals = read_all(wrapping.write(ct, folder))
    if wrapping.refusal and not (wrapping.may_be_read and scans):
        assert not scans and [bool(re.search(wrapping.refusal, line)) for line in refusals] == [True]
        return
    assert not refusals and len(scans) == wrapping.scans
    for scan in scans:
        apart = np.abs(shown_at(scan, ct.grid) - ct.data)[3:-3, 3:-3, 3:-3]
        if wrapping.is_resampled or "sform" in title:
            assert np.median(apart) <= TYPICAL_HU
        else:
            assert apart.max() <= SAME_HU


# Comparison ------------------------------------------------------------------------------------------


def mask_image(*labels: int, axes: str = "RAS", shift_mm: float = 0.0) -> nibabel.Nifti1Image:
    """A mask with a cube of 4 voxels a label, one above the other."""
    data = np.zeros((8, 8, 24), np.uint8)
    for number, label in enumerate(labels):
        data[2:6, 2:6, 1 + 6 * number : 5 + 6 * number] = label
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 3] = shift_mm
    stored = stored_as(Volume(data, affine), axes)
    return nibabel.Nifti1Image(stored.data, stored.affine)


def answer(*masks: nibabel.Nifti1Image, doubt: bool = False, fault: str = "", refusal: str = "") -> Answer:
    return Answer(masks, (doubt,) * len(masks), fault, refusal)


@pytest.mark.parametrize("axes", ["RAS", "PIR", "LSA"])
def test_dice_is_taken_in_the_world(axes):
    plain = mask_image(20, 21, 22)
    assert dice_of_labels(mask_image(20, 21, 22, axes=axes), plain) == {20: 1, 21: 1, 22: 1}
    moved = dice_of_labels(mask_image(20, 21, 23, axes=axes, shift_mm=2), plain)
    assert moved == {20: 0.75, 21: 0.75, 22: None, 23: None}  # by one of four voxels


def test_what_does_not_hold_is_told():
    plain = answer(mask_image(20, 21))
    same, read = (Wrapping("a", "wrapping", write_plain, refusal=text) for text in ("", "no space"))
    either = dataclasses.replace(read, may_be_read=True)
    cases = [
        (same, plain, ""),
        (same, answer(mask_image(20, 22)), "labels only in one: 21 22; Dice under 0.97"),
        (same, answer(mask_image(20, 21, shift_mm=2)), "Dice under 0.97"),
        (same, answer(mask_image(20, 21), mask_image(20, 21)), "2 predictions, expected 1"),
        (same, answer(), "0 predictions, expected 1"),
        (same, answer(mask_image(20, 21), doubt=True), "HU doubted"),
        (same, answer(mask_image(20, 21), fault="status 1, expected 0"), "status 1, expected 0"),
        (same, answer(refusal="bad scan: x: no space."), "bad scan: x: no space."),
        (read, answer(refusal="bad scan: x: no space."), ""),
        (read, answer(refusal="bad scan: x: no number."), "bad scan: x: no number."),
        (read, plain, "read, expected a refusal"),
        (either, answer(refusal="bad scan: x: no space."), ""),
        (either, plain, ""),
    ]
    assert [row_of(wrapping, found, plain).fault for wrapping, found, _ in cases] == [
        fault for *_, fault in cases
    ]


def test_an_end_that_the_border_cuts_may_be_found_or_not_after_resampling():
    three = mask_image(20, 21, 22)
    data = np.asanyarray(three.dataobj)
    # The uppermost cube ends 7 voxels of 2 mm below the last plane, then 1.
    for planes, is_cut in ((24, False), (18, True)):
        found = nibabel.Nifti1Image(data[..., :planes], three.affine)
        plain = nibabel.Nifti1Image(
            np.where(data == 22, 0, data)[..., :planes].astype(np.uint8), three.affine
        )
        scores = dice_of_labels(found, plain)
        assert scores == {20: 1, 21: 1, 22: None}
        kept = {20: 1, 21: 1} if is_cut else scores
        assert without_cut_ends(scores, found, plain) == kept
        assert without_cut_ends(scores, plain, found) == kept
        middle = {20: 1, 21: None, 22: 1}
        assert without_cut_ends(middle, found, plain) == middle
    resampled = Wrapping("a", "wrapping", write_plain, RESAMPLED_DICE)
    for wrapping, fault in ((resampled, ""), (PLAIN, "labels only in one: 22; Dice under 0.97")):
        assert row_of(wrapping, answer(found), answer(plain)).fault == fault


def test_a_run_is_read_by_the_folder_of_a_wrapping(tmp_path):
    place, output = tmp_path / "one", tmp_path / "out"
    line = f"bad scan: {place}/a.nii: expected a CT."
    assert answer_of(place, output, Run((line,), 1)) == answer(refusal=line)
    assert answer_of(tmp_path / "two", output, Run((line,), 1)) == answer()
    assert answer_of(place, output, Run((line, line), 1)).fault == "2 lines about it"
    assert (
        answer_of(place, output, Run(("Traceback", line), 0)).fault
        == f"a traceback; status 0, expected 1; {line}"
    )
    assert answer_of(place, output, Run((), None)).fault == "status None, expected 1; "
    died = Run((line, "Aborted"), -6)
    assert answer_of(place, output, died) == answer(refusal=line)
    assert answer_of(tmp_path / "two", output, died).fault == "status -6, expected 1; Aborted"


def test_a_mask_must_have_the_forms_of_its_scan(tmp_path):
    scan, mask = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    volume = Volume(np.zeros((8, 9, 10), np.uint8), np.diag([2.0, 2, 2, 1]))
    moved = np.diag([2.0, 2, 2.02, 1])
    write_nifti(scan, volume)
    for how, said in (
        ({}, ""),
        ({"codes": (0, 1)}, "the mask's qform is not the scan's"),
        ({"codes": (1, 2)}, "the mask's sform is not the scan's"),
        ({"forms": (None, moved)}, "the mask's sform is not the scan's"),
    ):
        assert off_scan(scan, write_nifti(mask, volume, **how)) == said
    assert off_scan(scan.with_suffix(".nrrd"), mask) == ""
