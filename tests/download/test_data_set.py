"""Putting a data set on disk: what is copied where, what is refused, and what is printed."""

import stat
import zipfile
from pathlib import Path

import pytest

from utils.download.data_set import extract_archive, get_data, is_safe
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
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


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
    assert extract_archive(put_archive(tmp_path / "dataset-03test.zip", members), tmp_path / "data") == []
    assert [case.split for case in index_cases(tmp_path / "data")] == ["test"]


def test_files_of_the_same_size_are_kept_and_others_replaced(tmp_path):
    source = put_tree(tmp_path / "source", CASE)
    same_size = b"*" * len(CASE[CT])
    put_tree(tmp_path / "data", {CT: same_size, MASK: b"half"})
    assert get_data(settings(tmp_path, source)) == 0
    assert tree(tmp_path / "data") == {**CASE, CT: same_size}
    put_archive(tmp_path / "dataset-01training.zip", CASE)
    (tmp_path / "data" / MASK).write_bytes(b"half")
    assert extract_archive(tmp_path / "dataset-01training.zip", tmp_path / "data") == []
    assert tree(tmp_path / "data") == {**CASE, CT: same_size}


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


def test_two_members_for_one_place_must_be_the_same(tmp_path):
    archive = put_archive(
        tmp_path / "a.zip", {CT: b"one", f"copy/{CT}": b"two", MASK: b"m", f"copy/{MASK}": b"m"}
    )
    (line,) = extract_archive(archive, tmp_path / "data")
    assert f"copy/{CT}" in line
    assert tree(tmp_path / "data") == {CT: b"one", MASK: b"m"}


def test_an_archive_without_cases_is_one_line(tmp_path):
    archive = put_archive(tmp_path / "photos.zip", {"a.jpg": b""})
    assert extract_archive(archive, tmp_path / "data") == [
        f"{archive}: expected VerSe files (sub-*_ct.nii.gz, ...), found none."
    ]


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
