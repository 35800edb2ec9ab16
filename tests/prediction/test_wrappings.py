"""The same anatomy gives the same answer, whatever it is wrapped in.

Every wrapping is read as the plain copy of a generated spine, and six of them are segmented as it. With
LONG_TESTS=1 all of them are segmented, of the generated spine and of a real CT; some five minutes each.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from tests.imaging.examples import DATA, NO_DATA, VERSE_FILES
from tests.prediction.wrapping_runs import Answer, Row, dice_of_labels, row_of, rows
from tests.prediction.wrappings import PLAIN, QUICK, WRAPPINGS, Wrapping, plain_scan
from utils.imaging.formats import hu_doubt, read_scan
from utils.imaging.volume import Volume
from utils.prediction.scans import find_scans
from utils.synthetic.phantom.make import make_phantom
from utils.verse.labels import code_of_name

REAL_CT = DATA / VERSE_FILES[0]
LONG = pytest.mark.skipif(not os.environ.get("LONG_TESTS"), reason="LONG_TESTS is not set")
BY_TITLE = {wrapping.title: wrapping for wrapping in WRAPPINGS}
#: Where a wrapping's scan must show what the plain one shows: difference in HU of half of the voxels, of all.
TYPICAL_HU, LARGEST_HU = 25, 0


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
    """A part of the generated spine; no wrapping has less than ten slices of it."""
    ct = generated_spine()
    return Volume(np.ascontiguousarray(ct.data[60:100, 40:70, 50:86]), ct.affine)


@pytest.mark.parametrize("title", [title for title, one in BY_TITLE.items() if not one.environment])
def test_every_wrapping_is_read_as_the_plain_copy(tmp_path, title):
    wrapping, ct = BY_TITLE[title], small_scan()
    folder = tmp_path / wrapping.folder_name
    folder.mkdir()
    scans, refusals = read_all(wrapping.write(ct, folder))
    if wrapping.refusal and refusals:
        assert not scans and re.search(wrapping.refusal, refusals[0]), refusals
        return
    assert not refusals and len(scans) == wrapping.scans and not (wrapping.refusal and not wrapping.may_be_read)
    for scan in scans:
        to_scan = np.linalg.inv(scan.affine) @ ct.affine
        apart = np.abs(shown_at(scan, to_scan, ct.shape) - ct.data)[3:-3, 3:-3, 3:-3]
        if wrapping.kind in ("obliqueness", "spacing") or "oblique" in title:
            assert np.median(apart) <= TYPICAL_HU
        elif "sform" in title:  # moved by less than half a voxel
            assert np.median(apart) <= 2 * TYPICAL_HU
        else:
            assert apart.max() <= LARGEST_HU
