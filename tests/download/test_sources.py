"""Downloads from a server that behaves like OSF: whole, broken in every way, resumed, and verified."""

import email.utils
import errno
import hashlib
import json
import shutil
import threading
import time
import zipfile
from functools import partial
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest

from tests.download.osf_server import OsfServer
from tests.download.waiting import end_of, wait_until
from utils.download import osf, remote, transfer, unpacking
from utils.download.data_set import get_data
from utils.download.remote import Patience
from utils.download.sources import from_osf, from_zips
from utils.settings import DataSettings

#: Large enough for a fault in the middle to leave whole chunks behind.
LARGE = 600_000
#: Delays of milliseconds, and a stalled line is given up after half a second.
QUICK = Patience(first_delay_s=0.001, longest_delay_s=0.01, connect_s=2.0, read_s=0.5)


def noise(seed, size=LARGE):
    return np.random.default_rng(seed).bytes(size)


def case(subject, seed, *, top, size=LARGE):
    """Three files of a series, by their path in the layout of VerSe below a folder of the source."""
    return {
        f"{top}/rawdata/{subject}/{subject}_ct.nii.gz": noise(seed, size),
        f"{top}/derivatives/{subject}/{subject}_seg-vert_msk.nii.gz": noise(seed + 1, size // 4),
        f"{top}/derivatives/{subject}/{subject}_seg-vb_ctd.json": noise(seed + 2, 300),
    }


NODE_19 = {
    **case("sub-verse004", 1, top="/VerSe19/dataset-verse19training"),
    **case("sub-verse005", 4, top="/VerSe19/dataset-verse19validation", size=5000),
    "/VerSe19/readme.txt": b"read me",
}
# The node of 2020 names splits without data set and year.
NODE_20 = {
    **case("sub-verse500", 7, top="/training", size=5000),
    **case("sub-gl003", 10, top="/training", size=5000),
    **case("sub-verse501", 13, top="/03_test", size=5000),
}
EXPECTED = {
    path.removeprefix("/VerSe19/")
    .replace("/training/", "dataset-verse20training/")
    .replace("/03_test/", "dataset-verse20test/"): content
    for path, content in {**NODE_19, **NODE_20}.items()
    if not path.endswith(".txt")
}
CT = "sub-verse004_ct.nii.gz"
CT_PATH = "dataset-verse19training/rawdata/sub-verse004/sub-verse004_ct.nii.gz"


@pytest.fixture
def server():
    server = OsfServer({"jtfa5": dict(NODE_19), "4skx2": dict(NODE_20)})
    yield server
    server.close()


def get(server, data_dir, *, patience=QUICK, **changes):
    settings = DataSettings(source="osf", data_dir=data_dir, api_url=server.api_url, **changes)
    return get_data(settings, sources={"osf": partial(from_osf, patience=patience)})


def tree(top):
    """Everything but the manifest, hidden files too."""
    paths = [path for path in top.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in paths}


def manifest(data_dir):
    return json.loads((data_dir / "manifest.json").read_text())


def fetched(server):
    return sorted({name for _, _, name, _, _ in server.requests("storage")})


def test_everything_is_downloaded_into_the_layout_of_verse(server, tmp_path, capsys):
    assert get(server, tmp_path / "data") == 0
    assert tree(tmp_path / "data") == EXPECTED
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "training: 3 series, 3 with CT and mask",
        "validation: 1 series, 1 with CT and mask",
        "test: 1 series, 1 with CT and mask",
    ]
    assert len(server.requests("storage")) == len(EXPECTED) == 15
    pages = [entry[2] for entry in server.requests("listing")]
    # Folders of the first node by depth; two entries a page, and VerSe19 alone has three.
    assert sum("jtfa5" in page for page in pages) == 1 + 2 + 2 + 4 + 4


def test_a_token_is_shown_with_requests_for_pages_alone(server, tmp_path, monkeypatch):
    assert get(server, tmp_path / "without") == 0
    assert {token for _, token in server.tokens} == {None}
    server.tokens.clear()
    monkeypatch.setenv("OSF_TOKEN", "secret")
    assert get(server, tmp_path / "with") == 0
    kinds = {kind: {token for k, token in server.tokens if k == kind} for kind, _ in server.tokens}
    assert kinds == {"v2": {"Bearer secret"}, "download": {None}, "storage": {None}}
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("url", "api_url", "expected"),
    [
        ("https://api.osf.io/v2/nodes/?page=2", "https://api.osf.io/v2", True),
        ("https://API.osf.io/other", "https://api.osf.io/v2", True),
        ("http://api.osf.io/v2/", "https://api.osf.io/v2", False),
        ("http://api.osf.io/v2/", "http://api.osf.io/v2", False),
        ("https://api.osf.io:444/v2/", "https://api.osf.io/v2", False),
        ("https://osf.io/v2/", "https://api.osf.io/v2", False),
        ("https://api.osf.io.elsewhere.org/v2/", "https://api.osf.io/v2", False),
        ("https://api.osf.io@elsewhere.org/v2/", "https://api.osf.io/v2", False),
        ("http://127.0.0.1:80/v2/", "http://127.0.0.1:80/v2", True),
        ("http://[::1]:80/v2/", "http://[::1]:80/v2", True),
        ("http://localhost:80/v2/", "http://localhost:80/v2", True),
        ("http://127.0.0.1:81/v2/", "http://127.0.0.1:80/v2", False),
        ("http://127.0.0.1.elsewhere.org/", "http://127.0.0.1.elsewhere.org/", False),
    ],
)
def test_a_token_is_for_the_hosts_own_interface_over_tls(url, api_url, expected):
    assert osf.may_see_token(url, api_url) is expected


@pytest.mark.parametrize("way", ["next page", "redirect"])
def test_a_token_goes_to_no_other_host(server, tmp_path, monkeypatch, way):
    """The listing of one server leads to another one, which the token is not for."""
    other = OsfServer({"jtfa5": dict(NODE_19)})
    monkeypatch.setenv("OSF_TOKEN", "secret")
    if way == "redirect":
        server.faults["listing"].append(f"to {other.api_url}/nodes/jtfa5/files/osfstorage/")
    else:
        server.next_url = other.url
    assert get(server, tmp_path / "data", subset="19") == 0
    other.close()
    assert {token for kind, token in server.tokens if kind == "v2"} == {"Bearer secret"}
    assert other.requests("listing") and {token for _, token in other.tokens} == {None}


def test_large_pages_are_asked_for():
    assert osf._with_large_pages("https://x/v2/a/") == "https://x/v2/a/?page%5Bsize%5D=100"
    assert osf._with_large_pages("https://x/v2/a/?b=1") == "https://x/v2/a/?b=1&page%5Bsize%5D=100"


def test_the_manifest_lists_every_file(server, tmp_path):
    get(server, tmp_path / "data")
    entries = {entry["path"]: entry for entry in manifest(tmp_path / "data")["files"]}
    assert sorted(entries) == sorted(EXPECTED)
    for path, content in EXPECTED.items():
        assert entries[path]["size"] == len(content)
        assert entries[path]["sha256"] == hashlib.sha256(content).hexdigest()
        assert entries[path]["source"].startswith(f"{server.url}/download/")
        assert entries[path]["date"].endswith("+00:00")


def test_a_rerun_asks_for_no_file_again(server, tmp_path):
    get(server, tmp_path / "data")
    before = (tmp_path / "data" / "manifest.json").read_bytes()
    server.log.clear()
    assert get(server, tmp_path / "data") == 0
    assert server.requests("storage") == []
    assert (tmp_path / "data" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "subjects"),
    [
        ({"subset": "19"}, {"sub-verse004", "sub-verse005"}),
        ({"subset": "20"}, {"sub-verse500", "sub-verse501", "sub-gl003"}),
        ({"split": "training"}, {"sub-verse004", "sub-verse500", "sub-gl003"}),
        ({"split": "test"}, {"sub-verse501"}),
        ({"subjects": ("sub-verse005", "SUB-gl003")}, {"sub-verse005", "sub-gl003"}),
        ({"exclude_noncommercial": True, "subset": "20"}, {"sub-verse500", "sub-verse501"}),
    ],
)
def test_only_what_is_asked_for_is_fetched(server, tmp_path, changes, subjects):
    assert get(server, tmp_path / "data", **changes) == 0
    expected = {path: content for path, content in EXPECTED.items() if path.split("/")[2] in subjects}
    assert tree(tmp_path / "data") == expected
    assert len(server.requests("storage")) == len(expected)


def test_folders_of_other_subjects_and_splits_are_not_listed(server, tmp_path):
    get(server, tmp_path / "data", subjects=("sub-verse005",), subset="19", split="validation")
    listed = [entry[2] for entry in server.requests("listing")]
    assert not [page for page in listed if "sub-verse004" in page or "dataset-verse19training/" in page]


def test_a_later_run_adds_what_it_asks_for(server, tmp_path):
    get(server, tmp_path / "data", subjects=("sub-verse005",))
    server.log.clear()
    assert get(server, tmp_path / "data") == 0
    assert tree(tmp_path / "data") == EXPECTED
    assert len(server.requests("storage")) == len(EXPECTED) - 3


def test_a_subject_that_is_not_there_is_an_error(server, tmp_path, capsys):
    assert get(server, tmp_path / "data", subjects=("sub-verse005", "sub-verse999")) == 1
    assert (
        "--subjects: expected subjects of the data set, found no sub-verse999.\n" in capsys.readouterr().err
    )
    assert len(tree(tmp_path / "data")) == 3


@pytest.mark.parametrize(
    ("faults", "attempts"),
    [
        (["drop"], 2),
        (["drop", "drop"], 3),
        (["truncate"], 2),
        (["wrong"], 2),
        (["drop", "no range"], 2),
        (["drop", "wrong"], 3),
        (["stall"], 2),
        (["longer"], 2),
        (["no length"], 2),
        (["429", "500", "503"], 4),
        (["500", "drop", "502", "truncate"], 5),
    ],
)
def test_after_faults_the_right_bytes_arrive(server, tmp_path, faults, attempts):
    server.faults[CT].extend(faults)
    assert get(server, tmp_path / "data", subset="19") == 0
    assert (tmp_path / "data" / CT_PATH).read_bytes() == EXPECTED[CT_PATH]
    assert len(server.requests("storage", CT)) == attempts
    assert not [name for name in tree(tmp_path / "data") if ".part" in name]


def test_a_broken_download_goes_on_where_it_broke(server, tmp_path):
    server.faults[CT].append("drop")
    get(server, tmp_path / "data", subset="19")
    (_, _, _, first, _), (_, _, _, second, status) = server.requests("storage", CT)
    begin = int(second.removeprefix("bytes=").removesuffix("-"))
    assert first is None and status == 206
    assert LARGE // 2 - remote.CHUNK <= begin <= LARGE // 2


def test_retry_after_is_obeyed(server, tmp_path):
    server.faults[CT].extend(["429 1"])
    begin = time.monotonic()
    assert get(server, tmp_path / "data", subset="19") == 0
    assert 1.0 <= time.monotonic() - begin < 3.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("in 90 s", 90.0), ("90 s ago", 0.0), ("soon", 0.0), ("", 0.0), ("-5", 0.0)],
)
def test_retry_after_is_a_number_or_a_date(header, seconds, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    shift = {"in 90 s": 90, "90 s ago": -90}.get(header)
    date = header if shift is None else email.utils.formatdate(1_700_000_000 + shift, usegmt=True)
    assert remote._retry_after(SimpleNamespace(headers={"Retry-After": date})) == seconds


def test_a_retry_after_of_a_day_is_not_waited_for(server, tmp_path, capsys):
    server.faults["listing"].append("429 86400")
    assert get(server, tmp_path / "data") == 1
    printed = capsys.readouterr().err
    assert f"listing: expected an answer from {server.api_url}/nodes/jtfa5" in printed
    assert "found HTTP 429 (1 attempts)." in printed and "Traceback" not in printed


def test_delays_double_and_vary_and_end_at_the_longest():
    client = remote.Client(Patience(first_delay_s=1.0, longest_delay_s=5.0))
    for failed, longest in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (9, 5.0)]:
        delays = {client._delay(failed) for _ in range(50)}
        assert len(delays) > 1 and longest / 2 <= min(delays) and max(delays) <= longest


@pytest.mark.parametrize(
    ("fault", "message", "attempts"),
    [
        ("500", "found HTTP 500 (7 attempts).", 7),
        ("404", "expected a file or a page, found HTTP 404.", 1),
        ("wrong", "instead of " + hashlib.sha256(EXPECTED[CT_PATH]).hexdigest(), 3),
    ],
)
def test_a_file_that_cannot_be_got_is_named_and_the_others_are_got(
    server, tmp_path, capsys, fault, message, attempts
):
    server.faults[CT].extend([fault] * 99)
    assert get(server, tmp_path / "data", subset="19") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if message in line]
    assert len(lines) == 1 and CT in lines[0] and server.url in lines[0]
    assert len(server.requests("storage", CT)) == attempts
    expected = {path for path in EXPECTED if "verse19" in path and path != CT_PATH}
    assert {path for path in tree(tmp_path / "data") if "/." not in path} - {".listing"} >= expected
    assert not (tmp_path / "data" / CT_PATH).exists()
    server.faults[CT].clear()
    assert get(server, tmp_path / "data", subset="19") == 0
    assert {**tree(tmp_path / "data")}.keys() == expected | {CT_PATH}


def test_wrong_bytes_are_got_anew_from_the_start(server, tmp_path):
    server.faults[CT].append("wrong")
    get(server, tmp_path / "data", subset="19")
    assert [entry[3] for entry in server.requests("storage", CT)] == [None, None]


def test_a_part_of_another_file_is_not_used(server, tmp_path):
    """The file at the source changes between two runs: the bytes of the first must not be kept."""
    server.faults[CT].extend(["drop", "404"])
    assert get(server, tmp_path / "data", subset="19") == 1
    part = tmp_path / "data" / CT_PATH.replace(CT, f".{CT}.part")
    assert part.stat().st_size > 0
    path = f"/VerSe19/{CT_PATH}"
    server.nodes["jtfa5"][path] = noise(99)
    server.log.clear()
    assert get(server, tmp_path / "data", subset="19") == 0
    assert (tmp_path / "data" / CT_PATH).read_bytes() == noise(99)
    assert server.requests("storage", CT) == [("GET", "storage", CT, None, 200)]


def test_a_part_of_the_same_file_is_used_by_the_next_run(server, tmp_path):
    server.faults[CT].extend(["drop", "404"])
    assert get(server, tmp_path / "data", subset="19") == 1
    server.log.clear()
    assert get(server, tmp_path / "data", subset="19") == 0
    ((_, _, _, asked, status),) = server.requests("storage", CT)
    assert status == 206 and asked.startswith("bytes=")
    assert (tmp_path / "data" / CT_PATH).read_bytes() == EXPECTED[CT_PATH]


def test_a_file_renamed_before_it_was_listed_is_hashed_and_not_fetched(server, tmp_path):
    get(server, tmp_path / "data")
    listed = manifest(tmp_path / "data")
    listed["files"] = [entry for entry in listed["files"] if entry["path"] != CT_PATH]
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(listed))
    server.log.clear()
    assert get(server, tmp_path / "data") == 0
    assert server.requests("storage") == []
    assert CT_PATH in {entry["path"] for entry in manifest(tmp_path / "data")["files"]}


def test_a_file_of_the_right_size_that_nobody_vouches_for_is_fetched(server, tmp_path):
    place = tmp_path / "data" / CT_PATH
    place.parent.mkdir(parents=True)
    place.write_bytes(b"*" * LARGE)
    assert get(server, tmp_path / "data", subset="19") == 0
    assert place.read_bytes() == EXPECTED[CT_PATH]


def test_what_a_killed_run_was_writing_is_removed_and_parts_of_others_stay(server, tmp_path):
    top = tmp_path / "data" / "dataset-verse19training"
    half = [tmp_path / "data" / ".manifest.json.0badcafe.part", top / f".{CT}.0badcafe.part"]
    part, note = top / ".sub-x_ct.nii.gz.part", top / ".sub-x_ct.nii.gz.part.json"
    top.mkdir(parents=True)
    for path in (*half, part, note):
        path.write_bytes(b"half")
    assert get(server, tmp_path / "data", subset="19") == 0
    assert [path.exists() for path in (*half, part, note)] == [False, False, True, True]


def test_identical_files_for_one_place_are_fetched_once(server, tmp_path):
    server.nodes["jtfa5"][f"/copy/{CT_PATH}"] = EXPECTED[CT_PATH]
    assert get(server, tmp_path / "data", subset="19") == 0
    assert len(server.requests("storage", CT)) == 1


def test_different_files_for_one_place_are_an_error(server, tmp_path, capsys):
    server.nodes["jtfa5"][f"/copy/{CT_PATH}"] = noise(99)
    assert get(server, tmp_path / "data", subset="19") == 1
    assert (
        f"{CT_PATH}: expected one file, found several that differ: /VerSe19/{CT_PATH} and /copy/{CT_PATH}."
        in capsys.readouterr().err
    )
    assert server.requests("storage", CT) == []
    assert len(fetched(server)) == 5


def test_files_outside_every_split_are_bad(server, tmp_path, capsys):
    server.nodes["jtfa5"]["/loose/sub-verse009_ct.nii.gz"] = b"ct"
    assert get(server, tmp_path / "data", subset="19") == 1
    assert "found 1 files outside of them, such as /loose/sub-verse009_ct.nii.gz." in capsys.readouterr().err
    assert "sub-verse009_ct.nii.gz" not in fetched(server)


def test_a_node_without_verse_says_what_it_has(server, tmp_path, capsys):
    server.nodes["jtfa5"] = {"/a/verse004.nii.gz": b"older"}
    assert get(server, tmp_path / "data", subset="19") == 1
    assert "or zip archives, found 1 other files, such as /a/verse004.nii.gz." in capsys.readouterr().err


def test_a_listing_that_is_none_is_one_line(server, tmp_path, capsys):
    server.faults["listing"].extend(["html"] * 99)
    assert get(server, tmp_path / "data") == 1
    assert "found no JSON object (7 attempts)." in capsys.readouterr().err


def test_no_server_is_one_line(tmp_path, capsys):
    settings = DataSettings(source="osf", data_dir=tmp_path / "data", api_url="http://127.0.0.1:9/v2")
    assert get_data(settings, sources={"osf": partial(from_osf, patience=QUICK)}) == 1
    assert capsys.readouterr().err == (
        "listing: expected an answer from http://127.0.0.1:9/v2/nodes/jtfa5/files/osfstorage/"
        "?page%5Bsize%5D=100, found Connection refused (3 attempts).\n"
    )


def test_a_server_that_falls_silent_is_not_asked_a_thousand_times(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(transfer, "_GIVE_UP", 2)
    for path in EXPECTED:
        server.faults[path.split("/")[-1]].extend(["500"] * 99)
    assert get(server, tmp_path / "data", connections=1) == 1
    assert "Of 2 downloads in a row expected one to work, found none: 13 more were not tried." in (
        capsys.readouterr().err
    )
    assert len(fetched(server)) == 2


def test_pages_are_kept_for_the_next_run_while_the_server_is_silent(server, tmp_path):
    server.faults[CT].extend(["500"] * 7)
    assert get(server, tmp_path / "data", subset="19") == 1
    server.log.clear()
    assert get(server, tmp_path / "data", subset="19") == 0
    assert server.requests("listing") == []
    assert not (tmp_path / "data" / ".listing").exists()
    assert get(server, tmp_path / "data", subset="19") == 0
    assert server.requests("listing") != []


@pytest.mark.parametrize("connections", [1, 3])
def test_connections_are_bounded(server, tmp_path, connections):
    server.bytes_per_second = 2_000_000
    assert get(server, tmp_path / "data", subset="20", connections=connections) == 0
    assert server.most_busy <= connections


def test_hashes_are_not_needed_but_sizes_are_kept(server, tmp_path):
    server.hashes = ()
    server.faults[CT].extend(["truncate", "drop"])
    assert get(server, tmp_path / "data", subset="19") == 0
    assert (tmp_path / "data" / CT_PATH).read_bytes() == EXPECTED[CT_PATH]
    # Nothing tells one version from another: nothing is resumed.
    assert [entry[3] for entry in server.requests("storage", CT)] == [None, None, None]


def test_too_little_room_ends_the_run_before_the_first_byte(server, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert get(server, tmp_path / "data", subset="19") == 1
    needed = sum(len(content) for path, content in EXPECTED.items() if "verse19" in path)
    assert f"expected room for {needed:,} bytes" in (printed := capsys.readouterr().err)
    assert "found 1,000 free. Nothing was downloaded." in printed
    assert server.requests("storage") == []


def test_a_full_disk_is_one_line_and_keeps_the_parts(server, tmp_path, capsys, monkeypatch):
    written, add = [], remote._add

    def add_until_full(file, chunk, hashes):
        written.append(len(chunk))
        if sum(written) > 300_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(file, chunk, hashes)

    monkeypatch.setattr(remote, "_add", add_until_full)
    assert get(server, tmp_path / "data", subset="19", connections=2) == 1
    printed = capsys.readouterr().err
    assert "found the disk full" in printed and "Traceback" not in printed and "bytes free" in printed
    parts = [name for name in tree(tmp_path / "data") if name.endswith(".part")]
    assert parts
    monkeypatch.undo()
    server.log.clear()
    assert get(server, tmp_path / "data", subset="19") == 0
    assert any(entry[4] == 206 for entry in server.requests("storage"))
    assert tree(tmp_path / "data").keys() == {path for path in EXPECTED if "verse19" in path}


def test_verify_repairs_only_what_is_wrong(server, tmp_path, capsys):
    get(server, tmp_path / "data")
    changed, gone = tmp_path / "data" / CT_PATH, tmp_path / "data" / sorted(EXPECTED)[-1]
    changed.write_bytes(b"*" * LARGE)
    gone.unlink()
    server.log.clear()
    capsys.readouterr()
    assert get(server, tmp_path / "data") == 0  # Sizes tell of the file that is gone alone.
    assert fetched(server) == [gone.name]
    gone.unlink()
    server.log.clear()
    assert get(server, tmp_path / "data", verify=True) == 0
    printed = capsys.readouterr()
    assert fetched(server) == sorted([changed.name, gone.name])
    assert tree(tmp_path / "data") == EXPECTED
    assert "verified: 15 files, 2 wrong or missing" in printed.out
    sha256 = hashlib.sha256(EXPECTED[CT_PATH]).hexdigest()
    assert f"{CT_PATH}: expected the sha256 {sha256}, found" in printed.err
    assert f"{sorted(EXPECTED)[-1]}: expected" in printed.err and "found no file" in printed.err


def test_verify_of_a_whole_data_set_asks_no_server(server, tmp_path, capsys):
    get(server, tmp_path / "data")
    server.log.clear()
    assert get(server, tmp_path / "data", verify=True) == 0
    assert server.log == []
    assert "verified: 15 files, 0 wrong or missing" in capsys.readouterr().out


def test_verify_without_a_manifest_is_an_error(server, tmp_path, capsys):
    assert get(server, tmp_path / "data", verify=True) == 1
    assert "expected a manifest.json that lists such files, found none." in capsys.readouterr().err


def test_verify_that_cannot_repair_says_so(server, tmp_path, capsys):
    get(server, tmp_path / "data")
    (tmp_path / "data" / CT_PATH).write_bytes(b"*")
    del server.nodes["jtfa5"][f"/VerSe19/{CT_PATH}"]
    assert get(server, tmp_path / "data", verify=True) == 1
    assert f"{CT_PATH}: expected {LARGE} bytes, found 1 bytes; --source osf did not bring it again." in (
        capsys.readouterr().err
    )
    assert (tmp_path / "data" / CT_PATH).read_bytes() == b"*"  # Nothing better is to be had.


def test_a_manifest_that_is_none_is_one_line(server, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text('{"files": [{}]}')
    assert get(server, tmp_path / "data") == 1
    assert f"{tmp_path / 'data' / 'manifest.json'}: expected the list of files" in capsys.readouterr().err


def test_a_second_download_into_the_folder_is_refused(server, tmp_path, capsys):
    server.bytes_per_second = 600_000
    first = threading.Thread(target=get, args=(server, tmp_path / "data"), kwargs={"subset": "19"})
    first.start()
    wait_until(lambda: server.requests("storage"))
    assert get(server, tmp_path / "data") == 1
    assert "expected no other download into it, found one running." in capsys.readouterr().err
    end_of(first)
    assert get(server, tmp_path / "data", subset="19") == 0


def archive(files, *, method=zipfile.ZIP_STORED):
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", method) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return packed.getvalue()


def test_archives_on_osf_are_unpacked(server, tmp_path):
    inside = {
        path.removeprefix("/training/"): content for path, content in NODE_20.items() if "/03" not in path
    }
    server.nodes["4skx2"] = {"/VerSe20/training.zip": archive(inside)}
    assert get(server, tmp_path / "data", subset="20", exclude_noncommercial=True) == 0
    expected = {path: content for path, content in EXPECTED.items() if "verse500" in path}
    assert tree(tmp_path / "data") == expected
    server.log.clear()
    assert get(server, tmp_path / "data", subset="20", exclude_noncommercial=True) == 0
    assert server.requests("storage") == []
    assert get(server, tmp_path / "data", subset="20") == 0  # What was left out is wanted now.
    assert len(server.requests("storage")) == 1
    assert tree(tmp_path / "data") == {p: c for p, c in EXPECTED.items() if "verse20training" in p}


def get_zips(server, data_dir, *, folder="zips", **changes):
    settings = DataSettings(
        source="zip", data_dir=data_dir, zip_url=f"{server.url}/storage/{folder}", **changes
    )
    return get_data(settings, sources={"zip": partial(from_zips, patience=QUICK)})


#: A small archive, with the folder's name that the archive of the restructured release has.
TEST_20 = case("sub-verse501", 13, top="dataset-03test", size=400_000)
NAME_20 = "dataset-verse20test.zip"


@pytest.fixture
def zips(server):
    server.nodes["zips"] = {f"/{NAME_20}": archive(TEST_20)}
    return server


@pytest.mark.parametrize(
    ("faults", "gets"),
    [
        ([], 1),
        (["", "drop"], 2),
        (["", "truncate"], 2),
        (["", "no length"], 2),
        (["429", "", "stall"], 2),
        (["", "drop", "no range"], 2),
    ],
)
def test_archives_are_unpacked_after_faults(zips, tmp_path, faults, gets):
    zips.faults[NAME_20].extend(faults)  # The first request asks for the size ("HEAD").
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 0
    assert tree(tmp_path / "data") == TEST_20
    assert [entry[0] for entry in zips.requests("storage", NAME_20)].count("GET") == gets
    (entry,) = manifest(tmp_path / "data")["archives"]
    packed = zips.nodes["zips"][f"/{NAME_20}"]
    assert (entry["size"], entry["sha256"]) == (len(packed), hashlib.sha256(packed).hexdigest())
    assert entry["members"] == {path: len(content) for path, content in TEST_20.items()}


def test_an_archive_left_by_a_kill_after_it_was_listed_is_removed(zips, tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "discard", lambda part: None)
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 0
    assert len(tree(tmp_path / "data")) == len(TEST_20) + 2  # The archive and its note.
    monkeypatch.undo()
    zips.log.clear()
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 0
    assert tree(tmp_path / "data") == TEST_20 and zips.log == []


def test_wrong_bytes_in_an_archive_are_found_by_its_checksums(zips, tmp_path, capsys):
    packed = bytearray(archive(TEST_20))
    packed[5000] ^= 1
    right = zips.nodes["zips"][f"/{NAME_20}"]
    zips.nodes["zips"][f"/{NAME_20}"] = bytes(packed)
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 1
    member = "dataset-03test/rawdata/sub-verse501/sub-verse501_ct.nii.gz"
    assert f"{NAME_20}: expected a whole {member}" in capsys.readouterr().err
    assert [entry[0] for entry in zips.requests("storage", NAME_20)].count("GET") == 2
    assert len(tree(tmp_path / "data")) == 2 and manifest(tmp_path / "data")["archives"] == []
    zips.nodes["zips"][f"/{NAME_20}"] = right
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 0
    assert tree(tmp_path / "data") == TEST_20


def test_a_part_of_an_archive_that_was_replaced_is_not_used(zips, tmp_path):
    zips.faults[NAME_20].extend(["", "drop", "404"])
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 1
    assert any(name.startswith(".archives/") for name in tree(tmp_path / "data"))
    other = {path: content[::-1] for path, content in TEST_20.items()}
    zips.nodes["zips"][f"/{NAME_20}"] = archive(other)  # Of the same size: its version alone tells.
    zips.log.clear()
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 0
    assert tree(tmp_path / "data") == other
    assert [entry[3:] for entry in zips.requests("storage") if entry[0] == "GET"] == [(None, 200)]


@pytest.mark.parametrize(("fault", "statuses"), [("", [200]), ("careless", [206, 200])])
def test_an_archive_that_is_replaced_while_it_is_got_is_not_mixed(zips, tmp_path, fault, statuses):
    """`If-Range` names the version of the part: a server with another one sends it from the start."""
    part = tmp_path / "part"
    asked = remote.RemoteFile(NAME_20, f"{zips.url}/storage/zips/{NAME_20}")
    client = remote.Client(QUICK)
    zips.faults[NAME_20].extend(["", "drop", "404"])
    known = client.probe(asked)
    with pytest.raises(remote.Unreachable):
        client.fetch(known, part, report_bytes=lambda count: None)
    other = archive({path: content[::-1] for path, content in TEST_20.items()})
    zips.nodes["zips"][f"/{NAME_20}"] = other
    counts = [part.stat().st_size]
    assert counts[0] > 0
    zips.log.clear()
    zips.faults[NAME_20].append(fault)
    assert client.fetch(known, part, report_bytes=counts.append) == hashlib.sha256(other).hexdigest()
    assert zips.log[0][3].startswith("bytes=") and [entry[4] for entry in zips.log] == statuses
    assert part.read_bytes() == other and sum(counts) == len(other)


@pytest.mark.parametrize("name", ["../sub-x_ct.nii.gz", "/sub-x_ct.nii.gz"])
def test_an_archive_that_leaves_its_folder_is_refused_whole(zips, tmp_path, capsys, name):
    zips.nodes["zips"][f"/{NAME_20}"] = archive({**TEST_20, name: b"evil"})
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 1
    assert f"{NAME_20}: expected members inside the archive's own tree, found {name!r}." in (
        capsys.readouterr().err
    )
    assert not list(tmp_path.rglob("*_ct.nii.gz"))


def test_what_is_no_archive_is_an_error(zips, tmp_path, capsys):
    zips.nodes["zips"][f"/{NAME_20}"] = b"<html>Sorry</html>" * 100
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 1
    assert (
        f"{NAME_20}: expected a whole zip archive, found File is not a zip file." in capsys.readouterr().err
    )
    assert tree(tmp_path / "data") == {}


def test_an_archive_that_is_not_there_is_named_and_the_others_are_got(zips, tmp_path, capsys):
    zips.nodes["zips"]["/dataset-verse19test.zip"] = b""
    zips.faults["dataset-verse19test.zip"].append("404")
    assert get_zips(zips, tmp_path / "data", split="test") == 1
    assert "/dataset-verse19test.zip: expected a file or a page, found HTTP 404." in capsys.readouterr().err
    assert tree(tmp_path / "data") == TEST_20


def test_verify_repairs_a_file_of_an_archive(zips, tmp_path):
    get_zips(zips, tmp_path / "data", subset="20", split="test")
    path = sorted(TEST_20)[-1]
    (tmp_path / "data" / path).write_bytes(b"*" * len(TEST_20[path]))
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 0
    assert tree(tmp_path / "data") != TEST_20
    assert get_zips(zips, tmp_path / "data", subset="20", split="test", verify=True) == 0
    assert tree(tmp_path / "data") == TEST_20


def test_verify_repairs_a_file_of_an_archive_from_another_address(zips, tmp_path):
    get_zips(zips, tmp_path / "data", subset="20", split="test")
    path = sorted(TEST_20)[-1]
    (tmp_path / "data" / path).write_bytes(b"*" * len(TEST_20[path]))
    zips.nodes["mirror"] = zips.nodes.pop("zips")
    zips.log.clear()
    settings = DataSettings(
        source="zip", data_dir=tmp_path / "data", zip_url=f"{zips.url}/storage/mirror", verify=True
    )
    assert get_data(settings, sources={"zip": partial(from_zips, patience=QUICK)}) == 0
    assert tree(tmp_path / "data") == TEST_20
    # The other five archives cannot hold a file of dataset-03test.
    assert [entry[2] for entry in zips.requests("storage")] == [NAME_20, NAME_20]


def test_two_members_that_differ_for_one_place_are_bad_every_time(zips, tmp_path, capsys):
    first = sorted(TEST_20)[0]
    zips.nodes["zips"][f"/{NAME_20}"] = archive({**TEST_20, f"copy/{first}": b"another"})
    for _ in range(2):
        assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 1
        name = first.split("/")[-1]
        assert f"{NAME_20}: expected one {name}, found another at copy/{first}." in capsys.readouterr().err
        assert tree(tmp_path / "data") == {path: TEST_20[path] for path in TEST_20 if path != first}


def test_verify_looks_at_what_is_asked_for(server, tmp_path, capsys):
    get(server, tmp_path / "data")
    capsys.readouterr()
    assert get(server, tmp_path / "data", verify=True, subset="19", split="training") == 0
    assert "verified: 3 files, 0 wrong or missing" in capsys.readouterr().out


def test_room_for_archives_counts_what_they_unpack_to(zips, tmp_path, capsys, monkeypatch):
    size = len(zips.nodes["zips"][f"/{NAME_20}"])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage._replace(free=2 * size - 1))
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 1
    assert f"expected room for {2 * size:,} bytes (files 0, archives {size:,}, about {size:,} unpacked)" in (
        capsys.readouterr().err
    )


def test_a_file_that_the_user_changed_is_not_fetched_again_unasked(server, tmp_path, capsys):
    get(server, tmp_path / "data", subset="19")
    (tmp_path / "data" / CT_PATH).write_bytes(b"corrected by hand")
    server.log.clear()
    assert get(server, tmp_path / "data", subset="19") == 1
    assert f"{CT_PATH}: expected what an earlier run put there" in capsys.readouterr().err
    assert (tmp_path / "data" / CT_PATH).read_bytes() == b"corrected by hand" and fetched(server) == []
    assert get(server, tmp_path / "data", subset="19", replace_changed=True) == 0
    assert (tmp_path / "data" / CT_PATH).read_bytes() == EXPECTED[CT_PATH]


def test_a_file_of_an_archive_that_the_user_changed_stays(zips, tmp_path, capsys):
    get_zips(zips, tmp_path / "data", subset="20", split="test")
    path = sorted(TEST_20)[-1]
    (tmp_path / "data" / path).write_bytes(b"corrected by hand")
    zips.log.clear()
    assert get_zips(zips, tmp_path / "data", subset="20", split="test") == 1
    assert f"{path}: expected what an earlier run put there" in capsys.readouterr().err
    assert zips.requests("storage") == []
    assert tree(tmp_path / "data") == {**TEST_20, path: b"corrected by hand"}
    zips.nodes["mirror"] = {f"/{NAME_20}": archive({**TEST_20, path: TEST_20[path][::-1]})}
    assert get_zips(zips, tmp_path / "data", folder="mirror", subset="20", split="test") == 1
    assert tree(tmp_path / "data") == {**TEST_20, path: b"corrected by hand"}
    get_zips(zips, tmp_path / "data", subset="20", split="test", replace_changed=True)
    assert tree(tmp_path / "data") == TEST_20


def test_an_archive_from_a_server_that_unpacks_to_too_much_is_refused(zips, tmp_path, capsys):
    zips.nodes["zips"][f"/{NAME_20}"] = archive(
        {path: bytes(400_000) for path in TEST_20}, method=zipfile.ZIP_DEFLATED
    )
    options = {"subset": "20", "split": "test"}
    assert get_zips(zips, tmp_path / "data", **options, max_unpacked_gigabytes=0.001) == 1
    assert f"{NAME_20}: expected at most 0.001 GB unpacked, found 0.0012 GB in" in capsys.readouterr().err
    assert tree(tmp_path / "data") == {}
    assert get_zips(zips, tmp_path / "data", **options) == 0


@pytest.mark.parametrize("kind", ["symbolic link", "hard link"])
def test_a_link_at_the_name_of_a_part_is_not_followed(server, tmp_path, kind):
    """Its name can be foreseen, and its note too: what the link leads to must stay as it is."""
    mine = tmp_path / "mine"
    mine.write_bytes(noise(1)[: LARGE // 2])
    server.faults[CT].extend(["drop", "404"])
    assert get(server, tmp_path / "data", subset="19") == 1
    part = tmp_path / "data" / CT_PATH.replace(CT, f".{CT}.part")
    part.unlink()
    (part.symlink_to if kind == "symbolic link" else part.hardlink_to)(mine)
    assert get(server, tmp_path / "data", subset="19") == 0
    assert mine.read_bytes() == noise(1)[: LARGE // 2]
    assert (tmp_path / "data" / CT_PATH).read_bytes() == EXPECTED[CT_PATH]
    assert not (tmp_path / "data" / CT_PATH).is_symlink()
