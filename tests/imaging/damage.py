"""Two hundred damaged files, each of its own kind and with what must be said of it, and random bit flips.

A damaged file takes the place of one file of a small case that is whole otherwise. Everything is made from
fixed seeds, so a kind is the same file in every run.
"""

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.nifti1 import header_dtype

SHAPE = (12, 10, 8)
SPACING_MM = 2.0
HEADER_BYTES = 348
VOXELS_BEGIN = 352
#: The header of what `gzip.compress` writes, and its checksum and size at the end.
GZIP_BEGIN, GZIP_END = 10, 8

FILE_NAMES = {
    "ct": "rawdata/{key}/{key}_ct{suffix}",
    "mask": "derivatives/{key}/{key}_seg-vert_msk{suffix}",
    "centroids": "derivatives/{key}/{key}_seg-vb_ctd.json",
}


@dataclass(frozen=True)
class Damage:
    """One way to damage one file.

    Attributes
    ----------
    kind : str
        What is wrong.
    role : str
        "ct", "mask" or "centroids": the file of the case that is damaged.
    suffix : str
        ".nii" or ".nii.gz", of the case's CT and mask.
    content : callable
        Gives the bytes of the damaged file from those of the whole one.
    said : str
        Pattern of the message after the path.
    """

    kind: str
    role: str
    suffix: str
    content: Callable[[bytes], bytes]
    said: str

    def __str__(self) -> str:
        return f"{self.role}{self.suffix if self.role != 'centroids' else ''}, {self.kind}"

    def write(self, top: Path, key: str) -> Path:
        """Write the case; gives its damaged file. A damaged mask is the only source of the points."""
        roles = ("ct", "mask") if self.role == "mask" else tuple(FILE_NAMES)
        paths = write_whole_case(top, key, suffix=self.suffix, roles=roles)
        path = paths[self.role]
        path.write_bytes(self.content(path.read_bytes()))
        return path


def whole_arrays() -> dict[str, np.ndarray]:
    """CT and mask of a whole case: noise, and T12 above L1."""
    ct = np.random.default_rng(0).integers(-1000, 2000, SHAPE).astype(np.int16)
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:9, 3:8, 5:8] = 19
    mask[3:9, 3:8, 1:4] = 20
    return {"ct": ct, "mask": mask}


def nifti(data: np.ndarray, spacing_mm: float = SPACING_MM) -> bytes:
    """The bytes of an uncompressed NIfTI file, written by nibabel."""
    return nibabel.Nifti1Image(data, np.diag([*[spacing_mm] * 3, 1]), dtype=data.dtype).to_bytes()


def write_whole_case(top: Path, key: str, *, suffix=".nii.gz", roles=tuple(FILE_NAMES)) -> dict[str, Path]:
    """Write the files of a case that has nothing wrong below the folder of its split."""
    paths = {role: top / FILE_NAMES[role].format(key=key, suffix=suffix) for role in roles}
    contents = {role: nifti(data) for role, data in whole_arrays().items()}
    if suffix == ".nii.gz":
        contents = {role: gzip.compress(content, mtime=0) for role, content in contents.items()}
    contents["centroids"] = json.dumps(entries()).encode()
    for role, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[role])
    return paths


# NIfTI -----------------------------------------------------------------------------------------------


def patched(**changes: object) -> Callable[[bytes], bytes]:
    """Change numbers of a header: the new number of a field, or those of an array by their index."""

    def change(raw: bytes) -> bytes:
        header = np.frombuffer(raw[:HEADER_BYTES], header_dtype.newbyteorder("<")).copy()
        for field, value in changes.items():
            for index, number in value.items() if isinstance(value, dict) else [(..., value)]:
                header[field][(0, index)] = number
        return header.tobytes() + raw[HEADER_BYTES:]

    return change


def by_qform(**changes: object) -> Callable[[bytes], bytes]:
    """As `patched`, in a header whose affine comes from its quaternion."""
    return patched(sform_code=0, qform_code=1, **changes)


def cut(part: float) -> Callable[[bytes], bytes]:
    """Keep a part of the bytes."""
    return lambda raw: raw[: int(part * len(raw))]


def flipped(raw: bytes, bits: np.ndarray) -> bytes:
    """Turn the bits of given numbers around."""
    changed = bytearray(raw)
    for bit in bits:
        changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def flip_of_the_stream(seed: int) -> Callable[[bytes], bytes]:
    """Turn a random bit of the compressed voxels, or of their checksum and size, around."""

    def flip(raw: bytes) -> bytes:
        # The last byte before the checksum ends with bits that mean nothing.
        places = [*range(GZIP_BEGIN, len(raw) - GZIP_END - 1), *range(len(raw) - GZIP_END, len(raw))]
        generator = np.random.default_rng(seed)
        return flipped(raw, [8 * generator.choice(places) + generator.integers(8)])

    return flip


NAN, INF = np.nan, np.inf
BROKEN = "expected a whole NIfTI file, found a broken one"
ENDED = BROKEN + r" \((shape|Compressed|.*bytes)"
SPACING = "expected spacings over 0 mm, found "
AFFINE = "expected an affine that can be inverted, found "
SCALE = "expected a finite slope with its intercept, found "

# Kind, pattern of the message, and the change: for CTs and masks, compressed or not.
HEADERS = [
    ("magic of a pair of files", r"expected the magic n\+1, found ni1\.", patched(magic=b"ni1")),
    ("magic with a flipped bit", "expected a whole NIfTI file, found", patched(magic=b"o+1")),
    ("header size 0", r"expected sizeof_hdr = 348, found 0\.", patched(sizeof_hdr=0)),
    ("header size 349", r"expected sizeof_hdr = 348, found 349\.", patched(sizeof_hdr=349)),
    ("header size -1", r"expected sizeof_hdr = 348, found -1\.", patched(sizeof_hdr=-1)),
    ("no axes", r"expected a volume with 3 axes, found shape \(0,\)\.", patched(dim={0: 0})),
    ("two axes declared", r"with 3 axes, found shape \(12, 10\)\.", patched(dim={0: 2})),
    ("four axes declared", r"with 3 axes, found shape \(12, 10, 8, 2\)\.", patched(dim={0: 4, 4: 2})),
    ("eight axes declared", BROKEN, patched(dim={0: 8})),
    ("-1 axes declared", BROKEN, patched(dim={0: -1})),
    ("size 0", r"found shape \(12, 0, 8\)\.", patched(dim={2: 0})),
    ("size -12", r"found shape \(-12, 10, 8\)\.", patched(dim={1: -12})),
    ("two negative sizes", r"found shape \(-12, -10, 8\)\.", patched(dim={1: -12, 2: -10})),
    ("one voxel too many", BROKEN + r" \(shape \(13, 10, 8\) needs", patched(dim={1: 13})),
    ("one slice too few", BROKEN + r" \(shape \(12, 10, 7\) needs", patched(dim={3: 7})),
    ("half the rows", BROKEN + r" \(shape \(12, 5, 8\) needs", patched(dim={2: 5})),
    (
        "54 terabytes",
        BROKEN + r" \(shape \(30000, 30000, 30000\) needs",
        patched(dim=dict.fromkeys((1, 2, 3), 30000)),
    ),
    ("number type 0", BROKEN, patched(datatype=0)),
    ("number type 999", BROKEN + r" \(.*999", patched(datatype=999)),
    ("declared as bits", BROKEN, patched(datatype=1, bitpix=1)),
    ("declared as float64", BROKEN + r" \(.*bytes", patched(datatype=64, bitpix=64)),
    ("declared as complex", "one real number a voxel, found complex64", patched(datatype=32)),
    ("declared as RGB", "one real number a voxel, found RGB", patched(datatype=128)),
    ("33 bits a voxel", r"expected bitpix = (8|16), found 33\.", patched(bitpix=33)),
    ("-16 bits a voxel", r"expected bitpix = (8|16), found -16\.", patched(bitpix=-16)),
    ("voxels at NaN", BROKEN, patched(vox_offset=NAN)),
    ("voxels at infinity", BROKEN, patched(vox_offset=INF)),
    ("voxels at -352", BROKEN, patched(vox_offset=-352)),
    ("voxels inside the header", BROKEN, patched(vox_offset=8)),
    ("voxels behind the end", ENDED, patched(vox_offset=1e6)),
    ("voxels at 1e30", ENDED, patched(vox_offset=1e30)),
    ("infinite slope", SCALE + "inf and 0", patched(scl_slope=INF, scl_inter=0)),
    ("slope 0 with intercept", SCALE + "0 and -1024", patched(scl_slope=0, scl_inter=-1024)),
    ("NaN slope with intercept", SCALE + "nan and 3", patched(scl_slope=NAN, scl_inter=3)),
    ("NaN intercept", BROKEN + ".*intercept", patched(scl_slope=1, scl_inter=NAN)),
    ("infinite intercept", BROKEN + ".*intercept", patched(scl_slope=1, scl_inter=INF)),
    ("NaN in the affine", SPACING + "2 x nan x 2", patched(srow_y={1: NAN})),
    ("infinity in the affine", SPACING + "inf x 2 x 2", patched(srow_x={0: INF})),
    ("NaN origin", AFFINE, patched(srow_z={3: NAN})),
    ("infinite origin", AFFINE, patched(srow_x={3: -INF})),
    ("origin a planet away", "within 100000 mm of the origin, found", patched(srow_x={3: 1e30})),
    ("affine of zeros", SPACING + "0 x 0 x 0", patched(srow_x=0, srow_y=0, srow_z=0)),
    ("two parallel axes", AFFINE, patched(srow_x={1: 2}, srow_y={1: 0})),
    ("affine of 1e30", "under 4000 mm long", patched(srow_x={0: 1e30})),
    ("affine of 1e-30", "expected spacings of at least 0.01 mm", patched(srow_x={0: 1e-30})),
    ("sform code 77", r"expected sform_code from 0 to 5, found 77\.", patched(sform_code=77)),
    ("qform code -5", r"expected qform_code from 0 to 5, found -5\.", patched(qform_code=-5)),
    ("quaternion out of range", BROKEN, by_qform(quatern_b=2)),
    ("NaN quaternion", SPACING, by_qform(quatern_c=NAN)),
    ("infinite quaternion", BROKEN, by_qform(quatern_d=INF)),
    ("NaN offset of the quaternion", AFFINE, by_qform(qoffset_y=NAN)),
    ("half a handedness", r"expected pixdim\[0\] of -1 or 1, found 0.5", by_qform(pixdim={0: 0.5})),
    ("zoom 0", SPACING + "2 x 0 x 2", patched(pixdim={2: 0})),
    ("zoom -2", SPACING + "-2 x 2 x 2", patched(pixdim={1: -2})),
    ("all zooms 0", SPACING + "0 x 0 x 0", patched(pixdim=0)),
    ("NaN zoom", SPACING + "2 x 2 x nan", patched(pixdim={3: NAN})),
    ("infinite zoom", SPACING + "2 x inf x 2", patched(pixdim={2: INF})),
    ("NaN zoom of the quaternion", SPACING + "nan x 2 x 2", by_qform(pixdim={1: NAN})),
    ("zoom of 300 mm", "under 2000 litres", by_qform(pixdim=dict.fromkeys((1, 2, 3), 300))),
    ("cut in the header", BROKEN, lambda raw: raw[:200]),
    ("cut after the header", ENDED, lambda raw: raw[:VOXELS_BEGIN]),
    ("cut among the voxels", ENDED, cut(0.6)),
    ("cut by a byte", ENDED, lambda raw: raw[:-1]),
    ("the file twice", BROKEN + r" \(shape \(12, 10, 8\) needs", lambda raw: raw * 2),
    ("text", BROKEN, lambda raw: b"this is no scan\n" * 50),
]  # fmt: skip

# As above, but of the file as it lies on the disk, compressed.
STREAMS = [
    ("stream cut in half", BROKEN, cut(0.5)),
    ("stream without its checksum", BROKEN, lambda raw: raw[:-GZIP_END]),
    ("stream cut in its checksum", BROKEN, lambda raw: raw[:-3]),
    ("stream cut in its header", BROKEN, lambda raw: raw[:5]),
    ("wrong checksum", BROKEN + r" \(CRC", lambda raw: raw[:-GZIP_END] + bytes(4) + raw[-4:]),
    ("wrong size at the end", BROKEN + r" \(Incorrect length", lambda raw: raw[:-4] + b"\1\0\0\0"),
    ("not compressed", BROKEN, gzip.decompress),
    ("garbage at the end", BROKEN + r" \(Compressed file ended", lambda raw: raw + b"garbage"),
    ("gigabytes of zeros at the end", BROKEN, lambda raw: raw + gzip.compress(bytes(2**24)) * 64),
    ("nothing inside", BROKEN, lambda raw: gzip.compress(b"")),
    *[(f"flipped bit {seed} of the stream", BROKEN, flip_of_the_stream(seed)) for seed in range(12)],
]

RGB = np.dtype([(channel, np.uint8) for channel in "RGB"])
IMAGES = [
    ("2-D", r"with 3 axes, found shape \(12, 10\)\.", np.zeros(SHAPE[:2], np.int16)),
    ("4-D", r"with 3 axes, found shape \(12, 10, 8, 2\)\.", np.zeros((*SHAPE, 2), np.int16)),
    ("5-D", r"with 3 axes, found shape \(12, 10, 8, 1, 3\)\.", np.zeros((*SHAPE, 1, 3), np.float32)),
    ("RGB", "one real number a voxel, found RGB", np.zeros(SHAPE, RGB)),
    ("complex", "one real number a voxel, found complex128", np.zeros(SHAPE, np.complex128)),
    ("all NaN", "expected numbers, found not one finite voxel", np.full(SHAPE, NAN, np.float32)),
]


def with_label(value: float, dtype: type) -> np.ndarray:
    """The mask of a whole case with one voxel of another value."""
    mask = whole_arrays()["mask"].astype(dtype)
    mask[0, 0, 0] = np.array(value).astype(dtype)
    return mask


def _label(shown: str) -> str:
    return rf"expected VerSe labels \(0-25 or 28\), found {re.escape(shown)}\."


MASKS = [
    *[(f"label {v}", _label(str(v)), with_label(v, np.uint8)) for v in (26, 27, 29, 99, 255)],
    *[(f"label {v}", _label(str(v)), with_label(v, np.int16)) for v in (-1, -20, 257)],
    ("label 257 of uint16", _label("257"), with_label(257, np.uint16)),
    ("label 65537", _label("65537"), with_label(65537, np.int32)),
    ("label 2**32 + 1", _label("4.29497e+09"), with_label(2**32 + 1, np.int64)),
    ("label 2**64 - 1", _label("1.84467e+19"), with_label(2**64 - 1, np.uint64)),
    *[(f"label {v}", _label(f"{v:g}"), with_label(v, np.float32)) for v in (0.5, 19.5, -0.4, 28.25, 1e9)],
    ("label infinity", _label("inf"), with_label(INF, np.float64)),
    ("empty", "expected at least one vertebra, found none", np.zeros(SHAPE, np.uint8)),
    ("other shape", r"expected the shape of .*, found \(12, 10, 9\)", np.ones((12, 10, 9), np.uint8)),
]

# Centroids -------------------------------------------------------------------------------------------


def entries(**changes: object) -> list[dict[str, object]]:
    """A whole centroid file with changes of its first point."""
    first = {"label": 19, "X": 5.5, "Y": 5.0, "Z": 6.0, **changes}
    second = {"label": 20, "X": 5.5, "Y": 5.0, "Z": 2.0}
    return [{"direction": ["R", "A", "S"]}, first, second]


def _turned(direction: object) -> list[dict[str, object]]:
    return [{"direction": direction}, *entries()[1:]]


JSON, LIST = "expected JSON, found ", "expected a JSON list of objects, found "
LABEL, NUMBER = r"expected VerSe labels \(1-25 or 28\), found ", "expected a number, found "
DIRECTION = "expected a direction such as P, I, R, found "
OUTSIDE = r"expected points inside \(12, 10, 8\) voxels, found one "
NONE = "expected at least one vertebra, found none"
CENTROIDS = [
    ("empty file", "expected a JSON file, found an empty file", b""),
    ("blank", JSON, b" \n"),
    ("cut", JSON, json.dumps(entries()).encode()[:60]),
    ("not JSON", JSON, b"label 20 at 1 2 3"),
    ("two lists", JSON, json.dumps(entries()).encode() * 2),
    ("binary", JSON, bytes(range(256))),
    ("zeros", JSON, bytes(300)),
    ("a NIfTI file", JSON, nifti(np.zeros((2, 2, 2), np.uint8))),
    ("nested too deep", "expected JSON, found .*too deep", b"[" * 200_000),
    ("objects nested too deep", "expected JSON, found .*too deep", b'{"a":' * 100_000),
    ("too long", r"expected at most 1048576 bytes, found 1048578\.", b"[" + b" " * 2**20 + b"]"),
    ("number of 5,000 digits", JSON, b'[{"label": ' + b"1" * 5000 + b"}]"),
    ("{}", LIST + "dict", {}),
    ("null", LIST + "NoneType", None),
    ("a number", LIST + "int", 7),
    ("list of lists", LIST + "list", [[20, 1, 2, 3]]),
    ("[]", NONE, []),
    ("direction alone", NONE, entries()[:1]),
    ("no position at all", NONE, [{"label": 20, "X": NAN, "Y": NAN, "Z": NAN}]),
    ("empty entry", "expected label, X, Y and Z in every entry, found one without label, x, y, z", [{}]),
    ("no label", "found one without label", [{"X": 1, "Y": 2, "Z": 3}]),
    ("no Z", "found one without z", [{"label": 20, "X": 1, "Y": 2}]),
    *[(f"label {v}", LABEL + str(v), entries(label=v)) for v in (26, 27, 99, -1, 0, 20.5)],
    ("label NaN", LABEL + "nan", entries(label=NAN)),
    ("label infinity", NUMBER + "inf", entries(label=INF)),
    ("label null", NUMBER + "None", entries(label=None)),
    ("label true", NUMBER + "True", entries(label=True)),
    ("label by name", NUMBER + "'L1'", entries(label="L1")),
    ("label of 400 digits", NUMBER + "10+", entries(label=10**400)),
    ("label twice", r"expected every label once, found labels \[20, 20\]", entries(label=20)),
    ("X infinity", NUMBER + "inf", entries(X=INF)),
    ("X of 400 digits", NUMBER + "10+", entries(X=10**400)),
    ("X a text", NUMBER + "'far'", entries(X="far")),
    ("X a list", NUMBER + r"\[1\]", entries(X=[1])),
    ("X of 1e308", OUTSIDE + "inf mm", entries(X=1e308)),
    ("Y far outside", OUTSIDE + r"381 mm", entries(Y=200)),
    ("Z far below", OUTSIDE + r"199 mm", entries(Z=-100)),
    ("direction of two axes", DIRECTION, _turned(["P", "I"])),
    ("direction of an axis twice", DIRECTION, _turned(["P", "A", "R"])),
    ("direction of no axes", DIRECTION + r"\['X', 'Y', 'Z'\]", _turned(["X", "Y", "Z"])),
    ("direction null", DIRECTION + "None", _turned(None)),
    ("direction of lists", DIRECTION, _turned([["P"], ["I"], ["R"]])),
    ("two directions", "expected one direction, found", [{"direction": ["L", "A", "S"]}, *entries()]),
]

# All of them -----------------------------------------------------------------------------------------


def _compressed(content: Callable[[bytes], bytes], suffix: str) -> Callable[[bytes], bytes]:
    """Apply a change of a NIfTI file to one that may be compressed."""
    if suffix == ".nii":
        return content
    return lambda raw: gzip.compress(content(gzip.decompress(raw)), mtime=0)


def _instead(raw: bytes) -> Callable[[bytes], bytes]:
    return lambda _: raw


def _of_nifti(role: str, suffixes: tuple[str, str], kinds: list[tuple]) -> list[Damage]:
    """Take the suffixes by turns, so that a kind comes compressed for one role and plain for the other."""
    made = []
    for index, (kind, said, content) in enumerate(kinds):
        change = _instead(nifti(content)) if isinstance(content, np.ndarray) else content
        suffix = suffixes[index % 2]
        made.append(Damage(kind, role, suffix, _compressed(change, suffix), said))
    return made


def _of_centroids(kind: str, said: str, content: object) -> Damage:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Damage(kind, "centroids", ".nii.gz", _instead(raw), said)


DAMAGES = [
    *_of_nifti("ct", (".nii", ".nii.gz"), [*HEADERS, *IMAGES]),
    *_of_nifti("mask", (".nii.gz", ".nii"), [*HEADERS[::2], *IMAGES, *MASKS]),
    *[Damage(kind, "ct", ".nii.gz", content, said) for kind, said, content in STREAMS],
    *[_of_centroids(*kind) for kind in CENTROIDS],
]


def random_flips(number: int) -> list[Damage]:
    """Turn one to three bits of the header (even numbers) or anywhere in the file (odd) of a CT around.

    Many such files cannot be told from whole ones: a text of the header may hold anything, as may a voxel.
    """

    def flip(seed: int) -> Callable[[bytes], bytes]:
        generator = np.random.default_rng(1000 + seed)

        def change(raw: bytes) -> bytes:
            end = 8 * (HEADER_BYTES if seed % 2 == 0 else len(raw))
            return flipped(raw, generator.integers(0, end, generator.integers(1, 4)))

        return change

    made = []
    for seed in range(number):
        suffix = (".nii", ".nii", ".nii.gz")[seed % 3]
        made.append(Damage(f"random flip {seed}", "ct", suffix, _compressed(flip(seed), suffix), ".*"))
    return made
