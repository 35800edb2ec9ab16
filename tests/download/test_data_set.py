"""Putting a data set on disk: what is copied where, what is refused, and what is printed."""

import errno
import hashlib
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from utils.download import archives, copies
from utils.download.archives import is_safe
from utils.download.data_set import get_data
from utils.settings import DataSettings
from utils.synthetic.phantom import write as phantom_files
from utils.verse.cases import index_cases

CT = "dataset-01training/rawdata/sub-x/sub-x_dir-ax_ct.nii.gz"
MASK = "dataset-01training/derivatives/sub-x/sub-x_dir-ax_seg-vert_msk.nii.gz"
CENTROIDS = "dataset-01training/derivatives/sub-x/sub-x_dir-ax_seg-subreg_ctd.json"
CASE = {CT: b"ct" * 400, MASK: b"mask" * 300, CENTROIDS: b"[]"}


def put_tree(top, files):
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    return top


def put_archive(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tree(top):
    """Everything but the manifest, hidden files too."""
    paths = [path for path in top.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(top)): path.read_bytes() for path in paths}


def listed(data_dir):
    """What the manifest says of each file: its SHA-256."""
    entries = json.loads((data_dir / "manifest.json").read_text())["files"]
    return {entry["path"]: entry["sha256"] for entry in entries}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def settings(tmp_path, source, **changes):
    return DataSettings(source=str(source), data_dir=tmp_path / "data", **changes)


def test_a_tree_is_copied_into_the_layout_of_verse(tmp_path, capsys):
    nested = {f"VerSe20/unpacked/{name}": content for name, content in CASE.items()}
    source = put_tree(
        tmp_path / "source", {**nested, "VerSe20/notes.txt": b"no case", "VerSe20/.hidden": b""}
    )
    assert get_data(settings(tmp_path, source)) == 0
    assert tree(tmp_path / "data") == CASE
    assert capsys.readouterr().out == "training: 1 series, 1 with CT and mask\n"


@pytest.mark.parametrize("pack", ["archive", "folder with archive"])
def test_an_archive_is_extracted_into_the_layout_of_verse(tmp_path, pack):
    # Zips of VerSe nest a second folder of the same name; macOS adds shadows of every file.
    members = {f"dataset-01training/{name}": content for name, content in CASE.items()}
    shadow = {"__MACOSX/dataset-01training/._sub-x_dir-ax_ct.nii.gz": b"shadow", "readme.md": b"text"}
    archive = put_archive(tmp_path / "source" / "dataset-01training.zip", {**members, **shadow})
    assert get_data(settings(tmp_path, archive if pack == "archive" else archive.parent)) == 0
    assert tree(tmp_path / "data") == CASE


def test_the_archives_name_gives_the_data_set_where_no_folder_does(tmp_path):
    members = {name.removeprefix("dataset-01training/"): content for name, content in CASE.items()}
    archive = put_archive(tmp_path / "dataset-03test.zip", members)
    assert get_data(settings(tmp_path, archive)) == 0
    assert [case.split for case in index_cases(tmp_path / "data")] == ["test"]


PACKS = ("tree", "archive", "folder with archive")


def pack_up(folder, files, pack):
    """Give the path of a source with these files."""
    if pack == "tree":
        return put_tree(folder, files)
    archive = put_archive(folder / "dataset-01training.zip", files)
    return archive if pack == "archive" else folder


@pytest.mark.parametrize("pack", PACKS)
def test_what_was_copied_is_listed_with_its_hash_and_a_rerun_changes_nothing(tmp_path, pack):
    source = pack_up(tmp_path / "source", CASE, pack)
    assert get_data(settings(tmp_path, source)) == 0
    assert listed(tmp_path / "data") == {name: sha256(content) for name, content in CASE.items()}
    before = (tmp_path / "data" / "manifest.json").read_bytes()
    assert get_data(settings(tmp_path, source)) == 0
    assert (tmp_path / "data" / "manifest.json").read_bytes() == before and tree(tmp_path / "data") == CASE


@pytest.mark.parametrize("pack", PACKS)
def test_a_corrected_source_is_taken_where_the_user_changed_nothing(tmp_path, pack, capsys):
    """Of equal size, so that nothing but the content tells."""
    assert get_data(settings(tmp_path, pack_up(tmp_path / "first", CASE, pack))) == 0
    corrected = {**CASE, MASK: CASE[MASK][::-1]}
    assert get_data(settings(tmp_path, pack_up(tmp_path / "second", corrected, pack))) == 0
    assert tree(tmp_path / "data") == corrected
    assert listed(tmp_path / "data")[MASK] == sha256(corrected[MASK])
    assert f"{tmp_path / 'data' / MASK}: replaced by another one in {tmp_path / 'second'}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("mine", [b"corrected by hand", CASE[MASK][::-1]], ids=["other size", "same size"])
@pytest.mark.parametrize("was_copied", [True, False], ids=["copied and changed", "own"])
def test_a_file_of_the_user_is_never_replaced_unasked(tmp_path, pack, mine, was_copied, capsys):
    source = pack_up(tmp_path / "source", CASE, pack)
    if was_copied:
        assert get_data(settings(tmp_path, source)) == 0
    put_tree(tmp_path / "data", {MASK: mine})
    capsys.readouterr()
    assert get_data(settings(tmp_path, source)) == 1
    assert tree(tmp_path / "data") == {**CASE, MASK: mine}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "expected" in line]
    assert line.startswith(f"{tmp_path / 'data' / MASK}: expected") and "--replace-changed" in line
    assert get_data(settings(tmp_path, source, replace_changed=True)) == 0
    assert tree(tmp_path / "data") == CASE


def test_archives_that_contradict_each_other_are_named_and_refused(tmp_path, capsys):
    """Of three archives two differ in a mask, by its content alone, and one in the letters of a name."""
    for number, change in enumerate([{}, {MASK: CASE[MASK][::-1]}, {CT.replace("sub-x", "sub-X"): b"other"}]):
        put_archive(tmp_path / "source" / f"{number}.zip", {**CASE, **change})
    assert get_data(settings(tmp_path, tmp_path / "source")) == 1
    assert tree(tmp_path / "data") == {CENTROIDS: CASE[CENTROIDS]}
    lines = [line for line in capsys.readouterr().err.splitlines() if "that differ" in line]
    assert len(lines) == 2 and any(MASK in line and "0.zip" in line and "1.zip" in line for line in lines)


@pytest.mark.parametrize("pack", ["archive", "folder with archive"])
def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_one_line(tmp_path, pack, monkeypatch, capsys):
    source = pack_up(tmp_path / "source", {**CASE, CT: bytes(3_000_000)}, pack)
    monkeypatch.setattr(archives, "SPARE_BYTES", 1000)
    before = set(tmp_path.rglob("*"))
    assert get_data(settings(tmp_path, source)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "unpacked" in line]
    assert "found 0.003 GB" in line and "--max-unpacked-gigabytes" in line
    assert set(tmp_path.rglob("*")) == before
    assert get_data(settings(tmp_path, source, max_unpacked_gigabytes=0.004)) == 0


@pytest.mark.parametrize("pack", PACKS)
def test_room_is_looked_for_before_the_first_byte(tmp_path, pack, monkeypatch, capsys):
    source = pack_up(tmp_path / "source", CASE, pack)
    usage, needed = shutil.disk_usage(tmp_path), sum(map(len, CASE.values()))
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    before = set(tmp_path.rglob("*"))
    assert get_data(settings(tmp_path, source)) == 1
    assert f"expected room for {needed:,} bytes, found {needed - 1:,} free." in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert get_data(settings(tmp_path, source)) == 0


def test_a_member_that_is_larger_than_it_says_leaves_nothing(tmp_path, capsys):
    archive = put_archive(tmp_path / "dataset-01training.zip", CASE)
    whole, size = archive.read_bytes(), len(CASE[MASK]).to_bytes(4, "little")
    assert whole.count(size) == 2  # before the member, and in the list at the end
    archive.write_bytes(whole.replace(size, (7).to_bytes(4, "little")))
    assert get_data(settings(tmp_path, archive)) == 1
    assert f"{archive}: expected a whole {MASK}, found a broken one" in capsys.readouterr().err
    assert tree(tmp_path / "data") == {name: CASE[name] for name in (CT, CENTROIDS)}


def test_a_full_disk_names_the_file_and_ends_the_run(tmp_path, monkeypatch, capsys):
    def full(offer, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(copies.Offer, "copy_to", full)
    assert get_data(settings(tmp_path, put_tree(tmp_path / "source", CASE))) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "expected" in line]
    assert line.startswith(str(tmp_path / "data")) and "No space left on device" in line
    assert tree(tmp_path / "data") == {}


@pytest.mark.skipif(os.name != "posix", reason="file names are text on this system")
@pytest.mark.parametrize("pack", PACKS)
def test_folders_whose_names_are_no_text_are_sources_and_data_sets(tmp_path, pack, capsys):
    top = tmp_path / os.fsdecode(b"Jos\xe9")
    source = pack_up(top / "source", CASE, pack)
    for _ in range(2):
        assert get_data(settings(top, source)) == 0
    assert tree(top / "data") == CASE
    assert listed(top / "data") == {name: sha256(content) for name, content in CASE.items()}
    (top / "data" / MASK).write_bytes(b"mine")
    assert get_data(settings(top, source)) == 1
    assert "Jos\\udce9/data" in capsys.readouterr().err


def test_incomplete_series_are_named_but_no_failure(tmp_path, capsys):
    source = put_tree(tmp_path / "source", {MASK: CASE[MASK]})
    assert get_data(settings(tmp_path, source)) == 0
    printed = capsys.readouterr()
    assert "sub-x_dir-ax (training) is incomplete: no CT, no centroids." in printed.err
    assert printed.out == "training: 1 series, 0 with CT and mask\n"


def test_a_patient_in_two_splits_is_a_warning(tmp_path, capsys):
    other = {name.replace("01training", "03test").replace("ax", "sag"): text for name, text in CASE.items()}
    assert get_data(settings(tmp_path, put_tree(tmp_path / "source", {**CASE, **other}))) == 0
    assert "Warning: sub-x is in several splits: test, training." in capsys.readouterr().err


def test_a_tree_that_contradicts_itself_is_refused_before_anything_is_copied(tmp_path, capsys):
    other = {name.replace("01training", "verse19training"): content + b"!" for name, content in CASE.items()}
    source = put_tree(tmp_path / "source", {**CASE, **other})
    assert get_data(settings(tmp_path, source)) == 1
    assert "sub-x_dir-ax" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "name", ["/etc/sub-x_ct.nii.gz", "../sub-x_ct.nii.gz", "a/../../sub-x_ct.nii.gz", "C:\\x", "a\\..\\x"]
)
def test_an_archive_that_leaves_its_folder_is_refused_whole(tmp_path, name, capsys):
    archive = put_archive(tmp_path / "dataset-01training.zip", {**CASE, name: b"evil"})
    before = set(tmp_path.rglob("*"))
    assert get_data(settings(tmp_path, archive)) == 1
    assert set(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().err
    assert printed.startswith(f"{archive}: expected members inside") and repr(name) in printed


def test_links_in_an_archive_are_refused(tmp_path):
    link = zipfile.ZipInfo("dataset-01training/rawdata/sub-x/sub-x_ct.nii.gz")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert not is_safe(link)
    link.external_attr = (stat.S_IFREG | 0o644) << 16
    assert is_safe(link)


@pytest.mark.parametrize("broken", ["no zip", "empty", "cut"])
def test_a_corrupt_archive_is_one_line(tmp_path, broken, capsys):
    archive = put_archive(tmp_path / "dataset-01training.zip", CASE)
    whole = archive.read_bytes()
    archive.write_bytes({"no zip": b"text" * 99, "empty": b"", "cut": whole[: len(whole) // 2]}[broken])
    assert get_data(settings(tmp_path, archive)) == 1
    assert capsys.readouterr().err.startswith(f"{archive}: expected a whole zip archive")
    assert not (tmp_path / "data").exists()


def test_a_broken_member_is_named_and_the_others_are_extracted(tmp_path, capsys):
    archive = tmp_path / "dataset-01training.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        for name, content in CASE.items():
            opened.writestr(name, content)
    archive.write_bytes(archive.read_bytes().replace(b"maskmask", b"mask????", 1))
    assert get_data(settings(tmp_path, archive)) == 1
    assert f"{archive}: expected a whole {MASK}" in capsys.readouterr().err
    assert tree(tmp_path / "data") == {name: CASE[name] for name in (CT, CENTROIDS)}
    assert get_data(settings(tmp_path, archive, skip_bad=True)) == 0


def test_two_members_for_one_place_must_be_the_same(tmp_path, capsys):
    archive = put_archive(
        tmp_path / "a.zip", {CT: b"one", f"copy/{CT}": b"two", MASK: b"m", f"copy/{MASK}": b"m"}
    )
    assert get_data(settings(tmp_path, archive)) == 1
    printed = capsys.readouterr().err
    assert (
        f"{CT}: expected one file, found several that differ: {CT} in {archive} and copy/{CT} in" in printed
    )
    assert tree(tmp_path / "data") == {MASK: b"m"}


def test_an_archive_without_cases_is_one_line(tmp_path, capsys):
    archive = put_archive(tmp_path / "photos.zip", {"a.jpg": b""})
    assert get_data(settings(tmp_path, archive)) == 1
    line, _ = capsys.readouterr().err.splitlines()
    assert line == f"{archive}: expected VerSe files (sub-*_ct.nii.gz, ...), found none."


@pytest.mark.parametrize("kind", ["absent", "absent zip", "text file", "empty folder"])
def test_a_path_without_a_data_set_ends_with_status_1_and_names_it(tmp_path, kind, capsys):
    source = tmp_path / ("gone.zip" if kind == "absent zip" else "source")
    if kind == "text file":
        source.write_text("text")
    if kind == "empty folder":
        source.mkdir()
    assert get_data(settings(tmp_path, source)) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"{source}: expected") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "verse2021"}, "received 'verse2021'"),
        ({"source": "pairs", "ct": Path("a.nii.gz")}, "both --ct and --mask"),
        ({"source": "phantom", "ct": Path("a.nii.gz")}, "with --source pairs only"),
        ({"source": "osf", "phantoms": (1, 1, 0)}, "--phantoms: expected with --source phantom only"),
        ({"source": "osf", "ranges": "wide"}, "--ranges: expected with --source phantom only"),
        ({"source": "osf", "variants": "half"}, "--variants: expected with --source phantom only"),
        ({"source": "zip"}, "--source zip: expected --zip-url"),
        ({"source": "zip", "zip_url": "lab/verse"}, "--zip-url: expected an address such as"),
        ({"source": "osf", "zip_url": "http://lab/verse"}, "--zip-url: expected with --source zip only"),
        ({"source": "osf", "api_url": "api.osf.io"}, "--api-url: expected an address such as"),
        ({"subset": "19"}, "--subset: expected with --source osf or zip only, received --source phantom."),
        ({"split": "test"}, "--split: expected with --source osf or zip only"),
        ({"source": "a/tree", "split": "test"}, "--split: expected with --source osf or zip only"),
        ({"subjects": ("sub-verse004",)}, "--subjects: expected with --source osf or zip only"),
        ({"exclude_noncommercial": True}, "--exclude-noncommercial: expected with --source osf or zip only"),
        ({"verify": True}, "--verify: expected with --source osf or zip only"),
        ({"replace_changed": True}, "--replace-changed: expected with --source osf or zip or PATH only"),
        (
            {"max_unpacked_gigabytes": 1.0},
            "--max-unpacked-gigabytes: expected with --source osf or zip or PATH only",
        ),
        (
            {"source": "osf", "subjects": ("sub-gl003",), "exclude_noncommercial": True},
            "--subjects: expected none that --exclude-noncommercial leaves out, received sub-gl003.",
        ),
    ],
)
def test_a_command_line_that_asks_for_nothing_possible_ends_with_status_2(tmp_path, changes, message, capsys):
    asked = DataSettings(**{"source": "phantom", "data_dir": tmp_path / "data", **changes})
    assert get_data(asked, sources=dict.fromkeys(("pairs", "phantom"), lambda settings: [])) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "data").exists()


def test_phantoms_are_asked_for_as_set(tmp_path, monkeypatch):
    calls = []

    def write(data_dir, counts, *, seed, variants, ranges, workers):
        calls.append((counts, seed, variants, ranges, workers))
        put_tree(data_dir, CASE)

    monkeypatch.setattr(phantom_files, "write_phantom_data_set", write)
    asked = {"phantoms": (1, 0, 2), "seed": 7, "workers": 3}
    for more in ({}, {"variants": "rare", "ranges": "wide"}):
        sources = {"phantom": phantom_files.write_phantoms}
        assert get_data(settings(tmp_path, "phantom", **asked, **more), sources=sources) == 0
    assert calls == [((1, 0, 2), 7, None, "usual", 3), ((1, 0, 2), 7, "rare", "wide", 3)]


def test_a_further_source_is_one_more_entry(tmp_path):
    def fetch(asked):
        put_tree(asked.data_dir, CASE)
        return ["sub-y: expected a file, found none"]

    assert get_data(settings(tmp_path, "server"), sources={"server": fetch}) == 1
    assert get_data(settings(tmp_path, "server", skip_bad=True), sources={"server": fetch}) == 0


def test_phantoms_that_could_not_be_written_are_named_and_the_others_listed(tmp_path, monkeypatch, capsys):
    def write(data_dir, counts, *, seed, variants, ranges, workers):
        put_tree(data_dir, CASE)
        raise phantom_files.UnwrittenPhantoms("a_ct.nii.gz: killed\nb_ct.nii.gz: killed")

    monkeypatch.setattr(phantom_files, "write_phantom_data_set", write)
    sources = {"phantom": phantom_files.write_phantoms}
    assert get_data(settings(tmp_path, "phantom"), sources=sources) == 1
    printed = capsys.readouterr()
    assert printed.err == "a_ct.nii.gz: killed\nb_ct.nii.gz: killed\n"
    assert printed.out == "training: 1 series, 1 with CT and mask\n"
    assert get_data(settings(tmp_path, "phantom", skip_bad=True), sources=sources) == 0
