"""The sources that download: "osf", VerSe file by file, and "zip", its archives by their addresses."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from utils.download.archives import place_of
from utils.download.folder_lock import alone_in
from utils.download.manifest import Manifest, kept_line, size_on_disk
from utils.download.osf import BAR_DELAY_S, NODES, TOKEN_VARIABLE, Pages, list_files
from utils.download.parts import note_of
from utils.download.remote import PATIENCE, Client, Patience, RemoteFile
from utils.download.selection import Selection, case_file_at, lines_about_homeless, with_year
from utils.download.transfer import PAGES_FOLDER, Job, Run, check_disk_room, print_line, tidy, work
from utils.download.unpacking import archive_jobs
from utils.files import flush_to_disk, hash_file, sha256_of
from utils.settings import DataSettings
from utils.verse.cases import SPLITS

#: The archives of the restructured release, by the last digits of the year.
ARCHIVES = {year: tuple(f"dataset-verse{year}{split}.zip" for split in SPLITS) for year in ("19", "20")}


def from_osf(settings: DataSettings, *, patience: Patience = PATIENCE) -> list[str]:
    """Get VerSe from OSF, file by file: source "osf".

    Parameters
    ----------
    settings : DataSettings
        What to get, from where, and where to.
    patience : Patience
        Attempts, delays and time-outs.

    Returns
    -------
    list of str
        A line for everything that could not be got.

    Raises
    ------
    ValueError
        If the source cannot be listed, there is no room, or nothing to verify.
    """
    return _run(settings, _osf_jobs, patience)


def from_zips(settings: DataSettings, *, patience: Patience = PATIENCE) -> list[str]:
    """Get VerSe as zip archives by their addresses: source "zip". Parameters and errors as `from_osf`."""
    return _run(settings, _zip_jobs, patience)


def _run(settings: DataSettings, plan: Callable[[Run], list[Job]], patience: Patience) -> list[str]:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with alone_in(settings.data_dir):
        manifest = Manifest(settings.data_dir)
        client = Client(patience, print_line=print_line)
        run = Run(settings, client, manifest, Selection.of(settings))
        if settings.verify:
            years = {2000 + int(year) for year in _years(settings)}
            run.only = wrong_files(manifest, run.selection, years=years)
            if not run.only:
                return []
            subjects = {path.split("/")[-2].casefold() for path in run.only}
            run.selection = replace(run.selection, subjects=subjects)
        jobs = plan(run)
        check_disk_room(settings.data_dir, jobs, connections=settings.connections)
        work(run, jobs)
        run.bad += _name_unmet(run)
        tidy(run)
        return sorted(run.bad)


def wrong_files(manifest: Manifest, selection: Selection, *, years: Collection[int]) -> dict[str, str]:
    """Hash the files of a manifest again, and say which are not what they were.

    Parameters
    ----------
    manifest : Manifest
        The manifest.
    selection : Selection
        Splits and subjects to look at.
    years : collection of int
        Years to look at.

    Returns
    -------
    dict of str to str
        What was found wrong, by path. Each is also printed at once.

    Raises
    ------
    ValueError
        If the manifest has no such file.
    """
    files = {path: file for path in sorted(manifest.files) if (file := case_file_at(path))}
    paths = [path for path, file in files.items() if selection.wants(file) and file.year in years]
    if not paths:
        raise ValueError(f"{manifest.data_dir}: expected a manifest.json that lists such files, found none.")
    wrong = {}
    total = sum(manifest.files[path]["size"] for path in paths)
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, delay=BAR_DELAY_S) as bar:
        for path in paths:
            found = fault_of(manifest, path, report_bytes=bar.update)
            if found:
                wrong[path] = found
                print_line(f"{path}: {found}.")
    print(f"verified: {len(paths)} files, {len(wrong)} wrong or missing")
    return wrong


def _osf_jobs(run: Run) -> list[Job]:
    token, api_url = os.environ.get(TOKEN_VARIABLE, ""), run.settings.api_url
    pages = Pages(run.client, run.data_dir / PAGES_FOLDER, token=token, api_url=api_url)
    jobs, claims = [], {}
    for year in _years(run.settings):
        files = list_files(pages, api_url, NODES[year], enters=partial(_enters, run, year))
        archives = [remote for remote in files if remote.name.lower().endswith(".zip")]
        jobs += archive_jobs(run, archives, year)
        found = _claim_places(run, files, year, claims)
        if not archives and not found and not (run.selection.subjects or run.selection.split):
            run.bad.append(_nothing_of_verse(NODES[year], files))
    for place, remotes in tqdm(
        sorted(claims.items()), desc="compare", unit="file", leave=False, delay=BAR_DELAY_S
    ):
        jobs += _file_jobs(run, place, remotes)
    return jobs


def _zip_jobs(run: Run) -> list[Job]:
    names = [name for year in _years(run.settings) for name in ARCHIVES[year]]
    top = (run.settings.zip_url or "").rstrip("/")
    return archive_jobs(run, [RemoteFile(name, f"{top}/{name}") for name in names], "")


def _years(settings: DataSettings) -> list[str]:
    return [year for year in NODES if settings.subset in (year, "all")]


def _enters(run: Run, year: str, folders: Sequence[str]) -> bool:
    if folders[-1].casefold().startswith("sub-"):
        run.met.add(folders[-1].casefold())
    return run.selection.enters(with_year(folders, year))


def _claim_places(
    run: Run, files: Iterable[RemoteFile], year: str, claims: dict[Path, list[RemoteFile]]
) -> int:
    """Note which files belong to which place, and count the VerSe files; those of no split are bad."""
    read = [(remote, case_file_at(remote.name.strip("/"), year=year)) for remote in files]
    cases = [(remote, file) for remote, file in read if file is not None]
    homeless = [remote.name for remote, file in cases if not file.split]
    example = f"dataset-verse{year}training, training"
    run.bad += lines_about_homeless(NODES[year], homeless, example=example)
    for remote, file in cases:
        if file.split and run.wants(file):
            claims.setdefault(place_of(file, run.data_dir), []).append(remote)
    return len(cases)


def _nothing_of_verse(node: str, files: Sequence[RemoteFile]) -> str:
    some = f"{len(files)} other files, such as {files[0].name}" if files else "no file"
    return f"{node}: expected VerSe files (sub-*_ct.nii.gz, ...) or zip archives, found {some}."


def _file_jobs(run: Run, place: Path, remotes: Sequence[RemoteFile]) -> list[Job]:
    """Give the download of a file that is not there yet: one or none."""
    remote = remotes[0]
    identities = {other.identity for other in remotes}
    if len(remotes) > 1 and (len(identities) > 1 or "" in identities):
        names = " and ".join(remote.name for remote in remotes)
        run.bad.append(
            f"{run.manifest.path_of(place)}: expected one file, found several that differ: {names}."
        )
        return []
    run.release([run.manifest.path_of(place)])
    if _is_there(run, remote, place):
        note_of(_part_of(place)).unlink(missing_ok=True)  # Left where a run was killed after the renaming.
        return []
    if run.keeps(run.manifest.path_of(place)):
        run.bad.append(kept_line(place, remote.name))
        return []
    return [Job(remote, _part_of(place), partial(_settle_file, run, remote, place))]


def _is_there(run: Run, remote: RemoteFile, place: Path) -> bool:
    """Whether the listed file is at its place; a file that is in no manifest is hashed and enters it."""
    path = run.manifest.path_of(place)
    if run.manifest.holds(path, size=remote.size):
        return remote.sha256.lower() in ("", run.manifest.files[path]["sha256"])
    if size_on_disk(place) != remote.size or not remote.hashes:
        return False
    hashes = remote.new_hashes()
    hash_file(place, hashes)
    found = {kind: digest.hexdigest() for kind, digest in hashes.items()}
    if any(found[kind] != expected for kind, expected in remote.hashes.items()):
        return False
    run.manifest.enter(path, size=remote.size, sha256=found["sha256"], source=remote.url)
    return True


def _part_of(place: Path) -> Path:
    return place.with_name(f".{place.name}.part")


def _settle_file(run: Run, remote: RemoteFile, place: Path, sha256: str) -> None:
    part = _part_of(place)
    flush_to_disk(part)
    part.replace(place)
    path = run.manifest.path_of(place)
    run.manifest.enter(path, size=size_on_disk(place), sha256=sha256, source=remote.url)
    note_of(part).unlink(missing_ok=True)


def _name_unmet(run: Run) -> list[str]:
    """Name what was asked for and is nowhere; not after failures, which explain it better."""
    if run.only is not None:
        return [
            f"{path}: {found}; --source {run.settings.source} did not bring it again."
            for path in run.only
            if (found := fault_of(run.manifest, path))
        ]
    unmet = sorted(set(run.selection.subjects) - run.met)
    if run.bad or not unmet:
        return []
    where = f" {run.selection.split}" if run.selection.split else ""
    return [f"--subjects: expected subjects of the data set{where}, found no {', no '.join(unmet)}."]


def fault_of(manifest: Manifest, path: str, *, report_bytes: Callable[[int], None] | None = None) -> str:
    """Say what is wrong about a file on disk, "" if nothing is."""
    entry, place = manifest.files[path], manifest.data_dir / path
    size = size_on_disk(place)
    if size != entry["size"]:
        found = "no file" if size < 0 else f"{size} bytes"
        return f"expected {entry['size']} bytes, found {found}"
    sha256 = sha256_of(place, report_bytes=report_bytes)
    return "" if sha256 == entry["sha256"] else f"expected the sha256 {entry['sha256']}, found {sha256}"
