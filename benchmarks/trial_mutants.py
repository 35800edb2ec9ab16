"""Damaged files for every reader: none may end the process, hang, fill the memory or give wrong voxels.

Small whole files are made of every form that is read: NIfTI, NRRD, MetaImage, DICOM series, models, and the
tables and JSON files of the stages (`mutant_forms.py`). Each mutant is one of them with one file changed:
bits turned around, parts lost, doubled or emptied, numbers made huge, texts put in that a reader might take
for an order. It is read in a process of its own, whose time and memory are limited. Right is a mutant that is
read, or named in one line of a `ValueError` or `OSError`. Wrong is any other error (a traceback), a line that
names no file, a process that hangs or dies, and a mutant that is read although the checksum in the file,
compared by Python's own library, says that it is damaged.

Reads   nothing: the files are made from the seed.
Writes  nothing that stays; with --keep DIR the mutants that were wrong.
Command python -m benchmarks.trial_mutants [--mutants 2400] [--seed 0] [--only NRRD] [--keep DIR]
Time    some five minutes on one core.

Ends with status 0 if nothing was wrong, else 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.mutant_forms import KINDS, Kind
from utils.files import printable
from utils.tables import markdown_table

#: What became of a mutant; all but the first two are wrong.
READ, NAMED = "read", "named"
WRONG = ("traceback", "unclear", "hang", "crash", "damage read")
SECONDS, MODEL_SECONDS = 10, 40
#: Memory that a process may take beside what it begins with: no file here needs a hundredth of it.
BYTES, MODEL_BYTES = 2**30, 2**33
LONGEST_LINE = 1000


# Mutants ---------------------------------------------------------------------------------------------

HOSTILE = (
    *(b"-1", b"0", b"1e308", b"nan", b"inf", b"2147483648", b"99999999999999999999", b"-0.0", b"1e-320"),
    *(b"%n%s%d", b"\0", b"\n", b"\n\n", b"\xff\xfe", b"\xe9", b"\x1b[2J", b"../../x", b"/dev/zero"),
    *(b"(" * 9000, b"[" * 9000, b'{"a":' * 9000, b"9" * 5000, b" " * 70000, b"LIST", b"true", b"null"),
)


def mutated(raw: bytes, rng: np.random.Generator) -> bytes:
    """Damage the bytes of a file in one of many ways."""
    change = MUTATIONS[rng.integers(len(MUTATIONS))]
    return change(raw, rng)


def _flip(raw: bytes, rng: np.random.Generator, *, most: int | None = None) -> bytes:
    end = min(len(raw), most or len(raw))
    changed = bytearray(raw)
    for bit in rng.integers(0, 8 * end, rng.integers(1, 4)):
        changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def _part(raw: bytes, rng: np.random.Generator) -> tuple[int, int]:
    begin = int(rng.integers(len(raw)))
    return begin, min(len(raw), begin + int(rng.choice([1, 2, 4, 8, 64, 512])))


def _emptied(raw: bytes, rng: np.random.Generator) -> bytes:
    begin, end = _part(raw, rng)
    return raw[:begin] + bytes(end - begin) + raw[end:]


def _doubled(raw: bytes, rng: np.random.Generator) -> bytes:
    begin, end = _part(raw, rng)
    return raw[:end] + raw[begin:]


def _lost(raw: bytes, rng: np.random.Generator) -> bytes:
    begin, end = _part(raw, rng)
    return raw[:begin] + raw[end:]


def _mixed(raw: bytes, rng: np.random.Generator) -> bytes:
    begin, end = _part(raw, rng)
    return raw[:begin] + rng.bytes(end - begin) + raw[end:]


def _other_number(raw: bytes, rng: np.random.Generator) -> bytes:
    """Put something else in the place of a number or word of a text."""
    words = list(re.finditer(rb"[A-Za-z0-9.+-]+", raw[:6000]))
    if not words:
        return _flip(raw, rng)
    word = words[rng.integers(len(words))]
    return raw[: word.start()] + HOSTILE[rng.integers(len(HOSTILE))] + raw[word.end() :]


def _put_in(raw: bytes, rng: np.random.Generator) -> bytes:
    begin, _ = _part(raw, rng)
    return raw[:begin] + HOSTILE[rng.integers(len(HOSTILE))] + raw[begin:]


MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    _flip,
    *[lambda raw, rng: _flip(raw, rng, most=600)] * 2,
    lambda raw, rng: raw[: rng.integers(len(raw))],
    lambda raw, rng: raw + rng.bytes(int(rng.integers(1, 700))),
    *(_emptied, _doubled, _lost, _mixed, _put_in),
    *[_other_number] * 2,
)


def write_mutant(whole: Path, folder: Path, rng: np.random.Generator) -> Path:
    """Copy the whole files into a new folder, one of them damaged; gives that one."""
    shutil.copytree(whole, folder)
    names = sorted(file.name for file in folder.iterdir())
    path = folder / names[rng.integers(len(names))]
    path.write_bytes(mutated(path.read_bytes(), rng))
    return path


# Reading ---------------------------------------------------------------------------------------------


def outcome_of(kind: Kind, folder: Path) -> tuple[str, str]:
    """Read a mutant in a process of its own; gives what became of it, and what was said.

    Of what is read, that is the checksum of its voxels, if it has any.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_read_here, args=(kind, folder, sender))
    process.start()
    sender.close()
    process.join(MODEL_SECONDS if kind.is_model else SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return "hang", ""
    if process.exitcode != 0 or not receiver.poll():
        return "crash", f"status {process.exitcode}"
    return receiver.recv()


def _read_here(kind: Kind, folder: Path, sender: Connection) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    most = pages * resource.getpagesize() + (MODEL_BYTES if kind.is_model else BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        read = kind.read(folder)
        sender.send((READ, str(zlib.crc32(read.tobytes())) if isinstance(read, np.ndarray) else ""))
    except (ValueError, OSError) as error:
        text = str(error)
        is_line = "\n" not in text and len(text) < LONGEST_LINE and str(folder) in text
        sender.send((NAMED if is_line else "unclear", f"{type(error).__name__}: {text[:300]}"))
    except BaseException as error:
        sender.send(("traceback", f"{type(error).__name__}: {str(error)[:300]}"))
    sender.close()
    os._exit(0)


# The trial -------------------------------------------------------------------------------------------


def counts_by_kind(total: int, kinds: tuple[Kind, ...]) -> dict[str, int]:
    """Divide mutants among kinds, at least so many in all."""
    shares = sum(kind.share for kind in kinds)
    return {kind.name: -int(-total * kind.share // shares) for kind in kinds}


def run_kind(kind: Kind, number: int, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Give what became of each mutant of a kind."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as top:
        whole = Path(top) / "whole"
        whole.mkdir()
        if kind.is_model:  # imported once, and used in processes of their own alone, which fork from this one
            import keras  # noqa: F401
        maker = multiprocessing.get_context("fork").Process(target=kind.make, args=(whole,))
        maker.start()
        maker.join()
        found, right = outcome_of(kind, whole)
        if found != READ:
            raise SystemExit(f"{kind.name}: expected the whole file to be read, found {found}: {right}")
        for mutant in range(number):
            folder = Path(top) / f"{mutant:04}"
            rng = np.random.default_rng([options.seed, KINDS.index(kind), mutant])
            damaged = write_mutant(whole, folder, rng)
            found, said = outcome_of(kind, folder)
            # Python refuses some streams whose voxels and checksum are right.
            is_right = said == right != ""
            if found == READ and not is_right and kind.is_whole(damaged) is False:
                found = "damage read"
            if found in WRONG and options.keep:
                kept = options.keep / f"{re.sub('[^a-zA-Z0-9]+', '-', kind.name)}-{mutant:04}"
                shutil.copytree(folder, kept, dirs_exist_ok=True)
            shutil.rmtree(folder)
            yield found, f"{kind.name} {mutant} ({damaged.name}): {found}: {said}"


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutants", type=int, default=2400, help="how many in all, at least")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutants")
    parser.add_argument("--only", default="", help="forms whose name begins with it")
    parser.add_argument("--keep", type=Path, help="folder for the mutants that were wrong")
    return parser.parse_args()


def main() -> int:
    """Run the trial; gives the exit status."""
    options = read_options()
    tqdm.monitor_interval = 0  # its thread would be there where a process forks
    chosen = tuple(kind for kind in KINDS if kind.name.startswith(options.only))
    numbers = counts_by_kind(options.mutants, chosen)
    rows, lines = [], []
    for kind in tqdm(chosen, unit="form", disable=not sys.stderr.isatty()):
        counted: Counter[str] = Counter()
        for found, said in run_kind(kind, numbers[kind.name], options):
            counted[found] += 1
            lines += [said] if found in WRONG else []
        rows.append({"form": kind.name, "mutants": numbers[kind.name]})
        rows[-1] |= {name: counted[name] for name in (READ, NAMED, *WRONG)}
    table = pd.DataFrame(rows)
    table.loc[len(table)] = ["all", *table.iloc[:, 1:].sum()]
    print(*map(printable, lines), markdown_table(table), sep="\n")
    wrong = int(table.iloc[-1][list(WRONG)].sum())
    print(f"wrong: {wrong}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
