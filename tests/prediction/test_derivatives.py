"""Back to the native grid, numbering, and the files of a case."""

from __future__ import annotations

import csv
import hashlib
import json

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from tests.walk.column import AFFINE, BLOCK_VOXELS, CENTRES, HU_A_RANK, column, column_ct
from utils.imaging.centroids import read_centroids
from utils.imaging.grids import cropped_grid, oriented, transform_points, working_grid
from utils.imaging.nifti import read_mask
from utils.imaging.volume import Grid, Volume
from utils.prediction import derivatives
from utils.prediction.case import (
    TABLE_COLUMNS,
    CasePrediction,
    native_vertebrae,
    number_vertebrae,
    vertebra_table,
)
from utils.prediction.derivatives import case_path, changed_files, read_case_settings, write_case
from utils.prediction.exports import wanted_exports
from utils.verse.cases import index_cases
from utils.walk.records import FoundVertebra


def found(probability: np.ndarray, begin: tuple[int, int, int], **changes) -> FoundVertebra:
    """A vertebra of the walk from a probability in a box."""
    probability = np.asarray(probability, np.float16)
    centre = np.array(begin) + (np.array(probability.shape) - 1) / 2
    return FoundVertebra(
        **{
            **{"begin": np.array(begin), "probability": probability, "mask": probability >= 0.5},
            **{"centre": centre, "heat": 1.0, "steps": 3, "converged": True},
            **changes,
        }
    )


def found_blocks() -> list[FoundVertebra]:
    """The six blocks of the column, with a margin of one voxel and probability .75 inside."""
    ranks = column().data
    boxes = [
        tuple(slice(int(c) - h, int(c) + h + 1) for c, h in zip(centre, (5, 6, 4))) for centre in CENTRES
    ]
    return [
        found((ranks[box] == rank) * 0.75, tuple(side.start for side in box))
        for rank, box in enumerate(boxes, start=1)
    ]


# Numbering


@pytest.mark.parametrize(
    ("count", "first", "codes"),
    [
        (3, "L1", (20, 21, 22)),
        (4, "t11", (18, 19, 20, 21)),  # T13 is passed over
        (2, "T13", (28, 20)),
        (9, "L4", (23, 24, 25)),  # the levels end with L6
        (3, None, (1, 2, 3)),
        (30, None, tuple(range(1, 26))),
        (0, None, ()),
    ],
)
def test_numbering(count, first, codes):
    assert number_vertebrae(count, first).codes == codes


def test_names_follow_the_kind_of_numbering():
    assert number_vertebrae(1, "L1").name(20) == "L1"
    assert number_vertebrae(1, "L1").kind == "anatomical"
    assert number_vertebrae(9).name(8) == "8"
    assert number_vertebrae(9).kind == "count"


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="X9"):
        number_vertebrae(3, "X9")


# Native grid


def test_the_working_grid_itself_gives_back_the_blocks():
    grid = column().grid
    native = native_vertebrae(found_blocks(), AFFINE, grid, codes=range(1, 7))
    np.testing.assert_array_equal(native.labels.data, column().data)
    np.testing.assert_array_equal(native.probability[native.labels.data > 0], 0.75)


@pytest.mark.parametrize("axes", ["LAS", "RPI", "SPL", "PIR"])
def test_any_orientation_of_the_native_grid(axes):
    turned = oriented(column(), tuple(axes))
    native = native_vertebrae(found_blocks(), AFFINE, turned.grid, codes=range(1, 7))
    np.testing.assert_array_equal(native.labels.data, turned.data)
    np.testing.assert_array_equal(native.labels.affine, turned.affine)


def test_probabilities_are_linear_and_the_larger_one_wins():
    """One line of voxels along I, 2 mm; native voxels of .5 mm whose first centre is the line's first."""
    first, second = found([[[1, 1, 0, 0]]], (0, 0, 0)), found([[[0, 0.4, 1, 0]]], (0, 0, 0))
    fine = AFFINE @ np.diag([1, 1, 0.25, 1])
    native = native_vertebrae([first, second], AFFINE, Grid((1, 1, 13), fine), codes=(3, 7))
    # first: 1 up to voxel 1, then 1 - t; second: from .4 at voxel 1 to 1 at voxel 2 is .4 + .6 t.
    # They meet at t = .375; second falls under .5 half way from voxel 2 to voxel 3.
    np.testing.assert_array_equal(native.labels.data[0, 0], [3, 3, 3, 3, 3, 3, 7, 7, 7, 7, 7, 0, 0])


@pytest.mark.parametrize("degrees", [0, 30])
def test_a_finer_grid_agrees_with_scipy(degrees):
    rng = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(rng.normal(size=(14, 15, 16)), 2)
    probability = np.clip((smooth - smooth.min()) / np.ptp(smooth), 0, 1)
    probability[[0, -1]], probability[:, [0, -1]], probability[:, :, [0, -1]] = 0, 0, 0
    vertebra = found(probability, (9, 10, 11))
    affine = np.array([[-0.7, 0, 0, 55], [0, 0.9, 0, -60], [0, 0, 2.5, 215], [0, 0, 0, 1]])
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    middle = affine @ [20, 25, 15, 1]  # a stack that is turned about it
    affine = np.array([[1, 0, 0, 0], [0, cosine, -sine, 0], [0, sine, cosine, 0], [0, 0, 0, 1]]) @ affine
    affine[:, 3] += middle - affine @ [20, 25, 15, 1]
    grid = Grid((40, 50, 30), affine)
    native = native_vertebrae([vertebra], AFFINE, grid, codes=(5,))
    index = np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)
    at = transform_points(index, affine, AFFINE) - vertebra.begin
    expected = ndimage.map_coordinates(vertebra.probability.astype(np.float32), at.T, order=1, cval=0)
    expected = expected.reshape(grid.shape)
    sure = np.abs(expected - 0.5) > 1e-4
    assert (expected > 0.5).sum() > 500
    np.testing.assert_array_equal((native.labels.data == 5)[sure], (expected > 0.5)[sure])


def test_a_vertebra_outside_the_native_grid_leaves_no_voxel():
    grid = Grid((4, 4, 4), AFFINE)
    native = native_vertebrae(found_blocks(), AFFINE, grid, codes=range(1, 7))
    assert not native.labels.data.any()
    ct = Volume(np.zeros(grid.shape, np.int16), AFFINE)
    assert vertebra_table("sub-a", ct, native, found_blocks(), numbering=number_vertebrae(6)) == []


def test_a_vertebra_that_ends_with_the_scan_is_partial_whatever_the_working_grid_says():
    whole = column()
    top = int(np.flatnonzero((whole.data == 2).any(axis=(0, 1)))[0])
    grid = cropped_grid(whole.grid, [0, 0, top + 2], whole.shape)  # cuts the second block
    ct = Volume(np.zeros(grid.shape, np.int16), grid.affine)
    native = native_vertebrae(found_blocks(), AFFINE, grid, codes=range(1, 7))
    rows = vertebra_table("sub-a", ct, native, found_blocks(), numbering=number_vertebrae(6))
    assert {row["label"]: row["partial"] for row in rows} == {2: 1, 3: 0, 4: 0, 5: 0, 6: 0}


def test_vertebrae_beyond_the_last_label_are_left_out():
    native = native_vertebrae(found_blocks(), AFFINE, column().grid, codes=number_vertebrae(6, "L5").codes)
    assert set(np.unique(native.labels.data)) == {0, 24, 25}


# Table and files


def predicted(first_label: str | None = None, key: str = "sub-col_dir-ax") -> CasePrediction:
    """The column as it is written, on a native grid that is turned (L, A, S)."""
    ct = oriented(column_ct(), ("L", "A", "S"))
    blocks = found_blocks()
    numbering = number_vertebrae(len(blocks), first_label)
    native = native_vertebrae(blocks, AFFINE, ct.grid, codes=numbering.codes)
    table = vertebra_table(key, ct, native, blocks, numbering=numbering)
    return CasePrediction(key, ct, native.labels, numbering, tuple(table), {"heat_threshold": 0.3})


def test_the_table_describes_every_vertebra():
    second = predicted("T12").table[1]
    x, y, z = AFFINE[:3, :3] @ CENTRES[1] + AFFINE[:3, 3]
    assert second == {
        **{"case": "sub-col_dir-ax", "label": 20, "name": "L1", "numbering": "anatomical"},
        **{"volume_mm3": BLOCK_VOXELS * 8.0, "mean_hu": 2.0 * HU_A_RANK},
        **{"centre_x": x, "centre_y": y, "centre_z": z},
        **{"steps": 3, "converged": 1, "mean_probability": 0.75},
        **{"label_probability": "", "partial": 0},
    }


def test_the_files_of_a_case_read_back(tmp_path):
    prediction = predicted("T11")
    write_case(prediction, tmp_path)
    folder = tmp_path / "derivatives" / "sub-col"
    assert sorted(path.name for path in folder.iterdir()) == [
        "sub-col_dir-ax_seg-vb_ctd.json",
        "sub-col_dir-ax_seg-vert_msk.nii.gz",
        "sub-col_dir-ax_seg-vert_snp.png",
        "sub-col_dir-ax_settings.json",
        "sub-col_dir-ax_vertebrae.csv",
    ]
    (case,) = index_cases(tmp_path)
    assert case.key == "sub-col_dir-ax"
    mask = read_mask(case.mask)
    assert nibabel.load(case.mask).get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, prediction.ct.affine)
    np.testing.assert_array_equal(mask.data, prediction.labels.data)
    centroids = read_centroids(case.centroids, mask.grid)
    assert centroids.codes.tolist() == [18, 19, 20, 21, 22, 23]
    np.testing.assert_allclose(centroids.voxels(AFFINE), CENTRES, atol=1e-3)
    with (folder / "sub-col_dir-ax_vertebrae.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == ["T11", "T12", "L1", "L2", "L3", "L4"]
    assert tuple(rows[0]) == TABLE_COLUMNS
    settings = read_case_settings(tmp_path, "sub-col_dir-ax")
    files = settings.pop("files")
    assert settings == {"heat_threshold": 0.3}
    written = {f"sub-col_dir-ax{suffix}": digest for suffix, digest in files.items()}
    others = [path for path in folder.iterdir() if path.name != "sub-col_dir-ax_settings.json"]
    assert written == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in others}


def test_what_a_case_holds_is_known_by_what_was_written(tmp_path):
    key = "sub-col_dir-ax"
    write_case(predicted(), tmp_path, exports=wanted_exports(("nifti", "seg.nrrd"), tmp_path))
    settings = read_case_settings(tmp_path, key)
    assert changed_files(tmp_path, key, settings) == []
    ends = ("_seg-vert_msk.nii.gz", "_vertebrae.csv", "_seg-vert_msk.seg.nrrd")
    mask, table, export = (case_path(tmp_path, key, end) for end in ends)
    mask.write_bytes(mask.read_bytes()[:-1])
    assert changed_files(tmp_path, key, settings) == [mask.name]
    table.unlink()
    assert changed_files(tmp_path, key, settings) == [table.name, mask.name]
    # Made from the mask where it is wanted, so it need not be there; half of it is of no use.
    export.write_bytes(export.read_bytes()[:100])
    assert changed_files(tmp_path, key, settings) == [table.name, mask.name, export.name]
    export.unlink()
    assert changed_files(tmp_path, key, settings) == [table.name, mask.name]
    of_earlier_version = {name: value for name, value in settings.items() if name != "files"}
    assert changed_files(tmp_path, key, of_earlier_version) == []


def test_a_scan_without_vertebrae_is_written_too(tmp_path):
    ct = column_ct()
    native = native_vertebrae([], AFFINE, ct.grid, codes=())
    assert vertebra_table("sub-none", ct, native, [], numbering=number_vertebrae(0)) == []
    write_case(CasePrediction("sub-none", ct, native.labels, number_vertebrae(0), (), {}), tmp_path)
    folder = tmp_path / "derivatives" / "sub-none"
    assert not read_mask(folder / "sub-none_seg-vert_msk.nii.gz").data.any()
    assert json.loads((folder / "sub-none_seg-vb_ctd.json").read_text())[1:] == []
    assert (folder / "sub-none_vertebrae.csv").read_text().splitlines() == [",".join(TABLE_COLUMNS)]


def test_a_killed_run_leaves_the_case_undone(tmp_path, monkeypatch):
    write_case(predicted(), tmp_path)
    assert read_case_settings(tmp_path, "sub-col_dir-ax") is not None

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(derivatives, "snapshot_figure", killed)
    with pytest.raises(KeyboardInterrupt):
        write_case(predicted(), tmp_path)
    assert read_case_settings(tmp_path, "sub-col_dir-ax") is None
    assert not list(tmp_path.rglob("*msk*")) and not list(tmp_path.rglob(".*"))


def test_working_grid_of_a_turned_scan_is_that_of_the_column():
    """The fixture above relies on it: turning the scan does not move its working grid."""
    grid = working_grid(oriented(column_ct(), ("L", "A", "S")).grid, 2.0)
    np.testing.assert_allclose(grid.affine, AFFINE)
