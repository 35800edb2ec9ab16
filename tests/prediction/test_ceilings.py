"""What a network that predicts its targets exactly would reach: the ceilings of the working grid."""

import numpy as np
import pytest

from tests.imaging.examples import DATA, NO_DATA, real
from utils.evaluation.metrics import dice_of_match, overlap_table
from utils.imaging.grids import resized_grid, working_grid
from utils.imaging.nifti import read_mask
from utils.imaging.resampling import resample_labels
from utils.imaging.volume import Volume
from utils.prediction.case import native_vertebrae
from utils.preparation.working_case import FINE
from utils.walk.look import vertebra_of, without_specks

#: Ends of the names of the five real masks.
NAMES = ("chest", "abdomen", "sub-verse014", "sub-verse004", "sub-gl003_dir-ax")
SPACING_MM, LEAST = 2.0, 0.95
#: What is left of a vertebra in the last slice of the chest says nothing about the grid.
LEAST_MM = 5.0


def targets_of(mask, spacing_mm):
    """Shares of the voxels of the working grid, by code, as the training has them; and the grid."""
    grid = working_grid(mask.grid, spacing_mm)
    fine = resample_labels(mask, resized_grid(grid, np.multiply(grid.shape, FINE)), extends=True).data
    shape = [part for n in grid.shape for part in (n, FINE)]
    shares = {code: (fine == code).reshape(shape).mean(axis=(1, 3, 5)) for code in mask.label_boxes}
    return shares, grid


def thickness_mm(mask, code):
    """The least edge of the box of a vertebra."""
    return min((side.stop - side.start) * mm for side, mm in zip(mask.label_boxes[code], mask.spacing_mm))


def dice_of_targets(mask, spacing_mm, *, bits):
    """Mean Dice on the native grid of what the chain makes of exact predictions."""
    shares, grid = targets_of(mask, spacing_mm)
    found = []
    for share in shares.values():
        inside = without_specks(share >= 0.5)
        probability = (inside if bits else share).astype(np.float32)
        found.append(vertebra_of(np.zeros(3, int), probability, inside, 0.5))
    codes = [*shares]
    seen = [code for code in codes if thickness_mm(mask, code) >= LEAST_MM]
    labels = native_vertebrae(found, grid.affine, mask.grid, codes=codes).labels
    table = overlap_table(mask.data, labels.data)
    return float(np.mean([dice_of_match(table, (code, code)) for code in seen]))


@pytest.mark.skipif(not DATA.is_dir(), reason=NO_DATA)
@pytest.mark.parametrize("name", NAMES)
def test_exact_occupancies_reach_real_masks(name):
    mask = read_mask(real(f"{name}_seg-vert_msk.nii.gz"))
    assert dice_of_targets(mask, SPACING_MM, bits=False) >= LEAST


def test_occupancies_reach_further_than_bits():
    data = np.zeros((60, 50, 40), np.uint8)
    at = np.moveaxis(np.indices(data.shape), 0, -1)
    for code, middle in ((20, (25.3, 24.8, 11.1)), (21, (27.6, 25.2, 28.4))):
        data[np.linalg.norm((at - middle) / (1.6, 1.4, 0.8), axis=-1) < 9] = code
    mask = Volume(data, np.diag([0.8, 0.9, 1.1, 1.0]))
    exact, rounded = (dice_of_targets(mask, SPACING_MM, bits=bits) for bits in (False, True))
    assert exact >= LEAST and exact > rounded + 0.01
