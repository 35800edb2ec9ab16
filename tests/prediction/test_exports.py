"""Masks for 3D Slicer and ITK-SNAP."""

from __future__ import annotations

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK

from tests.imaging.dicom_series import OBLIQUE
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.prediction.exports import write_itk_snap_labels, write_seg_nrrd
from utils.prediction.snapshot import colour_of
from utils.verse.cases import index_cases
from utils.verse.labels import name_of_code


def labels() -> Volume:
    """T12, L1 and T13 in boxes of a slanting grid whose numbers single precision cannot hold."""
    data = np.zeros((9, 10, 11), np.uint8)
    data[1:4, 2:5, 0:3] = 19
    data[1:4, 2:6, 4:6] = 20
    data[8, 9, 10] = 28
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ OBLIQUE * [0.7, 0.8, 2.4]
    affine[:3, 3] = (1 / 3, -20.1, 300.7)
    return Volume(data, affine)


@pytest.fixture
def written(tmp_path):
    write_seg_nrrd(tmp_path / "x.seg.nrrd", labels(), name_of_code)
    write_volume(tmp_path / "x.nii.gz", labels())
    return nrrd.read(str(tmp_path / "x.seg.nrrd"))


def test_a_segmentation_reads_back_with_names_and_colours(written):
    data, header = written
    assert data.dtype == np.uint8
    np.testing.assert_array_equal(data, labels().data)
    extents = ["1 3 2 4 0 2", "1 3 2 5 4 5", "8 8 9 9 10 10"]
    for index, (code, name, extent) in enumerate(zip((19, 20, 28), ("T12", "L1", "T13"), extents)):
        found = {field: header[f"Segment{index}_{field}"] for field in ("ID", "Name", "LabelValue", "Layer")}
        assert found == {"ID": f"Segment_{code}", "Name": name, "LabelValue": str(code), "Layer": "0"}
        assert header[f"Segment{index}_Extent"] == extent
        colour = np.array(header[f"Segment{index}_Color"].split(), float)
        np.testing.assert_allclose(colour, colour_of(code), atol=1e-5)
    assert not [field for field in header if field.startswith("Segment3_")]
    kinds = [header[f"Segmentation_{name}Representation"] for name in ("Master", "Source")]
    assert kinds == ["Binary labelmap"] * 2
    assert header["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"


def test_a_segmentation_lies_where_the_nifti_mask_lies_bit_for_bit(tmp_path, written):
    _, header = written
    assert header["space"] == "left-posterior-superior"
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = header["space directions"].T, header["space origin"]
    expected = np.diag([-1, -1, 1, 1]) @ nibabel.load(tmp_path / "x.nii.gz").affine
    np.testing.assert_array_equal(found, expected)


def test_another_reader_agrees_about_the_place(tmp_path, written):
    slicer, nifti = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("x.seg.nrrd", "x.nii.gz"))
    for index in ((0, 0, 0), (8, 9, 10)):
        first, second = (image.TransformIndexToPhysicalPoint(index) for image in (slicer, nifti))
        np.testing.assert_allclose(first, second, atol=1e-4)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(slicer), SimpleITK.GetArrayFromImage(nifti))


def test_label_descriptions_hold_every_label_and_the_background(tmp_path):
    write_itk_snap_labels(tmp_path / "x.txt", labels(), name_of_code)
    text = (tmp_path / "x.txt").read_text()
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert [(row[0], " ".join(row[7:])) for row in rows] == [
        *(("0", '"Clear Label"'), ("19", '"T12"'), ("20", '"L1"'), ("28", '"T13"'))
    ]
    assert [row[4:7] for row in rows] == [["0"] * 3, *[["1"] * 3] * 3]
    for row in rows[1:]:
        np.testing.assert_allclose(np.array(row[1:4], int), 255 * colour_of(int(row[0])), atol=0.5)


def test_no_vertebra_gives_files_without_segments(tmp_path):
    nothing = Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    write_seg_nrrd(tmp_path / "x.seg.nrrd", nothing, str)
    write_itk_snap_labels(tmp_path / "x.txt", nothing, str)
    data, header = nrrd.read(str(tmp_path / "x.seg.nrrd"))
    assert not data.any() and not [field for field in header if field.startswith("Segment0")]
    assert (tmp_path / "x.txt").read_text().count("\n    0 ") == 1


def test_names_of_counted_vertebrae_and_nothing_half_written(tmp_path):
    write_seg_nrrd(tmp_path / "x.seg.nrrd", labels(), str)
    assert nrrd.read_header(str(tmp_path / "x.seg.nrrd"))["Segment1_Name"] == "20"

    def broken(code):
        raise RuntimeError

    for write, name in ((write_seg_nrrd, "y.seg.nrrd"), (write_itk_snap_labels, "y.txt")):
        with pytest.raises(RuntimeError):
            write(tmp_path / name, labels(), broken)
    assert [path.name for path in tmp_path.iterdir()] == ["x.seg.nrrd"]


def test_the_index_of_predictions_passes_them_over(tmp_path):
    folder = tmp_path / "derivatives" / "sub-a"
    write_volume(folder / "sub-a_seg-vert_msk.nii.gz", labels())
    write_seg_nrrd(folder / "sub-a_seg-vert_msk.seg.nrrd", labels(), str)
    write_itk_snap_labels(folder / "sub-a_labels.txt", labels(), str)
    (folder / "sub-a_seg-vert_msk.dcm").touch()
    (case,) = index_cases(tmp_path)
    assert case.mask == folder / "sub-a_seg-vert_msk.nii.gz"
