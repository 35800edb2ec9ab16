"""DICOM: frames that are compressed (JPEG, JPEG-LS, JPEG 2000), decoded by the GDCM of SimpleITK.

GDCM sees a small file of the frame and of how its numbers are stored, nothing else of the user's file, and
works in a process of its own: on damaged streams it may die, hang, or go on with what it has.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"
#: Markers of JPEG that begin a frame: of all kinds but tables and arithmetic coding's conditioning; JPEG-LS.
_STARTS = (*(0xC0 + kind for kind in range(16) if kind not in (4, 8, 12)), 0xF7)
#: Where a box of a JP2 file stands before the stream, though DICOM wants none.
_BOXES_BYTES = 512
#: What libjpeg and OpenJPEG write when they go on with a damaged stream.
_DAMAGE = re.compile(r"corrupt|premature|inconsistent|truncated", re.IGNORECASE)
#: Seconds for the start of the process, and for a frame; a hundred times what they take.
_START_SECONDS, _FRAME_SECONDS = 60.0, 5.0
_ROOT = Path(__file__).parents[2]
_CHILD = (
    "import sys; sys.path.append({root!r}); "
    "from utils.imaging.dicom_decoding import decode_here; decode_here()"
)


@dataclass(frozen=True)
class EncodedFrame:
    """A compressed frame, and how its numbers are stored.

    Attributes
    ----------
    path : Path
        The file that it is of.
    syntax : str
        Identifier of the compression.
    content : bytes
        The stream.
    rows, columns : int
        Size of the frame.
    allocated, stored, high : int
        Bits of a number: allocated, stored, and the highest one.
    is_signed : bool
        Whether numbers may be negative.
    """

    path: Path
    syntax: str
    content: bytes
    rows: int
    columns: int
    allocated: int
    stored: int
    high: int
    is_signed: bool


def decode_frames(frames: Sequence[EncodedFrame]) -> Iterator[np.ndarray]:
    """Decode frames one after the other.

    Parameters
    ----------
    frames : sequence of EncodedFrame
        Each with a stream that is whole, as far as its marks say.

    Yields
    ------
    np.ndarray, (rows, columns)
        Stored numbers.

    Raises
    ------
    ValueError
        If a stream is cut off, is of an image of other size, or cannot be decoded. The text names the file.
    """
    for frame in frames:
        check_stream(frame)
    with tempfile.TemporaryDirectory(prefix="dicom-") as folder:
        for number, frame in enumerate(frames):
            _write_file(frame, Path(folder, f"{number}.dcm"))
        yield from _decoded_by_child(frames, folder)


def check_stream(frame: EncodedFrame) -> None:
    """Refuse a stream that has no end, or is of another image than the header's; see `decode_frames`."""
    found = "one that is cut off"
    if frame.content.rstrip(b"\0\xff").endswith(_END):
        *size, bits = _size_of(frame.content) or (0, 0, 0, 0)
        if size == [frame.rows, frame.columns, 1] and bits <= frame.allocated:
            return
        found = f"{size[1]} x {size[0]} with {size[2]} numbers of {bits} bits" if bits else "an unknown one"
    expected = f"a compressed image of {frame.columns} x {frame.rows} voxels of {frame.allocated} bits"
    raise ValueError(f"{frame.path}: expected {expected}, found {found}.")


def _size_of(content: bytes) -> tuple[int, int, int, int] | None:
    """Give rows, columns, numbers a voxel and bits a number that a stream says; None if it does not."""
    begin = content.find(_JPEG_2000, 0, _BOXES_BYTES)
    if begin >= 0:
        field = content[begin + 4 : begin + 43].ljust(39, b"\0")
        right, lower, left, upper = (int.from_bytes(field[n : n + 4], "big") for n in (4, 8, 12, 16))
        return lower - upper, right - left, int.from_bytes(field[36:38], "big"), (field[38] & 0x7F) + 1
    place = 2
    while content.startswith(_JPEG) and content[place : place + 1] == b"\xff":
        marker, length = (int.from_bytes(content[place + n : place + 2 * n], "big") for n in (1, 2))
        if marker in _STARTS:
            field = content[place + 4 : place + 10].ljust(6, b"\0")
            return int.from_bytes(field[1:3], "big"), int.from_bytes(field[3:5], "big"), field[5], field[0]
        place += 1 if marker == 0xFF else 2 + length  # a marker may be filled up with bytes of 255
    return None


def _write_file(frame: EncodedFrame, path: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import CTImageStorage

    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = frame.syntax
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = "1.2.3"
    image.Rows, image.Columns, image.SamplesPerPixel = frame.rows, frame.columns, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = frame.allocated, frame.stored, frame.high
    image.PixelRepresentation = int(frame.is_signed)
    image.PixelData = encapsulate([frame.content])
    image["PixelData"].VR = "OB"
    image.save_as(path, enforce_file_format=True)


def _decoded_by_child(frames: Sequence[EncodedFrame], folder: str) -> Iterator[np.ndarray]:
    """Have the files 0.dcm, 1.dcm, ... of a folder decoded, and refuse those in which damage was seen."""
    command = [sys.executable, "-c", _CHILD.format(root=str(_ROOT)), str(len(frames))]
    child = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline = threading.Timer(_START_SECONDS + _FRAME_SECONDS * len(frames), child.kill)
    deadline.start()
    try:
        for number, frame in enumerate(frames):
            numbers = _received(child.stdout, frame)
            remarks = Path(folder, f"{number}.txt").read_text(errors="replace")
            damage = next((line for line in remarks.splitlines() if _DAMAGE.search(line)), "")
            if damage:
                raise ValueError(f"{frame.path}: expected a whole compressed image, found: {damage[:100]}.")
            yield numbers
    finally:
        deadline.cancel()
        child.kill()
        child.stdout.close()
        child.wait()


def _received(stream: IO[bytes], frame: EncodedFrame) -> np.ndarray:
    """Read what `decode_here` writes of a frame; it writes nothing of one that cannot be decoded."""
    kind, *shape = stream.readline(100).decode().split() or [""]
    if shape == [str(frame.rows), str(frame.columns)]:
        dtype = np.dtype(kind)
        content = stream.read(frame.rows * frame.columns * dtype.itemsize)
        if len(content) == frame.rows * frame.columns * dtype.itemsize:
            return np.frombuffer(content, dtype).reshape(frame.rows, frame.columns)
    expected = f"a compressed image of {frame.columns} x {frame.rows} voxels"
    raise ValueError(f"{frame.path}: expected {expected}, found one that cannot be decoded.")


def decode_here() -> None:
    """Decode 0.dcm, 1.dcm, ... of the working folder, and write type, size and numbers of each to stdout.

    What is remarked on one is in 0.txt, 1.txt, ...; the first that cannot be decoded ends the process.
    """
    import SimpleITK

    out = os.fdopen(os.dup(1), "wb")
    for number in range(int(sys.argv[1])):
        with Path(f"{number}.txt").open("wb") as remarks:
            os.dup2(remarks.fileno(), 1)
            os.dup2(remarks.fileno(), 2)
        image = SimpleITK.ReadImage(f"{number}.dcm", imageIO="GDCMImageIO")
        numbers = SimpleITK.GetArrayFromImage(image)[0]
        out.write(f"{numbers.dtype.str} {numbers.shape[0]} {numbers.shape[1]}\n".encode() + numbers.tobytes())
        out.flush()
