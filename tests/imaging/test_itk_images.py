"""NRRD and MetaImage: every form that is read, as other readers read it, and every damage that is named."""

from __future__ import annotations

import bz2
import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.imaging.itk_files import (
    AFFINE,
    COMPRESSED,
    DATA,
    FORMS,
    GZIPPED,
    KNOWN_TO_ITK,
    PLANES,
    SHAPE,
    VOXELS,
    meta,
    nrrd,
    write,
)
from utils.imaging.itk_images import data_files, itk_image_bytes, itk_image_grid, read_itk_image


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_its_voxels_where_they_lie(tmp_path, form):
    suffix, content = FORMS[form]
    path = write(tmp_path, content, suffix)
    found = read_itk_image(path)
    assert found.data.dtype == np.int16
    np.testing.assert_array_equal(found.data, DATA)
    np.testing.assert_allclose(found.affine, AFFINE, rtol=0, atol=1e-12)
    assert itk_image_grid(path).shape == SHAPE and itk_image_bytes(path) == 4 * DATA.size
    assert {file.relative_to(tmp_path).as_posix() for file in data_files(path)} == (
        set(content) - {""} if isinstance(content, dict) else set()
    )


@pytest.mark.parametrize("form", KNOWN_TO_ITK)
def test_itk_reads_the_same(tmp_path, form):
    import SimpleITK

    suffix, content = KNOWN_TO_ITK[form]
    image = SimpleITK.ReadImage(str(write(tmp_path, content, suffix)))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image).T, DATA)
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    np.testing.assert_allclose(directions, np.diag([-1, -1, 1]) @ AFFINE[:3, :3], atol=1e-12)
    np.testing.assert_allclose(image.GetOrigin(), [10, 20, 30])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_turned_axes_lie_as_itk_has_them(tmp_path, suffix):
    import SimpleITK

    image = SimpleITK.GetImageFromArray(DATA.T)
    image.SetDirection((0, -0.8, 0.6, 1, 0, 0, 0, 0.6, 0.8))
    image.SetSpacing((0.5, 2, 3))
    SimpleITK.WriteImage(image, str(tmp_path / f"ct{suffix}"))
    expected = np.diag([-1, -1, 1]) @ np.reshape(image.GetDirection(), (3, 3)) * [0.5, 2, 3]
    np.testing.assert_allclose(read_itk_image(tmp_path / f"ct{suffix}").affine[:3, :3], expected, atol=1e-12)


# Damage ----------------------------------------------------------------------------------------------


def changed(raw: bytes, at: int) -> bytes:
    """Turn one bit of a byte around, counted from the end."""
    return raw[:-at] + bytes([raw[-at] ^ 16]) + raw[-at + 1 :] if at > 1 else raw[:-1] + bytes([raw[-1] ^ 16])


BZIPPED = bz2.compress(VOXELS)
WHOLE = {
    "gzip": lambda stream: (".nrrd", nrrd(stream, encoding="gzip")),
    "bzip2": lambda stream: (".nrrd", nrrd(stream, encoding="bzip2")),
    "zlib": lambda stream: (".mha", meta(stream, CompressedData="True")),
}
STREAMS = {"gzip": GZIPPED, "bzip2": BZIPPED, "zlib": COMPRESSED}
HARMS: dict[str, Callable[[bytes], bytes]] = {
    "its checksum": lambda stream: changed(stream, 6),
    "a bit in the middle": lambda stream: changed(stream, len(stream) // 2),
    "its end missing": lambda stream: stream[:-5],
    "half missing": lambda stream: stream[: len(stream) // 2],
    "a sector lost": lambda stream: stream[:64] + bytes(64) + stream[128:],
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("encoding", WHOLE)
def test_a_damaged_stream_is_named(tmp_path, encoding, harm):
    suffix, content = WHOLE[encoding](HARMS[harm](STREAMS[encoding]))
    path = write(tmp_path, content, suffix)
    with pytest.raises(
        ValueError, match="expected a whole NRRD or MetaImage file, found a broken one"
    ) as error:
        read_itk_image(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


BROKEN = "expected a whole NRRD or MetaImage file, found a broken one"
SHORT = BROKEN + r" \(shape \(5, 6, 7\) needs 420 bytes, not "
DAMAGES = {
    "a byte too few": (".nrrd", nrrd(VOXELS[:-1]), SHORT + "419"),
    "a plane too many": (".nrrd", nrrd(VOXELS + bytes(60)), SHORT + "480"),
    "a raw file too short": (
        ".mhd",
        {"": meta(b"", ElementDataFile="b.raw"), "b.raw": VOXELS[:-1]},
        "expected a whole file, found 419 bytes",
    ),
    "a raw file too long": (
        ".mhd",
        {"": meta(b"", ElementDataFile="b.raw"), "b.raw": VOXELS * 2},
        SHORT + "480|" + SHORT + "840",
    ),
    "a compressed plane too few": (
        ".mha",
        meta(zlib.compress(VOXELS[:-60]), CompressedData="True"),
        SHORT + "360",
    ),
    "more behind the stream": (".mha", meta(COMPRESSED + b"x", CompressedData="True"), BROKEN + ".*goes on"),
    "a plane of another length": (
        ".nhdr",
        {
            "": nrrd(b"", data_file="%02d.raw 0 6 1"),
            **PLANES,
            "03.raw": PLANES["03.raw"][:-2],
            "04.raw": PLANES["04.raw"] + b"xx",
        },
        "03.raw: " + BROKEN,
    ),
    "no magic": (".nrrd", b"no image", "expected a file that begins with NRRD0001"),
    "an unknown field": (
        ".nrrd",
        nrrd(spbce_origin="(1,2,3)"),
        "expected the fields of NRRD in the header, found 'spbce origin",
    ),
    "a field said twice": (".nrrd", nrrd(first="NRRD0004\nsizes: 6 5 7"), "expected one field 'sizes'"),
    "no type": (".nrrd", nrrd(type=None), "expected a field 'type' in the header, found none"),
    "type block": (
        ".nrrd",
        nrrd(type="block"),
        "expected a known word in the field 'type' of the header, found block",
    ),
    "encoding hex": (".nrrd", nrrd(encoding="hex"), "field 'encoding' of the header, found hex"),
    "no order of bytes": (".nrrd", nrrd(endian=None), "expected a field 'endian'"),
    "no directions": (".nrrd", nrrd(space_directions=None), "expected a field 'spacedirections'"),
    "directions of two axes": (
        ".nrrd",
        nrrd(space_directions="(1,0,0) (0,1,0)"),
        "expected 3 vectors in the field",
    ),
    "a direction without an end": (
        ".nrrd",
        nrrd(space_directions="(1,0,0) (0,1,0) (0,0,"),
        r"expected vectors such as \(1,0,0\)",
    ),
    "a direction that is no number": (
        ".nrrd",
        nrrd(space_directions="(1,0,0) (0,a,0) (0,0,1)"),
        "expected 3 numbers in the field",
    ),
    "an infinite origin": (
        ".nrrd",
        nrrd(space_origin="(1,inf,0)"),
        "expected 3 numbers in the field 'space origin'",
    ),
    "sizes of other axes": (".nrrd", nrrd(sizes="5 6"), "expected 3 sizes, found 5 6"),
    "a size of 0": (
        ".nrrd",
        nrrd(sizes="5 0 7"),
        "expected whole numbers from 1 in the field 'sizes', found 5 0 7",
    ),
    "a size of 5,000 digits": (
        ".nrrd",
        nrrd(sizes="5 6 " + "7" * 5000),
        "expected whole numbers from 1 in the field 'sizes'",
    ),
    "petabytes": (
        ".nrrd",
        nrrd(sizes="70000 80000 90000"),
        "expected a whole file, found",
    ),
    "vectors": (
        ".nrrd",
        nrrd(dimension="4", sizes="3 5 6 7", space_directions="none (1,0,0) (0,1,0) (0,0,1)"),
        "expected a volume with 3 axes and one number a voxel, found sizes 3 x 5 x 6 x 7",
    ),
    "no end of the header": (
        ".nrrd",
        b"NRRD0004\n" + b"#" * 2**19 + b"\n\n",
        "expected a blank line between",
    ),
    "a line without end": (".nhdr", b"NRRD0004\ntype: " + b"%03d " * 2**17, "expected a blank line between"),
    "brackets without end": (".nhdr", nrrd(b"", space_directions="(" * 2**16), "expected vectors such as"),
    "a number without end": (
        ".nhdr",
        nrrd(b"", data_file="%d" + " 1" * 2**16),
        "expected a name such as slice%03d.raw",
    ),
    "minus one axes": (
        ".mha",
        meta(NDims="-1"),
        "expected whole numbers from 1 in the field 'NDims', found -1",
    ),
    "a million axes": (".mha", meta(NDims="1000000"), "expected 1000000 sizes"),
    "no NDims": (".mha", meta(NDims=None), "expected a field 'NDims'"),
    "no end": (
        ".mha",
        b"ObjectType = Image\nNDims = 3\n" + bytes(2**19),
        "expected a field 'ElementDataFile'",
    ),
    "a line without a sign": (
        ".mha",
        meta(COMPRESSED).replace(b"CompressedData = False", b"CompressedData \x1d True"),
        "expected lines such as 'NDims = 3' in the header, found 'CompressedData",
    ),
    "a byte too many": (".mha", meta(VOXELS + b"x"), SHORT + "421"),
    "a mesh": (".mha", meta(ObjectType="Mesh"), "expected an image in the field 'ObjectType', found Mesh"),
    "three channels": (
        ".mha",
        meta(ElementNumberOfChannels="3"),
        "expected a volume with 3 axes and one number",
    ),
    "no directions in the patient": (
        ".mha",
        meta(TransformMatrix=None),
        "expected a field 'TransformMatrix'",
    ),
    "four numbers of a matrix": (".mha", meta(TransformMatrix="1 0 0 1"), "expected 9 numbers in the field"),
    "neither true nor false": (
        ".mha",
        meta(CompressedData="Maybe"),
        "field 'CompressedData' of the header, found Maybe",
    ),
    "a rule for intensities": (
        ".mha",
        meta(ElementToIntensityFunctionOffset="-1024"),
        "expected 0 in the field",
    ),
    "zero spacing": (".mha", meta(ElementSpacing="1 0 1"), "expected spacings over 0 mm"),
    "a pattern that prints": (
        ".mhd",
        meta(b"", ElementDataFile="%d%n%s.raw 0 6 1"),
        "expected a name such as slice%03d.raw with first, last and step, found %d%n%s",
    ),
    "a pattern of width": (
        ".mhd",
        meta(b"", ElementDataFile="%099999999d.raw 0 6 1"),
        "expected a name such as",
    ),
    "a step of 0": (".mhd", meta(b"", ElementDataFile="%d.raw 0 6 0"), "expected a name such as"),
    "a billion files": (
        ".mhd",
        meta(b"", ElementDataFile="%d.raw 0 1000000000 1"),
        "expected names of files with voxels",
    ),
    "an empty list": (".mhd", meta(b"", ElementDataFile="LIST"), "expected names of files with voxels"),
    "a file that is not there": (
        ".mhd",
        meta(b"", ElementDataFile="b.raw"),
        "b.raw: expected the voxels of ct.mhd, found no such file",
    ),
    "a file above": (
        ".mhd",
        {"": meta(b"", ElementDataFile="a/../../b.raw")},
        "expected voxels in files below its own folder",
    ),
    "the user's own file": (
        ".nhdr",
        nrrd(b"", data_file="/etc/passwd"),
        "below its own folder, found /etc/passwd",
    ),
    "a device": (".nhdr", nrrd(b"", data_file="/dev/zero"), "below its own folder, found /dev/zero"),
    "a name with zeros": (".nhdr", nrrd(b"", data_file="a\0b"), "below its own folder"),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(tmp_path, damage, recwarn, capfd):
    suffix, content, said = DAMAGES[damage]
    path = write(tmp_path, content, suffix)
    with pytest.raises(ValueError, match=said) as error:
        read_itk_image(path)
    text = str(error.value)
    assert text.startswith(f"{tmp_path}/") and ": expected " in text and ", found " in text
    assert text.isprintable() and len(text) < len(str(path)) + 400
    assert not recwarn.list and capfd.readouterr() == ("", "")


@pytest.mark.timeout(10)
@pytest.mark.parametrize("suffix", [".nhdr", ".mhd"])
def test_pipes_and_devices_are_not_waited_for(tmp_path, suffix):
    header = nrrd(b"", data_file="voxels") if suffix == ".nhdr" else meta(b"", ElementDataFile="voxels")
    path = write(tmp_path, header, suffix)
    os.mkfifo(tmp_path / "voxels")
    with pytest.raises(ValueError, match=r"voxels: expected the voxels of ct\.\w+, found no regular file"):
        read_itk_image(path)
    (tmp_path / "voxels").unlink()
    (tmp_path / "voxels").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="found no regular file"):
        read_itk_image(path)
    path.unlink()
    os.mkfifo(path)
    for read in (read_itk_image, itk_image_grid, data_files):
        with pytest.raises(ValueError, match="found no regular file"):
            read(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_a_folder_whose_name_is_no_text_is_read(tmp_path, suffix):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/Jos\xe9"))
    content = {
        ".nrrd": nrrd(),
        ".mha": meta(),
        ".mhd": {"": meta(b"", ElementDataFile="b.raw"), "b.raw": VOXELS},
    }
    np.testing.assert_array_equal(read_itk_image(write(folder, content[suffix], suffix)).data, DATA)


def test_what_a_header_claims_takes_no_memory(tmp_path):
    """700 kB that claim 700 MB, of which there are none: memory is touched as bytes arrive."""
    import resource

    stream = gzip.compress(bytes(2**20)) + bytes(700_000)
    path = write(tmp_path, nrrd(stream, encoding="gzip", sizes="700 700 700"), ".nrrd")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="expected a whole NRRD"):
        read_itk_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
