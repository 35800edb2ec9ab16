"""Masks as DICOM segmentations: where they lie, by two readers, and what their segments are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.sr.codedict import codes

from tests.imaging.dicom_series import OBLIQUE, compress, write_enhanced, write_series
from utils.imaging.dicom import read_series
from utils.imaging.nifti import write_volume
from utils.imaging.volume import Volume
from utils.prediction.dicom_seg import check_source, write_dicom_seg
from utils.prediction.exports import check_formats, wanted_exports
from utils.prediction.snapshot import colour_of
from utils.verse.labels import LEVEL_NAMES, code_of_name, name_of_code

pytest.importorskip("highdicom")

SHAPE = (9, 10, 12)
STUDY = {"StudyInstanceUID": "1.2.826.1", "FrameOfReferenceUID": "1.2.826.2"}
#: Turns in LPS+: as scans lie, tilted, sagittal slices, and numbered from the top down.
TURNS = {
    "axial": np.eye(3),
    "oblique": OBLIQUE,
    "sagittal": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0.0]]),
    "left-handed": np.diag([1.0, 1, -1]),
    "oblique and left-handed": OBLIQUE @ np.diag([1.0, 1, -1]),
}


def ct_of(turn: np.ndarray = OBLIQUE) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ turn * [0.7, 0.8, 2.4]
    affine[:3, 3] = (1 / 3, -20.1, 300.7)
    return Volume(np.zeros(SHAPE, np.int16), affine)


def labels_on(files: list[Path], codes_: tuple[int, ...] = (19, 28, 20)) -> Volume:
    """Random voxels of labels on the grid that a series is read on, in ten of its twelve slices."""
    ct = read_series(files)
    data = np.random.default_rng(2).choice(
        [0, *codes_], ct.shape, p=[0.7, *[0.3 / len(codes_)] * len(codes_)]
    )
    data[..., [0, 11]] = 0
    return Volume(data.astype(np.uint8), ct.affine)


def written(folder: Path, files: list[Path], labels: Volume, name_of=name_of_code) -> Path:
    write_dicom_seg(folder / "x.dcm", labels, name_of, series=files)
    return folder / "x.dcm"


def nifti_mask(folder: Path, labels: Volume) -> nibabel.Nifti1Image:
    """The mask that a case has as NIfTI, as nibabel reads it."""
    write_volume(folder / "x.nii.gz", labels)
    return nibabel.load(folder / "x.nii.gz")


def laid(points: np.ndarray, labels: np.ndarray, mask: nibabel.Nifti1Image) -> np.ndarray:
    """Labels of points (mm, LPS+) in voxels of a mask, each of which is one's middle and no other's."""
    index = (points * [-1, -1, 1] - mask.affine[:3, 3]) @ np.linalg.inv(mask.affine[:3, :3]).T
    np.testing.assert_allclose(index, np.rint(index), rtol=0, atol=1e-3)
    index = np.rint(index).astype(int)
    assert len(np.unique(index, axis=0)) == len(index)
    found = np.zeros(mask.shape, np.uint8)
    found[tuple(index.T)] = labels
    return found


def label_of(segment: pydicom.Dataset) -> int:
    return int(segment.SegmentDescription.split()[1])


def by_pydicom(path: Path, mask: nibabel.Nifti1Image) -> np.ndarray:
    """Labels in the voxels of a mask, from frames and their positions alone."""
    found = pydicom.dcmread(path)
    label = {int(each.SegmentNumber): label_of(each) for each in found.SegmentSequence}
    shared = found.SharedFunctionalGroupsSequence[0]
    down, across = shared.PixelMeasuresSequence[0].PixelSpacing
    x, y = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    points, labels = [], []
    for frame, group in zip(found.pixel_array, found.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        places = np.argwhere(frame)
        points.append(origin + places[:, :1] * down * y + places[:, 1:] * across * x)
        labels += [label[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber]] * len(places)
    return laid(np.concatenate(points), np.array(labels), mask)


def dcmqi_image(path: Path, folder: Path) -> SimpleITK.Image | None:
    """What dcmqi makes of it: an image of segment numbers."""
    pytest.importorskip("dcmqi")
    program = "import dcmqi; dcmqi.segimage2itkimage()"
    arguments = (
        "--inputDICOM",
        path,
        "--outputDirectory",
        folder,
        "--mergeSegments",
        "-t",
        "nrrd",
        "-p",
        "x",
    )
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    (image,) = folder.glob("*.nrrd")
    return SimpleITK.ReadImage(str(image))


def by_dcmqi(path: Path, mask: nibabel.Nifti1Image, folder: Path) -> np.ndarray:
    """Labels in the voxels of a mask, from what dcmqi reads."""
    image = dcmqi_image(path, folder)
    labels = np.array([0, *(label_of(each) for each in pydicom.dcmread(path).SegmentSequence)])
    data = labels[SimpleITK.GetArrayFromImage(image).T]
    index = np.argwhere(data)
    points = np.array([image.TransformIndexToPhysicalPoint(each) for each in index.tolist()])
    return laid(points, data[tuple(index.T)], mask)


# Where it lies


@pytest.mark.parametrize("turn", TURNS)
def test_every_voxel_lies_where_that_of_the_nifti_mask_lies_for_two_readers(tmp_path, turn):
    shuffled = [f"{'deep/er' if place % 3 else 'top'}/{(7 * place) % 12:02}.ima" for place in range(12)]
    files = write_series(tmp_path / "dicom", ct_of(TURNS[turn]), names=shuffled, **STUDY)
    labels = labels_on(files)
    path, mask = written(tmp_path, files, labels), nifti_mask(tmp_path, labels)
    assert np.count_nonzero(mask.dataobj) > 200
    np.testing.assert_array_equal(by_pydicom(path, mask), mask.dataobj)
    np.testing.assert_array_equal(by_dcmqi(path, mask, tmp_path), mask.dataobj)


@pytest.mark.parametrize("shared", [(), ("PlaneOrientationSequence", "PixelMeasuresSequence")])
def test_frames_of_one_file_are_the_source_of_frames(tmp_path, shared):
    file = write_enhanced(tmp_path / "ct.dcm", ct_of(), shared=shared, **STUDY)
    labels = labels_on([file])
    path, mask = written(tmp_path, [file], labels), nifti_mask(tmp_path, labels)
    np.testing.assert_array_equal(by_pydicom(path, mask), mask.dataobj)
    np.testing.assert_array_equal(by_dcmqi(path, mask, tmp_path), mask.dataobj)
    source = pydicom.dcmread(file).PerFrameFunctionalGroupsSequence
    for group in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        reference = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        position = source[int(reference) - 1].PlanePositionSequence[0].ImagePositionPatient
        assert group.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(position)


def test_a_frame_refers_to_its_slice_and_the_whole_to_all_slices(tmp_path):
    files = write_series(tmp_path / "dicom", ct_of(TURNS["oblique and left-handed"]), **STUDY)
    found = pydicom.dcmread(written(tmp_path, files, labels_on(files)))
    slices = {each.SOPInstanceUID: each for each in map(pydicom.dcmread, files)}
    (series,) = found.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == next(iter(slices.values())).SeriesInstanceUID
    assert {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence} == set(slices)
    assert len(found.PerFrameFunctionalGroupsSequence) == 30  # three labels in ten slices: no empty frame
    for group in found.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        position = slices[source.ReferencedSOPInstanceUID].ImagePositionPatient
        assert group.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(position)


def test_directions_that_differ_by_rounding_and_wrong_declared_gaps_do_not_matter(tmp_path):
    first = ct_of()
    directions = [float(text) for text in write_directions(first)]
    changes = {
        "ImageOrientationPatient": lambda index: [round(each, 4 + index % 3) for each in directions],
        "SpacingBetweenSlices": "7",
        "SliceThickness": "5",
    }
    files = write_series(tmp_path / "dicom", first, **STUDY, **changes)
    measures = pydicom.dcmread(written(tmp_path, files, labels_on(files))).SharedFunctionalGroupsSequence[0]
    assert float(measures.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(2.4, abs=1e-4)


def write_directions(ct: Volume) -> np.ndarray:
    lps = np.diag([-1.0, -1, 1]) @ ct.affine[:3, :2]
    return (lps / np.linalg.norm(lps, axis=0)).T.ravel()


def test_a_compressed_series_serves_too(tmp_path):
    files = write_series(tmp_path / "dicom", ct_of(), **STUDY)
    for file in files:
        compress(file, "JPEG2000")
    labels = labels_on(files)
    path, mask = written(tmp_path, files, labels), nifti_mask(tmp_path, labels)
    np.testing.assert_array_equal(by_pydicom(path, mask), mask.dataobj)


# What it says


def test_segments_are_the_vertebrae_from_the_top_down_with_their_codes(tmp_path):
    files = write_series(tmp_path / "dicom", ct_of(), **STUDY)
    found = pydicom.dcmread(written(tmp_path, files, labels_on(files, (20, 25, 7, 28, 19))))
    kinds = [each.SegmentedPropertyTypeCodeSequence[0] for each in found.SegmentSequence]
    parts = [each.AnatomicRegionSequence[0] for each in found.SegmentSequence]
    # SNOMED CT, as CID 7603, 7192 and 4 of DICOM's part 16 print it.
    assert [
        (each.SegmentNumber, each.SegmentLabel, kind.CodeValue, kind.CodeMeaning, part.CodeMeaning)
        for each, kind, part in zip(found.SegmentSequence, kinds, parts)
    ] == [
        (1, "C7", "87391001", "C7 vertebra", "Cervical spine"),
        (2, "T12", "23215003", "T12 vertebra", "Thoracic spine"),
        (3, "T13", "51282000", "Vertebra", "Thoracic spine"),
        (4, "L1", "66794005", "L1 vertebra", "Lumbar spine"),
        (5, "L6", "51282000", "Vertebra", "Lumbar spine"),
    ]
    assert {each.CodingSchemeDesignator for each in (*kinds, *parts)} == {"SCT"}
    assert [label_of(each) for each in found.SegmentSequence] == [7, 19, 28, 20, 25]


def test_each_level_has_the_code_that_is_named_as_it_is(tmp_path):
    files = write_series(tmp_path / "dicom", ct_of(), **STUDY)
    every = tuple(code_of_name(name) for name in LEVEL_NAMES)
    found = pydicom.dcmread(written(tmp_path, files, labels_on(files, every)))
    kinds = {each.SegmentLabel: each.SegmentedPropertyTypeCodeSequence[0] for each in found.SegmentSequence}
    assert tuple(kinds) == LEVEL_NAMES
    for name in set(LEVEL_NAMES) - {"T13", "L6"}:
        assert kinds[name].CodeMeaning == f"{name} vertebra"
    assert len({kind.CodeValue for kind in kinds.values()}) == 25  # T13 and L6 share one


def test_what_made_the_segments_and_their_colours_are_said(tmp_path):
    from highdicom.color import CIELabColor

    files = write_series(tmp_path / "dicom", ct_of(), **STUDY)
    found = pydicom.dcmread(written(tmp_path, files, labels_on(files)))
    root = Path(__file__).parents[2]
    citation = (root / "CITATION.cff").read_text()
    assert '\nname = "vertebra-segmentation"\n' in (root / "pyproject.toml").read_text()
    for code, segment in zip((19, 28, 20), found.SegmentSequence, strict=True):
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert algorithm.AlgorithmName == segment.SegmentAlgorithmName == "vertebra-segmentation"
        assert f"\nversion: {algorithm.AlgorithmVersion}\n" in citation
        assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == codes.DCM.ArtificialIntelligence.value
        colour = CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue).to_rgb()
        np.testing.assert_allclose(colour, 255 * colour_of(code), atol=1)
    assert (found.SegmentationType, found.Modality, found.SegmentsOverlap) == ("BINARY", "SEG", "NO")


def test_patient_and_study_are_those_of_the_series_in_any_script(tmp_path):
    known = {
        **{"PatientName": "Müller^Jürg", "PatientSex": "M", "PatientBirthDate": "19500102"},
        **{"SpecificCharacterSet": "ISO_IR 100", "StudyDate": "20200304", "AccessionNumber": "A7"},
        **{"StudyDescription": "CT Wirbelsäule", "PatientID": "P-9", **STUDY},
    }
    files = write_series(tmp_path / "dicom", ct_of(), **known)
    first, second = (pydicom.dcmread(written(tmp_path, files, labels_on(files))) for _ in range(2))
    assert {keyword: first[keyword].value for keyword in known} == known
    assert first.SeriesInstanceUID not in (
        pydicom.dcmread(files[0]).SeriesInstanceUID,
        second.SeriesInstanceUID,
    )
    assert first.SOPInstanceUID != second.SOPInstanceUID


def test_an_anonymous_series_leaves_the_patient_empty(tmp_path):
    files = write_series(tmp_path / "dicom", ct_of(), PatientID="", **STUDY)
    found = pydicom.dcmread(written(tmp_path, files, labels_on(files)))
    empty = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber")
    assert [found[keyword].is_empty for keyword in empty] == [True] * 6


def test_counted_vertebrae_are_vertebrae_of_the_spine(tmp_path):
    files = write_series(tmp_path / "dicom", ct_of(), **STUDY)
    found = pydicom.dcmread(written(tmp_path, files, labels_on(files, (1, 2)), name_of=str))
    for number, segment in enumerate(found.SegmentSequence, start=1):
        assert segment.SegmentLabel == str(number)
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Vertebra"
        assert segment.AnatomicRegionSequence[0].CodeMeaning == "Spine"


def test_no_vertebra_gives_one_empty_segment(tmp_path, capfd):
    files = write_series(tmp_path / "dicom", ct_of(), **STUDY)
    path = written(tmp_path, files, Volume(np.zeros(SHAPE, np.uint8), labels_on(files).affine))
    assert capfd.readouterr() == ("", "")
    found = pydicom.dcmread(path)
    (segment,) = found.SegmentSequence
    assert (segment.SegmentLabel, segment.SegmentDescription) == ("Vertebra", "No vertebra was found")
    assert found.pixel_array.shape == (12, 10, 9) and not found.pixel_array.any()
    assert not SimpleITK.GetArrayFromImage(dcmqi_image(path, tmp_path)).any()


# What is refused


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"StudyInstanceUID": ""}, "no StudyInstanceUID in IM0000"),
        ({"FrameOfReferenceUID": ""}, "no FrameOfReferenceUID in IM0000"),
        ({"SeriesInstanceUID": ""}, "no SeriesInstanceUID in IM0000"),
        (
            {"SOPInstanceUID": lambda index: "" if index == 7 else f"1.2.{index}"},
            "no SOPInstanceUID in IM0007",
        ),
        ({"PatientSex": "U"}, "'U' is not a valid PatientSexValues"),
    ],
)
def test_headers_that_a_segmentation_cannot_refer_to_are_refused_beforehand(tmp_path, changes, found):
    files = write_series(tmp_path / "dicom", ct_of(), **{**STUDY, **changes})
    expected = f"{tmp_path / 'dicom'}: series 3: expected headers as a DICOM segmentation needs them, found: "
    for call in (
        lambda: check_source(tmp_path / "dicom", files),
        lambda: written(tmp_path, files, labels_on(files)),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == f"{expected}{found}. Without --formats dicom-seg it can be segmented."
    assert not (tmp_path / "x.dcm").exists()


def test_slices_in_several_files_of_frames_are_refused(tmp_path):
    ct = ct_of()
    halves = [Volume(ct.data[..., begin : begin + 6], ct.affine.copy()) for begin in (0, 6)]
    halves[1].affine[:3, 3] += 6 * ct.affine[:3, 2]
    files = [
        write_enhanced(tmp_path / f"{place}.dcm", half, SeriesInstanceUID="1.2.826.3", **STUDY)
        for place, half in enumerate(halves)
    ]
    assert read_series(files).shape == SHAPE
    with pytest.raises(ValueError, match="found: 12 slices in 2 files, the first with 6 frames"):
        check_source(tmp_path, files)


def test_another_format_is_refused(tmp_path):
    with pytest.raises(ValueError) as error:
        wanted_exports(("nifti", "dicom-seg"), tmp_path / "x.nii.gz")
    path = tmp_path / "x.nii.gz"
    assert str(error.value) == f"{path}: expected DICOM for --formats dicom-seg, found another format."


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path):
    files = write_series(tmp_path / "dicom", ct_of(), **STUDY)
    labels = labels_on(files)
    moved = labels.affine.copy()
    moved[:3, 3] += 0.5
    for wrong in (Volume(labels.data, moved), Volume(labels.data[1:], labels.affine)):
        with pytest.raises(ValueError, match=r"expected a mask on its grid, \(9, 10, 12\), found"):
            written(tmp_path, files, wrong)
    assert not (tmp_path / "x.dcm").exists()


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    check_formats(("nifti", "dicom-seg"))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    check_formats(("nifti", "seg.nrrd"))
    with pytest.raises(ValueError, match=r"pip install -r requirements-seg\.txt$"):
        check_formats(("dicom-seg",))
    assert (Path(__file__).parents[2] / "requirements-seg.txt").is_file()


def test_a_file_that_was_there_stays_if_the_new_one_fails(tmp_path):
    files = write_series(tmp_path / "dicom", ct_of(), **STUDY)
    (tmp_path / "x.dcm").write_text("old")

    def broken(code):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        written(tmp_path, files, labels_on(files), name_of=broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dicom", "x.dcm"]
    assert (tmp_path / "x.dcm").read_text() == "old"
