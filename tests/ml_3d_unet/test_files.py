"""Files that appear whole or not at all, and what a killed process leaves behind."""

import errno
import os
import stat

import pytest

from ML_3D_Unet.utils import files
from ML_3D_Unet.utils.files import check_room, remove_leftovers, written_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_the_end_under_a_name_that_is_hidden_before(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with written_whole(path, suffix=".csv") as temporary:
        assert temporary.parent == path.parent and temporary.read_bytes() == b""
        assert temporary.name.startswith(".table.csv.") and temporary.name.endswith(".part.csv")
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and names(path.parent) == ["table.csv"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(KeyError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and names(tmp_path) == ["table.csv"]


def test_every_temporary_name_is_another(tmp_path):
    with written_whole(tmp_path / "a") as first, written_whole(tmp_path / "a") as second:
        assert first != second and first.exists() and second.exists()


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0" * 2 * count)
    target, link = tmp_path / "target", tmp_path / f".a.{'0' * 16}.part"
    target.write_text("mine")
    link.symlink_to(target)
    with pytest.raises(FileExistsError), written_whole(tmp_path / "a"):
        pass
    assert target.read_text() == "mine" and names(tmp_path) == [link.name, "target"]


def test_leftovers_of_a_file_are_removed_and_nothing_else(tmp_path):
    path = tmp_path / "best.keras"
    kept = ["best.keras", ".best.keras.note", ".last.keras.0123456789abcdef.part"]
    for name in [*kept, ".best.keras.0123456789abcdef.part", ".best.keras.0123456789abcdef.part.keras"]:
        (tmp_path / name).touch()
    remove_leftovers(path)
    assert names(tmp_path) == sorted(kept)


def test_a_full_disk_is_named_with_the_file(tmp_path):
    def fill():
        with written_whole(tmp_path / "a.h5"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.h5'$"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room")
def test_a_file_has_room_or_not_before_it_is_written(tmp_path):
    with written_whole(tmp_path / "a.h5") as temporary:
        check_room(temporary, 1000)
        assert temporary.stat().st_size == 0
        temporary.write_text("whole")
    with pytest.raises(OSError), written_whole(tmp_path / "b.h5") as temporary:
        check_room(temporary, 2**60)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
