"""From a scan whose header leaves its place open, or states it twice, to the files of its prediction."""

import nibabel
import numpy as np

from tests.prediction.test_predict import (  # noqa: F401 - fixtures
    fake,
    mask_path,
    no_starter_weights,
    same_device,
    settings_for,
    write_column,
)
from tests.walk.column import column_ct
from utils.imaging.nifti import read_mask, write_volume
from utils.imaging.volume import Volume
from utils.prediction.predict import infer
from utils.prediction.quality import read_quality


def without_codes(path):
    image = nibabel.load(path)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(nibabel.Nifti1Image(image.dataobj, None, image.header), path)
    return path


def test_an_unstated_orientation_is_refused_or_assumed_and_said(tmp_path, fake, capsys):  # noqa: F811
    scan, out = without_codes(write_column(tmp_path / "sub-a_ct.nii.gz", "PIR")), tmp_path / "out"
    assert infer(settings_for(scan, output=out)) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("bad scan: ")]
    assert str(scan) in line and "--assume-orientation" in line and not out.exists()

    assert infer(settings_for(scan, output=out, assume_orientation="PIR")) == 0
    assert "does not say how its axes lie, so PIR is assumed" in capsys.readouterr().err
    header = nibabel.load(mask_path(out, "sub-a")).header
    assert (header["qform_code"], header["sform_code"]) == (0, 0)
    stated = write_column(tmp_path / "sub-b_ct.nii.gz", "PIR")
    assert infer(settings_for(stated, output=out, assume_orientation="RAS")) == 0
    assert "assumed" not in capsys.readouterr().err
    masks = [read_mask(mask_path(out, key), assumed="PIR").data for key in ("sub-a", "sub-b")]
    np.testing.assert_array_equal(*masks)
    assert masks[0].max() > 0

    # Whatever is done later with the prediction: its files are read as its scan was.
    assert infer(settings_for(scan, output=out, assume_orientation="PIR", formats=("seg.nrrd",))) == 0
    assert "already predicted, now also as seg.nrrd" in capsys.readouterr().out
    assert infer(settings_for(scan, output=out, relabel=True, fix=("1=T9",))) == 0
    known = read_quality(mask_path(out, "sub-a").with_name("sub-a_quality.json"))
    assert "orientation assumed" in {remark.kind for remark in known.warnings}
    assert known.papers.orientation == "PIR" and "PIR is assumed" in known.papers.assumed[0]
    of_stated = read_quality(mask_path(out, "sub-b").with_name("sub-b_quality.json"))
    assert of_stated.papers.assumed == ()
    header = nibabel.load(mask_path(out, "sub-a")).header
    assert (header["qform_code"], header["sform_code"]) == (0, 0)


def test_a_padded_scan_is_predicted_as_the_scan_itself(tmp_path, fake):  # noqa: F811
    ct, out = column_ct(), tmp_path / "out"
    padded = Volume(np.pad(ct.data, 3, constant_values=-1024), ct.affine.copy())
    padded.affine[:3, 3] -= ct.affine[:3, :3] @ [3, 3, 3]
    for key, volume in (("sub-a", ct), ("sub-b", padded)):
        write_volume(tmp_path / f"{key}_ct.nii.gz", volume)
        assert infer(settings_for(tmp_path / f"{key}_ct.nii.gz", output=out)) == 0
    plain, within = (read_mask(mask_path(out, key)).data for key in ("sub-a", "sub-b"))
    np.testing.assert_array_equal(within, np.pad(plain, 3))
    assert plain.max() > 0


def test_a_mask_keeps_both_forms_of_its_scan_also_when_relabelled(tmp_path, fake):  # noqa: F811
    path, out = write_column(tmp_path / "sub-a_ct.nii.gz"), tmp_path / "out"
    image = nibabel.load(path)
    place = image.affine.copy()
    image.set_qform(place, 1)
    place[1, 3] += 30
    image.set_sform(place, 4)
    nibabel.save(image, path)
    for changes in ({}, {"relabel": True, "fix": ("1=T9",)}):
        assert infer(settings_for(path, output=out, **changes)) == 0
        found, expected = nibabel.load(mask_path(out, "sub-a")).header, nibabel.load(path).header
        assert (found["qform_code"], found["sform_code"]) == (1, 4)
        np.testing.assert_array_equal(found.get_qform(), expected.get_qform())
        np.testing.assert_array_equal(found.get_sform(), expected.get_sform())
        assert found.get_sform()[1, 3] - found.get_qform()[1, 3] == 30
