"""Where a scan lies is taken from its header or from the user, never guessed, and its mask says the same."""

import nibabel
import numpy as np
import pytest

from tests.imaging import itk_files
from tests.imaging.examples import numbered
from utils.imaging.formats import mask_forms, read_scan, scan_bytes, scan_grid
from utils.imaging.grids import affine_of_axes
from utils.imaging.nifti import header_forms, read_mask, read_pair, write_volume
from utils.imaging.volume import Volume
from utils.settings import InferenceSettings

SHAPE = (3, 4, 5)
SFORM = np.array([[-0.5, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1.0]])


def save_with(path, *, sform=None, qform=None, units="mm", kind=nibabel.Nifti1Image):
    """A NIfTI file of .5 x 2 x 3 mm with the forms that are given, and a code of 0 for any other."""
    image = kind(np.zeros(SHAPE, np.int16), None)
    image.header.set_zooms((0.5, 2, 3))
    image.header.set_xyzt_units(units)
    image.header.set_sform(None if sform is None else sform[0], code=0 if sform is None else sform[1])
    image.header.set_qform(None if qform is None else qform[0], code=0 if qform is None else qform[1])
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("read", [read_scan, read_mask, scan_grid], ids=lambda read: read.__name__)
def test_a_nifti_header_without_a_code_is_refused_in_one_line(tmp_path, read):
    path = save_with(tmp_path / "ct.nii.gz")
    with pytest.raises(ValueError, match=r"expected a qform_code or sform_code over 0.*both 0") as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "--assume-orientation" in text and "\n" not in text


def test_a_pair_is_refused_if_its_mask_has_no_code(tmp_path):
    ct = save_with(tmp_path / "ct.nii.gz", sform=(SFORM, 1))
    with pytest.raises(ValueError, match=r"mask\.nii\.gz: expected a qform_code"):
        read_pair(ct, save_with(tmp_path / "mask.nii.gz"))


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ("RAS", [[0.5, 0, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]),
        ("pir", [[0, 0, 3, 0], [-0.5, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]]),
    ],
)
def test_what_the_user_knows_stands_for_what_no_header_says(tmp_path, axes, expected):
    nifti = save_with(tmp_path / "ct.nii.gz")
    unplaced = {"space": None, "space_directions": None, "space_origin": None, "spacings": "0.5 2 3"}
    (tmp_path / "none.nrrd").write_bytes(itk_files.nrrd(**unplaced))
    (tmp_path / "scanner.nrrd").write_bytes(
        itk_files.nrrd(space="scanner-xyz", space_directions="(0,0.5,0) (-2,0,0) (0,0,3)")
    )
    for path in (nifti, tmp_path / "none.nrrd", tmp_path / "scanner.nrrd"):
        with pytest.raises(ValueError, match="--assume-orientation"):
            scan_grid(path)
        np.testing.assert_array_equal(scan_grid(path, assumed=axes).affine, expected)
        np.testing.assert_array_equal(read_scan(path, assumed=axes).affine, expected)
        assert scan_bytes(path) > 0


def test_a_header_that_says_how_its_axes_lie_is_believed(tmp_path):
    nifti = save_with(tmp_path / "ct.nii.gz", qform=(SFORM, 1))
    (tmp_path / "ct.nrrd").write_bytes(itk_files.nrrd())
    assert nibabel.aff2axcodes(scan_grid(nifti, assumed="SAR").affine) == ("L", "A", "S")
    assert nibabel.aff2axcodes(scan_grid(tmp_path / "ct.nrrd", assumed="SAR").affine) == ("L", "P", "S")


@pytest.mark.parametrize("axes", ["RAS", "lps", "SAR"])
def test_axes_lead_where_their_letters_say(axes):
    assert nibabel.aff2axcodes(affine_of_axes(axes, (1, 2, 3))) == tuple(axes.upper())


@pytest.mark.parametrize("axes", ["", "RA", "RAL", "RASS", "XYZ", "RRA"])
def test_other_letters_are_a_wrong_command_line(axes):
    with pytest.raises(ValueError, match="assume_orientation: expected one of L or R"):
        InferenceSettings(assume_orientation=axes)


def turned(degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, -sine, 0, 5], [sine, cosine, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])


SKEWED = SFORM + np.array([[0, 0.002, 0, 0], [0, 0, 0.01, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
FORMS = {
    "they differ": {"sform": (SFORM, 4), "qform": (turned(3) @ SFORM, 1)},
    "qform alone": {"qform": (turned(10) @ SFORM, 1)},
    "sform alone": {"sform": (turned(10) @ SFORM, 2)},
    "a skewed sform": {"sform": (SKEWED, 1), "qform": (SFORM, 1)},
    "a skewed sform alone": {"sform": (SKEWED, 1)},
    "no unit": {"sform": (SFORM, 1), "qform": (SFORM, 1), "units": "unknown"},
    "NIfTI-2": {"sform": (SFORM, 3), "qform": (turned(3) @ SFORM, 1), "kind": nibabel.Nifti2Image},
    "no code": {},
}


def write_mask(path, scan) -> Volume:
    """Write the mask of a scan as a prediction does; gives the scan."""
    ct = read_scan(scan, assumed="RAS")
    write_volume(path, Volume(np.ones(SHAPE, np.uint8), ct.affine), forms=mask_forms(scan))
    return ct


@pytest.mark.parametrize("what", FORMS)
def test_a_mask_has_the_forms_of_its_scan(tmp_path, what):
    path = save_with(tmp_path / "ct.nii.gz", **FORMS[what])
    ct = read_scan(path, assumed="RAS")
    write_volume(
        tmp_path / "mask.nii.gz", Volume(np.ones(SHAPE, np.uint8), ct.affine), forms=mask_forms(path)
    )
    scan, mask = nibabel.load(path), nibabel.load(tmp_path / "mask.nii.gz")
    for code in ("qform_code", "sform_code"):
        assert mask.header[code] == scan.header[code], code
    # The mask is NIfTI-1, which holds single precision; of NIfTI-2 it has what fits.
    near = {"rtol": 1e-6 if what == "NIfTI-2" else 0, "atol": 1e-6 if what == "NIfTI-2" else 0}
    np.testing.assert_allclose(mask.header.get_sform(), scan.header.get_sform(), **near)
    np.testing.assert_allclose(mask.header.get_qform(), scan.header.get_qform(), **near)
    np.testing.assert_allclose(mask.affine, scan.affine, **near)
    assert mask.header.get_xyzt_units()[0] == scan.header.get_xyzt_units()[0]
    assert mask.get_data_dtype() == np.uint8 and (np.asanyarray(mask.dataobj) == 1).all()
    np.testing.assert_allclose(read_mask(tmp_path / "mask.nii.gz", assumed="RAS").affine, ct.affine, **near)


#: ITK reads neither NIfTI-2 nor a scan of which it would have to trust a skewed form.
@pytest.mark.parametrize("what", [name for name in FORMS if name not in ("NIfTI-2", "a skewed sform alone")])
def test_a_mask_lies_on_its_scan_in_simpleitk(tmp_path, what):
    import SimpleITK

    path = save_with(tmp_path / "ct.nii.gz", **FORMS[what])
    ct = read_scan(path, assumed="RAS")
    write_volume(
        tmp_path / "mask.nii.gz", Volume(np.ones(SHAPE, np.uint8), ct.affine), forms=mask_forms(path)
    )
    scan, mask = (SimpleITK.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("ct", "mask"))
    assert mask.GetOrigin() == scan.GetOrigin()
    assert mask.GetDirection() == scan.GetDirection()
    assert mask.GetSpacing() == scan.GetSpacing()


def test_the_mask_of_an_nrrd_scan_states_no_guess(tmp_path):
    (tmp_path / "ct.nrrd").write_bytes(itk_files.nrrd(space="3D-right-handed"))
    (tmp_path / "said.nrrd").write_bytes(itk_files.nrrd())
    assert mask_forms(tmp_path / "said.nrrd") is None
    ct = read_scan(tmp_path / "ct.nrrd", assumed="PIR")
    write_volume(tmp_path / "mask.nii", numbered(ct.shape, ct.affine), forms=mask_forms(tmp_path / "ct.nrrd"))
    header = nibabel.load(tmp_path / "mask.nii").header
    assert (header["qform_code"], header["sform_code"]) == (0, 0)
    np.testing.assert_array_equal(header.get_zooms(), [0.5, 2, 3])
    assert not header_forms(tmp_path / "mask.nii").states_orientation
