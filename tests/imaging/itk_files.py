"""Small NRRD and MetaImage files of every form that is read."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path

import numpy as np

SHAPE = (5, 6, 7)
DATA = np.random.default_rng(3).integers(-1024, 3000, SHAPE).astype("<i2")
VOXELS = DATA.tobytes(order="F")
#: To RAS+: axes towards left, posterior and superior, of .5, 2 and 3 mm.
AFFINE = np.array([[-0.5, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])
NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "5 6 7",
    "space directions": "(0.5,0,0) (0,2,0) (0,0,3)",
    "space origin": "(10,20,30)",
    "endian": "little",
    "encoding": "raw",
}
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 20 30",
    "ElementSpacing": "0.5 2 3",
    "DimSize": "5 6 7",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def nrrd(voxels: bytes = VOXELS, *, first="NRRD0004", end="\n", **changes: str | None) -> bytes:
    """The bytes of an NRRD file; a change of None leaves a field out, and "_" stands for a blank."""
    fields = {**NRRD, **{name.replace("_", " "): value for name, value in changes.items()}}
    lines = [first, *(f"{name}: {value}" for name, value in fields.items() if value is not None), "", ""]
    return end.join(lines).encode() + voxels


def meta(voxels: bytes = VOXELS, *, end="\n", **changes: str | None) -> bytes:
    """The bytes of a MetaImage file, whose last field must be the last; changes as for `nrrd`."""
    fields = {**META, **changes}
    fields["ElementDataFile"] = fields.pop("ElementDataFile")
    lines = [*(f"{name} = {value}" for name, value in fields.items() if value is not None), ""]
    return end.join(lines).encode() + voxels


def write(folder: Path, content: bytes | dict[str, bytes], suffix: str) -> Path:
    """Write a file, or a header named "" and the files beside it."""
    contents = content if isinstance(content, dict) else {"": content}
    for name, raw in contents.items():
        file = folder / (name or f"ct{suffix}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(raw)
    return folder / f"ct{suffix}"


PLANES = {f"{k:02}.raw": DATA[..., k].tobytes(order="F") for k in range(7)}
LIST = "\n".join(["LIST", *PLANES, ""])
WORDS = " ".join(str(number) for number in DATA.ravel(order="F")).encode() + b"\n"
BIG = DATA.astype(">i2").tobytes(order="F")
COMPRESSED, GZIPPED = zlib.compress(VOXELS), gzip.compress(VOXELS, mtime=0)

#: Forms that ITK reads too.
KNOWN_TO_ITK = {
    "nrrd": (".nrrd", nrrd()),
    "nrrd, gzip": (".nrrd", nrrd(GZIPPED, encoding="gzip")),
    "nrrd, big end first": (".nrrd", nrrd(BIG, endian="big")),
    "nrrd, words": (".nrrd", nrrd(WORDS, encoding="ascii")),
    "nrrd, remarks": (".nrrd", nrrd(content="# no comment: here", first="NRRD0005\n# a comment\nkey:=a: b")),
    "nrrd, lines of Windows": (".nrrd", nrrd(end="\r\n")),
    "nrrd, RAS": (
        ".nrrd",
        nrrd(space="RAS", space_directions="(-0.5,0,0) (0,-2,0) (0,0,3)", space_origin="( -10 , -20 , 30 )"),
    ),
    "nrrd, LAS": (
        ".nrrd",
        nrrd(
            space="left-anterior-superior",
            space_directions="(.5,0,0) (0,-2,0) (0,0,3)",
            space_origin="(10,-20,30)",
        ),
    ),
    "nhdr": (".nhdr", {"": nrrd(b"", data_file="a/b.raw"), "a/b.raw": VOXELS}),
    "nhdr, bytes before": (
        ".nhdr",
        {"": nrrd(b"", data_file="b.raw", byte_skip="9"), "b.raw": b"x" * 9 + VOXELS},
    ),
    "nhdr, at the end": (
        ".nhdr",
        {"": nrrd(b"", data_file="b.raw", byte_skip="-1"), "b.raw": b"xyz" + VOXELS},
    ),
    "nhdr, lines before": (
        ".nhdr",
        {"": nrrd(b"", datafile="b.raw", line_skip="2"), "b.raw": b"a\nb\n" + VOXELS},
    ),
    "nhdr, planes": (".nhdr", {"": nrrd(b"", data_file="%02d.raw 0 6 1"), **PLANES}),
    "nhdr, list": (".nhdr", {"": nrrd(b"", data_file=LIST)[:-2], **PLANES}),
    "mha": (".mha", meta()),
    "mha, compressed": (
        ".mha",
        meta(COMPRESSED, CompressedData="True", CompressedDataSize=f"{len(COMPRESSED)}"),
    ),
    "mha, with gzip": (".mha", meta(GZIPPED, CompressedData="True", CompressedDataSize=f"{len(GZIPPED)}")),
    "mha, big end first": (".mha", meta(BIG, BinaryDataByteOrderMSB="True")),
    "mha, words": (".mha", meta(WORDS, BinaryData="False")),
    "mha, remarks": (".mha", meta(Comment="a = b", Modality="MET_MOD_CT", AnatomicalOrientation="RAI")),
    "mha, lines of Windows": (".mha", meta(end="\r\n")),
    "mhd": (".mhd", {"": meta(b"", ElementDataFile="b.raw"), "b.raw": VOXELS}),
    "mhd, compressed": (
        ".mhd",
        {"": meta(b"", CompressedData="True", ElementDataFile="b.zraw"), "b.zraw": COMPRESSED},
    ),
    "mhd, bytes before": (
        ".mhd",
        {"": meta(b"", HeaderSize="9", ElementDataFile="b.raw"), "b.raw": b"x" * 9 + VOXELS},
    ),
    "mhd, at the end": (
        ".mhd",
        {"": meta(b"", HeaderSize="-1", ElementDataFile="b.raw"), "b.raw": b"xyz" + VOXELS},
    ),
    "mhd, planes": (".mhd", {"": meta(b"", ElementDataFile="%02d.raw 0 6 1"), **PLANES}),
    "mhd, list": (".mhd", {"": meta(b"", ElementDataFile=LIST), **PLANES}),
}
FORMS = {
    **KNOWN_TO_ITK,
    "nrrd, bzip2": (".nrrd", nrrd(bz2.compress(VOXELS), encoding="bzip2")),
    "nrrd, four axes": (
        ".nrrd",
        nrrd(dimension="4", sizes="5 6 7 1", space_directions="(.5,0,0) (0,2,0) (0,0,3) none"),
    ),
    "nrrd, a list of one": (
        ".nrrd",
        nrrd(dimension="4", sizes="1 5 6 7", space_directions="none (.5,0,0) (0,2,0) (0,0,3)"),
    ),
    "nrrd, bytes before compressed ones": (
        ".nrrd",
        nrrd(gzip.compress(b"x" * 9 + VOXELS), encoding="gz", byte_skip="9"),
    ),
    "nrrd, of two streams": (
        ".nrrd",
        nrrd(gzip.compress(VOXELS[:99]) + gzip.compress(VOXELS[99:]), encoding="gz"),
    ),
    "mha, four axes": (
        ".mha",
        meta(
            NDims="4",
            DimSize="5 6 7 1",
            ElementSpacing=".5 2 3 1",
            Offset="10 20 30 0",
            TransformMatrix="1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1",
        ),
    ),
}
