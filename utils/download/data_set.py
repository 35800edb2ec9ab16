"""Put a VerSe data set into a folder: downloaded, or copied from a tree or zip archives on disk.

Every file ends at `DATA_DIR/dataset-<...>/rawdata|derivatives/sub-<...>/<name>`, however deep the source
nests it, under a temporary name until it is whole. A rerun keeps the files that are there already, and
whatever the user has changed. What needs more than files, such as phantoms, is a source that the caller
gives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from utils.download.copies import from_disk
from utils.download.selection import NONCOMMERCIAL_PREFIX
from utils.download.sources import from_osf, from_zips
from utils.files import printable
from utils.settings import DataSettings
from utils.verse import cases

#: A source puts files into `data_dir` and gives a line for everything that was bad.
Source = Callable[[DataSettings], list[str]]


def get_data(settings: DataSettings, *, sources: Mapping[str, Source] | None = None) -> int:
    """Put a data set on disk and say what is there.

    Parameters
    ----------
    settings : DataSettings
        Source and destination.
    sources : mapping of str to Source, optional
        Sources by name beside those of `SOURCES`.

    Returns
    -------
    int
        Exit status: 2 if the settings ask for nothing that can be done, 1 if something was bad (unless
        `skip_bad`) or nothing could be read, else 0. Incomplete series are a
        warning.
    """
    known = {**SOURCES, **(sources or {})}
    wrong = wrong_settings(settings, known)
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    try:
        bad = known.get(settings.source, from_disk)(settings)
        for line in bad:
            print(printable(line), file=sys.stderr)
        series = cases.index_cases(settings.data_dir)
    except (ValueError, OSError) as error:
        print(printable(str(error)), file=sys.stderr)
        return 1
    for line in warnings_about(series):
        print(printable(line), file=sys.stderr)
    print("\n".join(series_per_split(series)))
    return 1 if bad and not settings.skip_bad else 0


def wrong_settings(settings: DataSettings, known: Iterable[str]) -> str:
    """Say what is wrong with a command line, "" if nothing is. A path need not exist to be right."""
    source, names = settings.source, sorted(known)
    is_path = Path(source).exists() or len(Path(source).parts) > 1
    if source not in names and not is_path and not Path(source).suffix:
        return f"--source: expected {', '.join(names)} or a path, received {source!r}."
    has_pair = settings.mask is not None and (settings.ct or settings.key) is not None
    if source == "pairs" and not has_pair:
        return "--source pairs: expected both --ct and --mask, or --mask and --key for a mask alone."
    for option, takers, is_asked in _options_of_sources(settings):
        if is_asked and (source if source in names else "PATH") not in takers:
            return f"{option}: expected with --source {' or '.join(takers)} only, received --source {source}."
    barred = [name for name in settings.subjects if name.casefold().startswith(NONCOMMERCIAL_PREFIX)]
    if barred and settings.exclude_noncommercial:
        return f"--subjects: expected none that --exclude-noncommercial leaves out, received {barred[0]}."
    return _wrong_address(settings)


def _options_of_sources(settings: DataSettings) -> list[tuple[str, tuple[str, ...], bool]]:
    """Name the options that fit some sources alone, with these sources and whether it is given."""
    downloads = ("osf", "zip")
    return [
        ("--ct and --mask", ("pairs",), bool(settings.ct or settings.mask)),
        ("--key", ("pairs",), bool(settings.key)),
        ("--phantoms", ("phantom",), settings.phantoms != DataSettings.phantoms),
        ("--variants", ("phantom",), settings.variants is not None),
        ("--ranges", ("phantom",), settings.ranges != DataSettings.ranges),
        ("--subset", downloads, settings.subset != "all"),
        ("--split", downloads, settings.split is not None and settings.source != "pairs"),
        ("--subjects", downloads, bool(settings.subjects)),
        ("--exclude-noncommercial", downloads, settings.exclude_noncommercial),
        ("--verify", downloads, settings.verify),
        ("--replace-changed", (*downloads, "PATH"), settings.replace_changed),
        ("--max-unpacked-gigabytes", (*downloads, "PATH"), settings.max_unpacked_gigabytes is not None),
    ]


def _wrong_address(settings: DataSettings) -> str:
    if settings.zip_url is not None and settings.source != "zip":
        return f"--zip-url: expected with --source zip only, received --source {settings.source}."
    if settings.source == "zip" and settings.zip_url is None:
        return "--source zip: expected --zip-url, the address of the folder that holds the archives."
    addresses = {"zip": ("--zip-url", settings.zip_url), "osf": ("--api-url", settings.api_url)}
    option, address = addresses.get(settings.source, ("", "http://none"))
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") and parts.netloc:
        return ""
    return f"{option}: expected an address such as https://host/path, received {address!r}."


def series_per_split(series: list[cases.Case]) -> list[str]:
    """Say in a line a split how many series there are and how many of them have CT and mask."""
    lines = []
    for name in (*cases.SPLITS, ""):
        complete = [case.complete for case in series if case.split == name]
        if complete:
            lines.append(f"{name or 'no split'}: {len(complete)} series, {sum(complete)} with CT and mask")
    return lines


def warnings_about(series: list[cases.Case]) -> list[str]:
    """Name the incomplete series, and the patients that stand in several splits."""
    incomplete = [
        f"Warning: {case.key} ({case.split or 'no split'}) is incomplete: no {', no '.join(case.missing())}."
        for case in series
        if not case.complete
    ]
    shared = [
        f"Warning: {subject} is in several splits: {', '.join(name or 'no split' for name in splits)}."
        for subject, splits in cases.subjects_in_several_splits(series).items()
    ]
    return incomplete + shared


#: The sources by name; whatever is none of them is a path (`from_disk`).
SOURCES: dict[str, Source] = {"osf": from_osf, "zip": from_zips}
