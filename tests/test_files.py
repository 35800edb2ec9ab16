"""Files appear whole or not at all, whatever lies beside them; hashes are those of the standard library."""

import errno
import hashlib
import os
import re
import stat
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from utils import files
from utils.files import (
    flush_to_disk,
    hash_file,
    is_left_over,
    printable,
    read_json,
    read_table,
    remove_left_overs,
    sha256_of,
    write_text_whole,
    written_whole,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with written_whole(path) as temporary:
        temporary.write_text("a,b\n")
        assert temporary.parent == path.parent and names_in(path.parent) == [temporary.name]
    assert names_in(path.parent) == ["table.csv"] and path.read_text() == "a,b\n"


def test_the_temporary_name_is_hidden_and_ends_as_asked_for(tmp_path):
    with written_whole(tmp_path / "ct.nii.gz", suffix=".nii.gz") as temporary:
        assert temporary.name.startswith(".ct.nii.gz.") and temporary.name.endswith(".part.nii.gz")
        assert is_left_over(temporary.name)


@pytest.mark.parametrize(
    "name", ["ct.nii", ".ct.nii.part", ".ct.nii.part.json", ".ct.nii.0badcafe", ".0badcafe.part"]
)
def test_other_names_are_no_left_overs(name):
    assert not is_left_over(name)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail():
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names_in(tmp_path) == ["table.csv"] and path.read_text() == "old"


def test_what_lies_at_the_temporary_name_is_neither_followed_nor_replaced(tmp_path, monkeypatch):
    """A link to a file, a link to nothing, and a file: the fourth name is free."""
    other, nothing = tmp_path / "other", tmp_path / "nothing"
    other.write_text("of somebody else")
    drawn = ["00000000", "00000001", "00000002", "00000003"]
    owner = f"{files._place()}-{os.getpid()}"
    planted = [tmp_path / f".table.csv.{owner}.{letters}.part" for letters in drawn[:3]]
    planted[0].symlink_to(other)
    planted[1].symlink_to(nothing)
    planted[2].write_text("of a writer at work")
    left = iter(drawn)
    monkeypatch.setattr(files, "secrets", SimpleNamespace(token_hex=lambda count: next(left)))
    with written_whole(tmp_path / "table.csv") as temporary:
        assert temporary.name == f".table.csv.{owner}.00000003.part"
        temporary.write_text("new")
    assert (tmp_path / "table.csv").read_text() == "new" and not (tmp_path / "table.csv").is_symlink()
    assert other.read_text() == "of somebody else" and not nothing.exists()
    assert [path.is_symlink() for path in planted] == [True, True, False]
    assert planted[2].read_text() == "of a writer at work"


def test_a_link_at_the_files_own_name_is_replaced_and_not_written_through(tmp_path):
    other = tmp_path / "other"
    other.write_text("of somebody else")
    (tmp_path / "table.csv").symlink_to(other)
    with written_whole(tmp_path / "table.csv") as temporary:
        temporary.write_text("new")
    assert other.read_text() == "of somebody else"
    assert (tmp_path / "table.csv").read_text() == "new" and not (tmp_path / "table.csv").is_symlink()


def test_of_two_writers_at_once_the_last_one_to_end_wins_whole(tmp_path):
    path = tmp_path / "table.csv"
    with written_whole(path) as first:
        with written_whole(path) as second:
            assert first != second
            first.write_text("first")
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and names_in(tmp_path) == ["table.csv"]


def test_writers_in_many_threads_leave_one_whole_file(tmp_path):
    path, contents = tmp_path / "table.csv", [letter * 10_000 for letter in "abcdefgh"]

    def write(content):
        for _ in range(20):
            with written_whole(path) as temporary:
                temporary.write_text(content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents and names_in(tmp_path) == ["table.csv"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_that_open_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        with written_whole(tmp_path / "whole") as temporary:
            temporary.write_text("")
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("whole", "plain")]
    assert modes == [0o666 & ~mask] * 2


@pytest.mark.parametrize("durably", [True, False])
def test_what_must_last_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch, durably):
    flushed = []

    def flush(path):
        flush_to_disk(path)
        flushed.append((path.read_text(), names_in(tmp_path)))

    monkeypatch.setattr(files, "flush_to_disk", flush)
    with written_whole(tmp_path / "manifest.json", durably=durably) as temporary:
        temporary.write_text("{}")
    assert flushed == ([("{}", [temporary.name])] if durably else [])


def number_of_a_process_that_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    return process.pid


def test_what_a_killed_process_left_is_removed_and_what_may_be_written_stays(tmp_path):
    dead, here = number_of_a_process_that_has_ended(), files._place()
    elsewhere = "0" * 8
    stay = (
        f".a.nii.gz.{here}-{os.getpid()}.0badcafe.part.nii.gz",  # its process lives
        f".b.csv.{elsewhere}-{dead}.0badcafe.part",  # on another machine it may
        ".c.csv.0badcafe.part",  # an earlier version did not say which process
        ".d.csv.0123456789abcdef.part",  # not of this writer
        "e.csv.0badcafe.part",
        f".f.{here}-{dead}.part",
    )
    go = (f".a.nii.gz.{here}-{dead}.0badcafe.part.nii.gz", f".b.csv.{here}-{dead}.0badcafe.part")
    old = (f".g.csv.{elsewhere}-{dead}.0badcafe.part", ".h.csv.0badcafe.part")
    for name in (*stay, *go, *old):
        (tmp_path / "sub" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "sub" / name).write_text("half")
    for name in old:
        os.utime(tmp_path / "sub" / name, (time.time() - 25 * 3600,) * 2)
    remove_left_overs(tmp_path)
    assert names_in(tmp_path / "sub") == sorted(stay)
    remove_left_overs(tmp_path / "nowhere")


def test_a_left_over_that_is_a_link_goes_and_what_it_names_stays(tmp_path):
    (tmp_path / "other").write_text("of somebody else")
    owner = f"{files._place()}-{number_of_a_process_that_has_ended()}"
    (tmp_path / f".a.csv.{owner}.0badcafe.part").symlink_to(tmp_path / "other")
    remove_left_overs(tmp_path)
    assert names_in(tmp_path) == ["other"] and (tmp_path / "other").read_text() == "of somebody else"


def test_a_full_disk_is_named_with_the_file(tmp_path):
    def fill():
        with written_whole(tmp_path / "a.csv"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        OSError, match=r"^[^\[]*a\.csv: expected to write it, found: No space left on device\.$"
    ):
        fill()
    assert names_in(tmp_path) == []


def test_a_folder_that_takes_no_file_is_named_with_the_file(tmp_path):
    (tmp_path / "folder").write_text("a file")
    said = r"folder/a\.csv: expected to write it, found: (Not a directory|File exists)\.$"
    with pytest.raises(OSError, match=said), written_whole(tmp_path / "folder" / "a.csv"):
        pass


def test_a_folder_at_the_files_name_is_named_with_it(tmp_path):
    (tmp_path / "a.csv").mkdir()
    said = r"a\.csv: expected to write it, found: Is a directory\.$"
    with pytest.raises(OSError, match=said), written_whole(tmp_path / "a.csv"):
        pass
    assert names_in(tmp_path) == ["a.csv"]


def test_an_error_of_what_is_read_meanwhile_is_left_as_it_is(tmp_path):
    error = ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    def read():
        with written_whole(tmp_path / "a.csv"):
            raise error

    with pytest.raises(ConnectionResetError) as raised:
        read()
    assert raised.value is error


def test_a_table_is_read(tmp_path):
    (tmp_path / "a.csv").write_text("case,label\nä,1\nb,2\n", encoding="utf-8")
    rows = [{"case": "ä", "label": "1"}, {"case": "b", "label": "2"}]
    assert read_table(tmp_path / "a.csv", ("label",)) == rows


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "expected a table, found: No such file or directory."),
        (b"\xff\xfe\x00", "expected a table, found: 'utf-8' codec"),
        (b"label\n" + b"1" * 200_000, "expected a table, found: field larger than field limit"),
        (b"", "expected a table with the columns case, label, found none."),
        (b"PNG\x00\r\n", "expected a table with the columns case, label, found none."),
        (b"case\na\n", "expected a table with the columns label, found none."),
        (b"case,label\na\n", "expected a value in every column, found a row that is cut off."),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, found):
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {found}')}"):
        read_table(path, ("case", "label"))


def test_hashes_are_those_of_the_whole_file_and_every_byte_is_reported(tmp_path):
    content = bytes(range(256)) * 5000  # more than is read at once
    (tmp_path / "file").write_bytes(content)
    reported = []
    assert sha256_of(tmp_path / "file", report_bytes=reported.append) == hashlib.sha256(content).hexdigest()
    assert sum(reported) == len(content) and len(reported) == 2
    hashes = {kind: hashlib.new(kind) for kind in ("md5", "sha256")}
    hash_file(tmp_path / "file", hashes)
    assert hashes["md5"].hexdigest() == hashlib.md5(content).hexdigest()
    assert hashes["sha256"].hexdigest() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "'utf-8' codec can't decode"),
        (b"[" * 9000, "lists or objects nested too deep"),
        (b"[" + b"9" * 5000 + b"]", "Exceeds the limit"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, found):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"found {found}") as error:
        read_json(path, "a table")
    assert str(error.value).startswith(f"{path}: expected a table, ") and "\n" not in str(error.value)
    path.write_bytes('{"é": 1}'.encode())
    assert read_json(path) == {"é": 1}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Wirbelsäule 脊椎 é/ct.nii: found 3 \\ 4.", "Wirbelsäule 脊椎 é/ct.nii: found 3 \\ 4."),
        ("a\x1b]0;title\x07b", "a\\x1b]0;title\\x07b"),
        ("a\nerror: b\r\x85c\u2028d", "a\\nerror: b\\r\\x85c\\u2028d"),
        ("\u202egpj.exe \x9b2J", "\\u202egpj.exe \\x9b2J"),
        ("Latin-1: \udce9", "Latin-1: \\udce9"),
    ],
)
def test_a_line_to_print_holds_nothing_that_a_terminal_obeys(line, expected):
    assert printable(line) == expected
    expected.encode("utf-8")


def test_a_byte_of_a_name_that_is_no_text_is_escaped_in_a_text_file(tmp_path):
    write_text_whole(tmp_path / "a.txt", "Jos\udce9 and José")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "Jos\\udce9 and José"
