"""Voxels of DICOM images: every way to store them gives the same numbers, and none is made up."""

from __future__ import annotations

import resource
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from tests.imaging.dicom_series import compress, write_series
from utils.imaging import dicom_decoding, dicom_headers
from utils.imaging.dicom import find_series, read_series
from utils.imaging.dicom_headers import read_headers
from utils.imaging.dicom_pixels import read_planes
from utils.imaging.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (17, 9, 12)


def ct(lowest: int = -1024, highest: int = 2000) -> Volume:
    data = np.random.default_rng(1).integers(lowest, highest, SHAPE).astype(np.int16)
    data[:, 4] = lowest  # something for RLE to count
    return Volume(data, np.diag([-1.0, -1, 1, 1]))


def change(file: Path, **values) -> None:
    """Set elements of a file."""
    found = pydicom.dcmread(file)
    for keyword, value in values.items():
        setattr(found, keyword, value)
    found["PixelData"].VR = "OB" if found["PixelData"].is_undefined_length else "OW"
    found.save_as(file)


def stored_of(file: Path) -> np.ndarray:
    return np.frombuffer(pydicom.dcmread(file).PixelData, "<u2").reshape(SHAPE[1], SHAPE[0])


@pytest.mark.parametrize("kind", ["RLE", "JPEG", "JPEG2000"])
def test_compressed_images_have_the_voxels_of_others(tmp_path, kind):
    files = write_series(tmp_path, ct())
    for file in files[1:]:
        compress(file, kind)
    found = read_series(files)
    np.testing.assert_array_equal(found.data, ct().data)
    assert found.data.dtype == np.int16


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_every_order_of_bytes_gives_the_same_voxels(tmp_path, syntax):
    files = write_series(tmp_path, ct())
    for file in files:
        read = pydicom.dcmread(file)
        found = pydicom.Dataset()  # one that has not been read may be written in any order
        found.update(read)
        found.file_meta = read.file_meta
        found.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            found.PixelData = stored_of(file).byteswap().tobytes()
        found["PixelData"].VR = "OW"
        found.save_as(file, enforce_file_format=True)
    np.testing.assert_array_equal(read_series(files).data, ct().data)


@pytest.mark.parametrize("name", ["jpeg_ls_lossless", "jp2klossless", "RLE", "bigendian", "implicit"])
def test_samples_of_pydicom_have_the_voxels_of_the_plain_one(name):
    plain = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    (found,) = read_planes(read_headers(Path(get_testdata_file(f"MR_small_{name}.dcm"))))
    np.testing.assert_array_equal(found, plain)


#: Bits that are declared, and how the twelve bits of a number are put among sixteen.
PLACES = {
    "signed, sign over all bits": ({"PixelRepresentation": 1, "BitsStored": 12, "HighBit": 11}, lambda n: n),
    "signed, unused bits empty": (
        {"PixelRepresentation": 1, "BitsStored": 12, "HighBit": 11},
        lambda n: n & 0xFFF,
    ),
    "signed, at the top": ({"PixelRepresentation": 1, "BitsStored": 12, "HighBit": 15}, lambda n: n << 4),
    "signed, an overlay beside it": (
        {"PixelRepresentation": 1, "BitsStored": 12, "HighBit": 11, "overlay": 14},
        lambda n: (n & 0xFFF) | 0x4000,
    ),
    "unsigned, an overlay beside it": (
        {"PixelRepresentation": 0, "BitsStored": 12, "HighBit": 11, "RescaleIntercept": -1024, "overlay": 12},
        lambda n: (n + 1024) | 0x1000,
    ),
    "more than declared": (
        {"PixelRepresentation": 0, "BitsStored": 8, "HighBit": 7, "RescaleIntercept": -1024},
        lambda n: n + 1024,
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_numbers_are_found_among_the_bits(tmp_path, place):
    expected = ct(highest=2047)
    files = write_series(tmp_path, expected)
    for index, file in enumerate(files):
        values, put = PLACES[place]
        numbers = put(expected.data[..., index].T.astype(np.int64)).astype(np.uint16)
        found = pydicom.dcmread(file)
        found.RescaleIntercept = 0
        for keyword, value in values.items():
            if keyword == "overlay":  # of odd sizes, as GDCM would refuse them
                found.add_new(0x60000010, "US", 511)
                found.add_new(0x60000011, "US", 3)
                found.add_new(0x60000100, "US", 16)
                found.add_new(0x60000102, "US", value)
            else:
                setattr(found, keyword, value)
        found.PixelData = numbers.tobytes()
        found.save_as(file)
    np.testing.assert_array_equal(read_series(files).data, expected.data)


REFUSED = {
    "fewer bytes": (lambda raw: raw[:-2], {}, "304 bytes of PixelData for 17 x 9 x 1 voxels of 16 bits"),
    "a row more": (lambda raw: raw + raw[:34], {}, "340 bytes of PixelData for 17 x 9 x 1 voxels of 16 bits"),
    "nothing": (lambda raw: b"", {}, "no PixelData"),
    "more frames": (lambda raw: raw, {"NumberOfFrames": 2}, "2 frames in IM0003"),
    "odd bits": (lambda raw: raw, {"BitsAllocated": 12}, "bits 0 to 15 of 12 a voxel"),
    "a high bit too low": (lambda raw: raw, {"HighBit": 3}, "bits -12 to 3 of 16 a voxel"),
    "no slope": (lambda raw: raw, {"RescaleSlope": 0}, "a RescaleSlope of 0 and a RescaleIntercept of -1024"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_voxels_that_are_not_there_are_not_made_up(tmp_path, what):
    content, values, said = REFUSED[what]
    files = write_series(tmp_path, ct())
    change(files[3], PixelData=content(pydicom.dcmread(files[3]).PixelData), **values)
    with pytest.raises(ValueError) as error:
        read_series(files)
    assert said in str(error.value) and "IM0003" in str(error.value)


def test_a_byte_that_fills_up_to_an_even_number_is_none_too_many(tmp_path):
    files = write_series(tmp_path, ct())
    change(files[3], PixelData=pydicom.dcmread(files[3]).PixelData + b"\0\0")
    np.testing.assert_array_equal(read_series(files).data, ct().data)


def test_a_file_that_is_cut_off_anywhere_is_named(tmp_path):
    files = write_series(tmp_path, ct())
    whole = files[3].read_bytes()
    for length in range(133, len(whole) - 1, 97):
        files[3].write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"IM0003") as error:
            read_series(files)
        assert str(error.value).count("\n") == 0


#: What is done to a compressed frame, and what is said of it.
DAMAGED = [
    ("RLE", lambda part: part[:-20], "a segment of RLE that is not 153 bytes long"),
    ("RLE", lambda part: part[:70] + part[72:], "a segment of RLE that is not 153 bytes long"),
    ("RLE", lambda part: b"\3" + part[1:], "no RLE in 2 segments"),
    ("RLE", lambda part: part[:40], "no RLE in 2 segments"),
    ("JPEG", lambda part: part[:-20], "found one that is cut off"),
    ("JPEG", lambda part: part[:-60] + b"\xff\xd9", "premature end"),
    ("JPEG", lambda part: b"\0\0" + part[2:], "found an unknown one"),
    ("JPEG", lambda part: part.replace(b"\0\x09\0\x11", b"\0\x0a\0\x11", 1), "found 17 x 10 with 1"),
    ("JPEG", lambda part: part.replace(b"\x10\0\x09\0\x11", b"\x11\0\x09\0\x11", 1), "1 numbers of 17 bits"),
    ("JPEG2000", lambda part: part[:-20], "found one that is cut off"),
    ("JPEG2000", lambda part: part[:-60] + b"\xff\xd9", "cannot be decoded"),
    ("JPEG2000", lambda part: part.replace(b"\0\0\0\x11", b"\0\0\xff\xff", 1), "found 65535 x 9 with 1"),
]


@pytest.mark.parametrize(("kind", "damage", "said"), DAMAGED)
def test_a_damaged_compressed_image_is_named(tmp_path, kind, damage, said):
    files = write_series(tmp_path, ct())
    compress(files[3], kind)
    (part,) = generate_frames(pydicom.dcmread(files[3]).PixelData, number_of_frames=1)
    whole = part.rstrip(b"\0")
    change(files[3], PixelData=encapsulate([damage(whole)]))
    with pytest.raises(ValueError, match=said) as error:
        read_series(files)
    assert str(error.value).startswith(f"{files[3]}: expected ") and "\n" not in str(error.value)


def test_a_transfer_syntax_that_nobody_knows_is_named(tmp_path):
    files = write_series(tmp_path, ct())
    compress(files[3], "JPEG")
    files[3].write_bytes(
        files[3].read_bytes().replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.7~", 1)
    )
    with pytest.raises(ValueError, match=rf"{files[3]}: .* \(the transfer syntax '1.2.840.10008.1.2.4.7~'\)"):
        read_series(files)


@pytest.mark.parametrize("code", ["import os; os.kill(os.getpid(), 11)", "import time; time.sleep(99)"])
def test_a_decoder_that_dies_or_hangs_is_said_of_its_file(tmp_path, monkeypatch, code):
    monkeypatch.setattr(dicom_decoding, "_CHILD", code)
    monkeypatch.setattr(dicom_decoding, "_START_SECONDS", 0.5)
    monkeypatch.setattr(dicom_decoding, "_FRAME_SECONDS", 0.5)
    files = write_series(tmp_path, ct())
    compress(files[3], "JPEG")
    with pytest.raises(ValueError, match=f"{files[3]}: .*found one that cannot be decoded"):
        read_series(files)


@pytest.mark.parametrize("kind", ["not compressed", "RLE"])
def test_sizes_that_the_bytes_cannot_hold_take_no_memory(tmp_path, kind):
    """65,535 x 65,535 voxels would take 8 GB an image."""
    files = write_series(tmp_path, ct())
    for file in files:
        if kind == "RLE":
            compress(file, kind)
        change(file, Rows=65535, Columns=65535, PixelSpacing=[0.01, 0.01])
    code = (
        "import sys, pathlib; from utils.imaging.dicom import read_series\n"
        "try: read_series([*map(pathlib.Path, sys.argv[1:])])\n"
        "except ValueError as error: print(error)"
    )
    most = 2 * 2**30
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
    )
    assert f"{files[0]}: expected a whole DICOM image" in ran.stdout and "65535 x 65535" in ran.stdout


def test_a_deflated_data_set_is_not_inflated_without_end(tmp_path, monkeypatch):
    files = write_series(tmp_path, ct())
    for file in files:
        change(file)
        found = pydicom.dcmread(file)
        found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        found.save_as(file)
    whole = files[3].read_bytes()
    assert not find_series(files).bad
    monkeypatch.setattr(dicom_headers, "_MOST_INFLATED", 2**22)
    begin = 144 + pydicom.dcmread(files[3]).file_meta.FileMetaInformationGroupLength
    engine = zlib.compressobj(wbits=-15)
    files[3].write_bytes(whole[:begin] + engine.compress(bytes(2**23)) + engine.flush())
    files[4].write_bytes(files[4].read_bytes()[:-30])
    found = find_series(files)
    assert "a deflated data set of more than 4 MB" in found.bad[0] and str(files[3]) in found.bad[0]
    assert "a deflated data set that is cut off" in found.bad[1] and str(files[4]) in found.bad[1]
