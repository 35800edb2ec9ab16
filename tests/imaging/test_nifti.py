"""Reading and writing NIfTI: numbers, labels, memory maps, pairs, and files that are broken."""

import errno
import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.imaging.examples import numbered, oblique_affine, save
from utils.imaging.nifti import open_memory_map, read_ct, read_mask, read_pair, write_volume
from utils.imaging.volume import Volume


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_written_volumes_read_back_exactly(tmp_path, name, dtype):
    volume = Volume(np.arange(24).reshape(2, 3, 4).astype(dtype), oblique_affine())
    write_volume(tmp_path / "new" / name, volume)
    image = nibabel.load(tmp_path / "new" / name)
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume.data)
    np.testing.assert_allclose(image.affine, volume.affine, atol=1e-5)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.nii"
    write_volume(path, numbered())
    before = path.read_bytes()

    def broken(image, name):
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nibabel, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        write_volume(path, numbered((5, 5, 5)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_ct_keeps_int16_and_applies_scaling(tmp_path):
    assert read_ct(save(tmp_path / "a.nii.gz", np.full((2, 2, 2), -700, np.int16))).data.dtype == np.int16
    image = nibabel.Nifti1Image(np.array([0, 512]).astype(np.int16).reshape(2, 1, 1), np.eye(4))
    image.header.set_slope_inter(2, -1024)
    nibabel.save(image, tmp_path / "b.nii")
    # A slope that was set is written as it is, and the stored numbers stay those of the array.
    found = read_ct(tmp_path / "b.nii")
    assert found.data.dtype == np.float32
    np.testing.assert_array_equal(found.data.ravel(), [-1024, 0])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("scaling", [(1, 0), (0.5, -1024), (np.nan, np.nan), (0, 0)])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<u2", "<i4", ">f4", "<f8"])
def test_numbers_equal_nibabels_in_every_form(tmp_path, dtype, scaling, name):
    data = np.random.default_rng(0).integers(0, 200, (5, 6, 7)).astype(dtype)
    order = ">" if dtype.startswith(">") else "<"
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(data.dtype)
    image = nibabel.Nifti1Image(data, oblique_affine(), header)
    image.header["scl_slope"], image.header["scl_inter"] = scaling
    raw = bytearray(image.to_bytes())
    # nibabel writes its own numbers for no scaling; those of the header are what is tried here.
    raw[112:120] = np.array(scaling, f"{order}f4").tobytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    found, expected = read_ct(path).data, nibabel.load(path).get_fdata(dtype=np.float32)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, data if scaling != (0.5, -1024) else data / 2 - 1024)


@pytest.mark.parametrize("spare", [(1,), (1, 1)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_axes_of_length_1_behind_the_third_are_dropped(tmp_path, name, spare):
    data = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nibabel.Nifti1Image(data.reshape(data.shape + spare), oblique_affine())
    image.header.set_slope_inter(2, -1024)
    nibabel.save(image, tmp_path / name)
    found = read_ct(tmp_path / name)
    np.testing.assert_array_equal(found.data, 2.0 * data - 1024)
    np.testing.assert_allclose(found.affine, oblique_affine(), rtol=0, atol=1e-5)
    mask = save(tmp_path / "msk.nii.gz", (data % 20).astype(np.uint8).reshape(data.shape + spare))
    np.testing.assert_array_equal(read_mask(mask).data, data % 20)


def test_voxels_that_are_no_number_become_air(tmp_path):
    data = np.full((2, 2, 2), 40, np.float32)
    data[0, 0, 0], data[1, 1, 1] = np.nan, np.inf
    found = read_ct(save(tmp_path / "a.nii", data)).data
    assert found[0, 0, 0] == -1024 and found[1, 1, 1] == -1024
    assert (found == 40).sum() == 6


def test_float_masks_are_rounded_before_they_are_cast(tmp_path):
    data = np.array([0, 0.9999999, 19.9999996, 28.0000001]).reshape(4, 1, 1)
    found = read_mask(save(tmp_path / "a.nii.gz", data))
    assert found.data.dtype == np.uint8
    np.testing.assert_array_equal(found.data.ravel(), [0, 1, 20, 28])


def test_masks_scaled_to_8_bits_keep_their_labels(tmp_path):
    data = np.repeat(np.arange(26.0), 4).reshape(26, 2, 2)
    image = nibabel.Nifti1Image(data, np.eye(4))
    image.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path / "msk.nii.gz")
    stored = nibabel.load(tmp_path / "msk.nii.gz")
    assert stored.dataobj.slope == pytest.approx(25 / 255)
    assert np.abs(stored.get_fdata() - data).max() > 0.03
    np.testing.assert_array_equal(read_mask(tmp_path / "msk.nii.gz").data, data)


def test_voxels_of_a_mask_that_are_nan_are_outside(tmp_path):
    data = np.array([np.nan, 20, np.nan, 28], np.float32).reshape(4, 1, 1)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "a.nii", data)).data.ravel(), [0, 20, 0, 28])


@pytest.mark.parametrize("value", [0.5, 19.8, -0.3, 27.9, np.inf])
def test_masks_with_fractions_are_refused(tmp_path, value):
    data = np.array([0, 20, value], np.float32).reshape(3, 1, 1)
    with pytest.raises(ValueError, match=rf"expected VerSe labels \(0-25 or 28\), found {value:g}\."):
        read_mask(save(tmp_path / "msk.nii", data))


@pytest.mark.parametrize("code", [26, 27, 29, 255])
def test_masks_with_other_labels_are_refused(tmp_path, code):
    path = save(tmp_path / "msk.nii.gz", np.full((2, 2, 2), code, np.uint8))
    with pytest.raises(ValueError, match=rf"msk\.nii\.gz.*VerSe labels.*{code}"):
        read_mask(path)


def test_memory_maps_are_read_only_and_lazy(tmp_path):
    volume = numbered()
    write_volume(tmp_path / "a.nii", volume)
    found = open_memory_map(tmp_path / "a.nii")
    assert isinstance(found.data, np.memmap) and not found.data.flags.writeable
    np.testing.assert_array_equal(found.data, volume.data)


def test_compressed_files_are_not_mapped(tmp_path):
    write_volume(tmp_path / "a.nii.gz", numbered())
    with pytest.raises(ValueError, match=r"a\.nii\.gz.*uncompressed"):
        open_memory_map(tmp_path / "a.nii.gz")


def test_pairs_are_read_together(tmp_path):
    ct = save(tmp_path / "ct.nii", np.full((2, 3, 4), 7, np.int16), oblique_affine())
    mask = save(tmp_path / "msk.nii", np.full((2, 3, 4), 20, np.float64), oblique_affine())
    found_ct, found_mask = read_pair(ct, mask)
    assert found_ct.data.dtype == np.int16 and found_mask.data.dtype == np.uint8
    np.testing.assert_allclose(found_ct.affine, oblique_affine(), atol=1e-5)


def test_pairs_of_different_shape_are_refused(tmp_path):
    ct = save(tmp_path / "ct.nii", np.zeros((2, 3, 4), np.int16))
    mask = save(tmp_path / "msk.nii", np.zeros((2, 3, 5), np.uint8))
    with pytest.raises(ValueError, match=r"msk\.nii.*\(2, 3, 4\).*\(2, 3, 5\)"):
        read_pair(ct, mask)


def test_pairs_in_different_places_are_refused(tmp_path):
    ct = save(tmp_path / "ct.nii", np.zeros((2, 3, 4), np.int16))
    mask = save(tmp_path / "msk.nii", np.zeros((2, 3, 4), np.uint8), np.diag([1, 1, 1.5, 1]))
    with pytest.raises(ValueError, match=r"msk\.nii.*position"):
        read_pair(ct, mask)


def zeros_in_header(path: Path, field: str, index: int | tuple[()], value: float) -> Path:
    """Change a number of a written header, which nibabel itself would not write."""
    image = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4))
    nibabel.save(image, path)
    header = nibabel.Nifti1Header.from_fileobj(path.open("rb"), check=False)
    header[field][index] = value
    raw = bytearray(path.read_bytes())
    raw[: len(header.binaryblock)] = header.binaryblock
    path.write_bytes(raw)
    return path


def truncated(path: Path) -> Path:
    data = np.random.default_rng(0).integers(0, 1000, (30, 30, 30)).astype(np.int16)
    whole = save(path, data).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "bad_ct.nii.gz"
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
        return path
    if kind == "four axes":
        return save(path, np.zeros((3, 3, 3, 2), np.int16))
    if kind == "two axes":
        return save(path, np.zeros((3, 3), np.int16))
    if kind == "truncated":
        return truncated(path)
    if kind == "truncated, not compressed":
        return truncated(folder / "bad_ct.nii")
    if kind == "empty":
        path.write_bytes(b"")
    if kind == "empty inside":
        path.write_bytes(gzip.compress(b""))
    if kind == "text":
        path.write_text("this is no scan")
    if kind == "all NaN":
        return save(path, np.full((3, 3, 3), np.nan, np.float32))
    if kind == "zero spacing":
        return zeros_in_header(folder / "bad_ct.nii", "pixdim", 2, 0)
    if kind == "NaN spacing":
        return zeros_in_header(folder / "bad_ct.nii", "pixdim", 2, np.nan)
    if kind == "unknown number type":
        return zeros_in_header(folder / "bad_ct.nii", "datatype", (), 999)
    if kind == "data inside the header":
        return zeros_in_header(folder / "bad_ct.nii", "vox_offset", (), 8)
    if kind == "zero column":
        return zeros_in_header(folder / "bad_ct.nii", "srow_y", 1, 0)
    if kind == "singular":
        affine = np.eye(4)
        affine[:3, 1] = affine[:3, 0]
        image = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), None)
        image.header.set_sform(affine, 2)
        nibabel.save(image, path)
    if kind == "metres":
        return save(path, np.zeros((3, 3, 3), np.int16), np.diag([1, 1, 3000, 1]))
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no such file"),
        ("folder", "a folder"),
        ("four axes", r"3 axes, found shape \(3, 3, 3, 2\)"),
        ("two axes", r"3 axes, found shape \(3, 3\)"),
        ("truncated", "whole NIfTI file"),
        ("truncated, not compressed", "whole NIfTI file"),
        ("empty", "empty"),
        ("empty inside", "NIfTI"),
        ("text", "NIfTI"),
        ("all NaN", "not one finite voxel"),
        ("zero spacing", "spacings over 0 mm, found 1 x 0 x 1 mm"),
        ("NaN spacing", "spacings over 0 mm, found 1 x nan x 1 mm"),
        ("unknown number type", "whole NIfTI file, found a broken one .*999"),
        ("data inside the header", "whole NIfTI file"),
        ("zero column", "spacings over 0 mm, found 1 x 0 x 1 mm"),
        ("singular", "affine that can be inverted"),
        ("metres", "under 4000 mm"),
    ],
)
@pytest.mark.parametrize("read", [read_ct, read_mask])
def test_bad_files_are_named_with_what_was_found(tmp_path, capfd, read, kind, said):
    path = bad_file(kind, tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: expected")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("slices", [0.9, 1])
def test_a_file_may_be_padded_but_not_by_a_slice(tmp_path, name, slices):
    data = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    raw = nibabel.Nifti1Image(data, np.eye(4)).to_bytes() + bytes(int(slices * 5 * 4 * 2))
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    if slices < 1:
        np.testing.assert_array_equal(read_ct(tmp_path / name).data, data)
    else:
        with pytest.raises(ValueError, match=r"\(shape \(6, 5, 4\) needs 240 bytes, not 280\)"):
            read_ct(tmp_path / name)


def test_the_checksum_of_a_compressed_file_is_compared(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.arange(27000).reshape(30, 30, 30).astype(np.int16))
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(raw)
    np.asanyarray(nibabel.load(path).dataobj)  # nibabel alone does not see it
    with pytest.raises(ValueError, match="CRC check failed"):
        read_ct(path)


def test_a_header_that_claims_too_much_fills_no_memory(tmp_path):
    # 8 MB of noise could hold 8 GB as far as deflate goes; this header claims 2.
    raw = bytearray(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4)).to_bytes()[:352])
    raw[42:48] = np.array([1000, 1000, 1000], "<i2").tobytes()
    noise = np.random.default_rng(0).integers(0, 256, 2**23).astype(np.uint8).tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw + noise, 1))
    program = (
        "import re, sys; from pathlib import Path; from utils.imaging.nifti import read_ct\n"
        "try: read_ct(Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.nii.gz")]
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    said, peak_kib = ran.stdout.splitlines()
    assert "shape (1000, 1000, 1000) needs 2000000000 bytes, not 8388608" in said
    assert int(peak_kib) < 500_000


def test_nibabel_adds_no_line_of_its_own(tmp_path):
    """In a process of its own: under pytest the logger has other handlers."""
    path = bad_file("zero spacing", tmp_path)
    code = f"from utils.imaging.nifti import read_ct\ntry: read_ct({str(path)!r})\nexcept ValueError: pass"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, check=True
    )
    assert result.stdout == result.stderr == ""


@pytest.mark.parametrize("read", [read_ct, read_mask, open_memory_map])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_machine_that_is_full_breaks_no_file(tmp_path, monkeypatch, read, number):
    path = save(tmp_path / "a.nii", np.zeros((4, 4, 4), np.uint8))

    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(nibabel, "load", refused)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}: expected files and memory enough to open it, found none left ({os.strerror(number)})."
    )


def test_too_many_open_files_break_no_file(tmp_path):
    path = save(tmp_path / "a.nii", np.zeros((4, 4, 4), np.uint8))
    program = (
        "import resource, sys; from pathlib import Path; from utils.imaging.nifti import open_memory_map\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); kept = []\n"
        "try:\n  while True: kept.append(open_memory_map(Path(sys.argv[1])))\n"
        "except ValueError as error: print(error)\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", program, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert ran.stdout == (
        f"{path}: expected files and memory enough to open it, found none left (Too many open files).\n"
    )


def test_remarks_before_the_voxels_fill_no_memory(tmp_path):
    """A file of 10 kB whose voxels begin after 10 MB of remarks, of 16 bytes each."""
    raw = bytearray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes())
    raw[108:112] = np.float32(352 + 10 * 2**20).tobytes()
    remarks = np.array([16, 6, 0, 0], "<i4").tobytes() * (10 * 2**16)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(bytes(raw[:348]) + b"\1\0\0\0" + remarks + bytes(raw[352:])))
    with pytest.raises(ValueError, match=r"voxels begin after .* bytes, more than 4194304\)"):
        read_ct(path)


@pytest.mark.parametrize("read", [read_ct, read_mask])
def test_a_volume_that_takes_too_much_memory_is_refused_by_its_header(tmp_path, read):
    path = tmp_path / "a.nii.gz"
    header = nibabel.Nifti1Image(np.zeros((50, 50, 50), np.uint8), np.eye(4)).to_bytes()
    path.write_bytes(gzip.compress(header))
    assert read(path, most_bytes=4 * 50**3).shape == (50, 50, 50)
    with pytest.raises(ValueError, match=r"at most .* GB \(--max-gigabytes\), found one of .*50, 50, 50"):
        read(path, most_bytes=4 * 50**3 - 1)
