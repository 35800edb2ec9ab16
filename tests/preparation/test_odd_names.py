"""Names that no terminal and no text file takes as they are: bytes that are no text, ESC, line breaks."""

import os

import pytest

from tests.imaging.examples import write_case
from utils.preparation.data_report import report_data
from utils.settings import DataSettings


@pytest.mark.skipif(os.name != "posix", reason="file names are text on this system")
def test_a_report_on_odd_names_is_text_without_control_characters(tmp_path, capsys):
    data_dir = tmp_path / os.fsdecode(b"Jos\xe9")
    write_case(data_dir, "sub-a\x1b[31m")
    write_case(data_dir, "sub-b")["mask"].write_bytes(b"broken")
    for name in (b"l\xf6se.nii.gz", b"x\ny.nii.gz"):
        (data_dir / os.fsdecode(name)).write_bytes(b"no case")
    assert report_data(DataSettings(data_dir=data_dir, report=True, workers=1)) == 1
    printed = capsys.readouterr()
    for escaped in ("Jos\\udce9", "l\\udcf6se.nii.gz", "x\\ny.nii.gz", "sub-a\\x1b[31m"):
        assert escaped in printed.out + printed.err
    assert "\x1b" not in printed.out + printed.err
    page = (data_dir / "report" / "report.md").read_text(encoding="utf-8")
    assert "l\\udcf6se.nii.gz" in page and "x\\ny.nii.gz" in page and "\x1b" not in page
    assert "l\\udcf6se.nii.gz" in (data_dir / "report" / "findings.csv").read_text(encoding="utf-8")
