"""Where prepared data lie, and the sidecar of a prepared case: what its files were made from, and how.

Data of one stage and spacing have a folder of their own, whatever preset they were prepared with.
`<key>_prepared.json` is written last, so a case that has one is whole. A case is current where settings,
files and the content of its sources are those that its sidecar holds. Sources of the same size and time
count as the same without being read; where the time differs (a copied data set) their content decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import read_json, sha256_of, write_text_whole

PREPARED_SPLITS = ("training", "validation")
SIDECAR = "_prepared.json"
#: Where a case comes from: generated, or anything else.
PHANTOM, SCAN = "phantom", "scan"
#: Keys of scans that no file stands for begin with it; they have no sidecar, as nothing can change them.
DRAWN = "drawn"


def spacing_folder(work_dir: Path, stage: str, spacing_mm: float) -> Path:
    """Give the folder of a stage's prepared data of one spacing, such as `work/heatmap/1.5mm`.

    Parameters
    ----------
    work_dir : Path
        The work folder.
    stage : str
        "heatmap" or "segmentation".
    spacing_mm : float
        Spacing of the working grid, in mm.

    Returns
    -------
    Path
        It holds `settings.json` and a folder a split.
    """
    return work_dir / stage / f"{spacing_mm:g}mm"


def write_sidecar(
    path: Path,
    made_with: Mapping[str, Any],
    sources: Mapping[str, Mapping[str, Any]],
    outputs: Sequence[Path],
    *,
    origin: str = SCAN,
) -> None:
    """Write the sidecar of a case whose other files are there.

    Parameters
    ----------
    path : Path
        The sidecar.
    made_with : mapping
        What decides about the content of the outputs beside the sources, as JSON holds it.
    sources : mapping of str to mapping
        `identity` of every source before it was read, by its role.
    outputs : sequence of Path
        The files that were made.
    origin : str
        `PHANTOM` or `SCAN`.
    """
    sizes = {output.name: output.stat().st_size for output in outputs}
    content = {"made_with": dict(made_with), "sources": dict(sources), "outputs": sizes, "origin": origin}
    write_text_whole(path, json.dumps(content, indent=2) + "\n")


def identity(path: Path) -> dict[str, Any]:
    """Give name, size in bytes, two times of change in ns and SHA-256 of a file.

    The first time can be set back after a change of the content; the second is the system's own.

    Raises
    ------
    ValueError
        If there is no such file; a pipe, for one, would be waited for without end.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, found something else.")
    stat = path.stat()
    return {
        "name": path.name,
        "bytes": stat.st_size,
        "modified_ns": stat.st_mtime_ns,
        "changed_ns": stat.st_ctime_ns,
        "sha256": sha256_of(path),
    }


def is_current(path: Path, made_with: Mapping[str, Any], sources: Mapping[str, Path]) -> bool:
    """Whether a case is prepared, whole, in this way, and from these sources.

    Parameters
    ----------
    path : Path
        The sidecar; it need not exist.
    made_with : mapping
        As for `write_sidecar`.
    sources : mapping of str to Path
        The sources by their role.

    Returns
    -------
    bool
        False also for a sidecar that cannot be read.
    """
    found = read_sidecar(path)
    if found is None or found["made_with"] != dict(made_with) or set(found["sources"]) != set(sources):
        return False
    whole = all(_has_size(path.parent / name, size) for name, size in found["outputs"].items())
    return whole and all(_is_same(source, found["sources"][role]) for role, source in sources.items())


def read_sidecar(path: Path) -> dict[str, Any] | None:
    """Read a sidecar; None where there is none that can be read."""
    try:
        found = read_json(path)
    except ValueError:
        return None
    parts = ("made_with", "sources", "outputs")
    right = isinstance(found, dict) and all(isinstance(found.get(part), dict) for part in parts)
    return found if right and all(isinstance(each, dict) for each in found["sources"].values()) else None


def origin_of(path: Path) -> str:
    """Give where the case of a sidecar comes from, `PHANTOM` or `SCAN`; older sidecars do not say: `SCAN`."""
    return str((read_sidecar(path) or {}).get("origin", SCAN))


def is_mask_alone(path: Path) -> bool:
    """Whether the case of a sidecar was prepared without a CT; False without a sidecar."""
    found = read_sidecar(path)
    return found is not None and path.name.replace(SIDECAR, "_ct.nii") not in found["outputs"]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _is_same(source: Path, known: Mapping[str, Any]) -> bool:
    if not source.is_file():
        return False  # whoever prepares the case again says what is wrong
    stat = source.stat()
    if stat.st_size != known.get("bytes"):
        return False
    # Older sidecars hold the first time alone.
    times = (known.get("modified_ns"), known.get("changed_ns", stat.st_ctime_ns))
    return (stat.st_mtime_ns, stat.st_ctime_ns) == times or sha256_of(source) == known.get("sha256")
