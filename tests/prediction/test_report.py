"""The page of a prediction folder: what its HTML holds, whatever lies in the folder."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from tests.localisation.label_problems import votes_for
from tests.prediction.report_cases import WRITTEN, put_case, put_column, put_measures, rows_of
from utils.files import sha256_of
from utils.localisation.evidence import Sacrum
from utils.prediction.derivatives import COLUMN_SUFFIX, MASK_SUFFIX, SNAPSHOT_SUFFIX, TABLE_SUFFIX
from utils.prediction.measured import ANGLES_SUFFIX, MEASURES_SUFFIX
from utils.prediction.papers import ScanPapers
from utils.prediction.quality import QUALITY_SUFFIX, Remark
from utils.prediction.report import report_page, write_scan_report
from utils.prediction.report_cases import read_cases

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The rows of the page by scan, each cell as (value, text), and all tags with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.rows, self.tags, self.open, self.raw, self.heading = [], [], [], {}, None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr" and "data-text" in attributes:
            self.rows.append({"kinds": attributes["data-kinds"], "searched": attributes["data-text"]})
        elif tag == "td" and "data-heading" in attributes:
            self.heading = attributes["data-heading"]
            self.rows[-1][self.heading] = (attributes["data-value"], "")
        elif tag == "td" and attributes.get("class") == "details":
            self.heading = "Each"
            self.rows[-1]["Each"] = ("", "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            self.raw[self.open[-1]] = data
        elif self.rows and "td" in self.open and self.heading in self.rows[-1]:
            value, text = self.rows[-1][self.heading]
            self.rows[-1][self.heading] = (value, " ".join(f"{text} {data}".split()))

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attributes[name] for each, attributes in self.tags if each == tag and name in attributes]


def page_of(output: Path) -> Page:
    return Page(write_scan_report(output).read_text(encoding="utf-8"))


def test_a_row_shows_a_case(tmp_path):
    rows = rows_of(
        *(("T12", "L1", "L2"), "anatomical"),
        volume_mm3=(10_000, 12_340, 14_000),
        mean_hu=(-20.4, 150, 201.6),
        label_probability=(0.999, 0.976, 0.62),
    )
    put_case(
        *(tmp_path, "sub-a_dir-ax", rows),
        anchor="sacrum below",
        sequence_probability=0.87,
        second_names=("T11", "T12", "L1"),
        second_probability=0.004,
        seconds=12.34,
        network_calls=9,
        extra=(Remark("gap", "L1", "1.2 cm³ removed"),),
    )
    page = page_of(tmp_path)
    (row,) = page.rows
    assert row["Scan"] == (
        "sub-a_dir-ax",
        "sub-a_dir-ax level names (C1 to L6, T13) anchor: sacrum below 12.3 s, 9 network calls "
        "2026-01-02 03:04 UTC",
    )
    assert row["Count"] == ("3", "3")
    # Sorted by the rank of the top-most level: 7 cervical and 12 thoracic ones.
    assert row["Labels"] == ("19", "T12 >99 % L1 98 % L2 62 % Runner-up <1 %: T11 T12 L1")
    assert row["Sequence"] == ("0.87", "87 %")
    assert row["Doubt"] == ("1.63", "1.63 gap 1.00 low probability 0.50 labels 0.13")
    assert row["Volume, cm³"] == ("12.34", "12.3 10.0 to 14.0")
    assert row["Mean HU"] == ("150.0", "150 −20 to 202")
    assert row["Warnings"] == (
        "2",
        "gap L1: 1.2 cm³ removed low probability L2: label 0.62",
    )
    assert row["Each"][1].endswith("L2 14.0 202 0.90 0.62 3 low probability: label 0.62")
    assert row["kinds"] == "gap|low probability"
    assert page.attributes("option", "value") == ["", "gap", "low probability"]
    assert [attributes.get("title") for tag, attributes in page.tags if tag == "li"][-5:-2] == [
        None,
        "gap: 1.2 cm³ removed",
        "low probability: label 0.62",
    ]


@pytest.mark.parametrize("names", [("1", "2"), ()], ids=["with vertebrae", "without a spine"])
def test_what_was_read_of_a_scan_is_folded_below_its_row(tmp_path, names):
    papers = ScanPapers("NRRD", (9, 8, 7), (0.5, 0.5, 1.25), "LPS", 3.21, "values <odd>", 0.1)
    put_case(tmp_path, "sub-a", rows_of(names), papers=papers)
    put_case(tmp_path, "sub-old", rows_of(("1",)))
    row, old = page_of(tmp_path).rows
    assert row["Each"][1].endswith(
        "What was read Form NRRD Voxels 9 × 8 × 7 of 0.5 × 0.5 × 1.25 mm Axes LPS, 3.2° oblique "
        "Numbers values <odd> Padding 10 % of the voxels at or under −1024 HU"
    )
    assert ("Each vertebra" in row["Each"][1]) == bool(names)
    assert "What was read" not in old["Each"][1]


def test_a_counted_case_has_no_probability_of_labels(tmp_path):
    put_case(tmp_path, "sub-a", rows_of(("1", "2")))
    (row,) = page_of(tmp_path).rows
    assert row["Labels"] == ("", "1 2") and row["Sequence"] == ("", "–")
    assert row["Warnings"] == ("0", "none") and row["kinds"] == ""
    assert "counted from the top" in row["Scan"][1]


def test_many_warnings_of_one_kind_are_named_only(tmp_path):
    put_case(tmp_path, "sub-a", rows_of(("1", "2", "3"), converged=(0, 0, 0)))
    (row,) = page_of(tmp_path).rows
    assert row["Warnings"] == ("3", "no convergence 1, 2, 3")
    assert "the walk did not come to rest in 3 steps" in row["searched"]


def test_the_head_sums_up_the_folder(tmp_path):
    put_case(tmp_path, "sub-a", rows_of(("1", "2")))
    put_case(tmp_path, "sub-b", [], written=WRITTEN + 3600)
    page = write_scan_report(tmp_path).read_text(encoding="utf-8")
    facts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    assert facts == [
        ("Scans", "2"),
        ("With warnings", "1"),
        ("Newest prediction", "2026-01-02 04:04 UTC"),
    ]
    assert "Not for clinical use" in page and "says nothing about its level" in page


def test_a_folder_without_cases_gives_an_empty_page(tmp_path):
    page = page_of(tmp_path / "new")
    assert page.rows == [] and page.attributes("option", "value") == [""]
    assert "<dd>0</dd>" in report_page([]) and "<dd>–</dd>" in report_page([])


def test_scans_stand_in_the_order_of_their_numbers(tmp_path):
    for key in ("sub-10", "sub-b", "sub-9_dir-ax", "sub-9", "sub-010"):
        put_case(tmp_path, key, rows_of(("1",)), picture=False)
    found = [row["Scan"][0] for row in page_of(tmp_path).rows]
    assert found == ["sub-9", "sub-9_dir-ax", "sub-010", "sub-10", "sub-b"]


def test_older_predictions_are_judged_by_their_table(tmp_path):
    rows = rows_of(("1", "2", "3", "4", "5"), volume_mm3=(1e4, 1e4, 3e4, 1e4, 1e4))
    put_case(tmp_path, "sub-old", rows, quality=False)
    (row,) = page_of(tmp_path).rows
    assert row["kinds"] == "odd volume"
    assert "network calls" not in row["Scan"][1]


HOSTILE = "sub-a_desc-<img src=x onerror=alert(1)> & \"quoted\" 'so' #1?100%"


def test_names_and_texts_are_escaped_and_links_quoted(tmp_path):
    rows = rows_of(("</td><script>1</script>", "2"))
    put_case(tmp_path, HOSTILE, rows, extra=(Remark("other", None, "<b>bold</b> & $page"),))
    page = page_of(tmp_path)
    (row,) = page.rows
    assert row["Scan"][0] == HOSTILE and row["Scan"][1].startswith(HOSTILE)
    assert row["Labels"] == ("", "</td><script>1</script> 2")
    assert row["Warnings"][1] == "other <b>bold</b> & $page"
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "b" not in [tag for tag, _ in page.tags]
    (address,) = page.attributes("a", "href")
    assert re.fullmatch(r"[A-Za-z0-9_.%/~-]+", address)
    assert (tmp_path / unquote(address)).is_file()
    # Labels that are no levels cannot be corrected.
    assert page.attributes("tr", "data-key") == [HOSTILE] and page.attributes("tr", "data-names") == [""]


@pytest.mark.skipif(os.name != "posix", reason="file names are text on this system")
def test_a_name_that_is_no_text_is_written_and_linked(tmp_path):
    key = os.fsdecode(b"sub-\xff")
    try:
        put_case(tmp_path, key, rows_of(("1",)), picture=False, quality=False)
        (tmp_path / "derivatives" / key / f"{key}_seg-vert_snp.png").touch()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes text only")
    assert page_of(tmp_path).attributes("a", "href") == ["derivatives/sub-%FF/sub-%FF_seg-vert_snp.png"]


@pytest.mark.parametrize(
    ("suffix", "content", "said"),
    [
        (TABLE_SUFFIX, None, "sub-bad_vertebrae.csv: expected the table of a case, found: No such file"),
        (TABLE_SUFFIX, b"", "columns name, numbering, volume_mm3, mean_hu, found none"),
        (TABLE_SUFFIX, b"\xff\xfe\x00", "expected the table of a case, found: 'utf-8' codec"),
        (TABLE_SUFFIX, b"name,numbering,volume_mm3,mean_hu\n1,count\n", "found a row that is cut off"),
        (QUALITY_SUFFIX, b"{", "sub-bad_quality.json: expected what is known about a case, found"),
        (COLUMN_SUFFIX, b"[]", "sub-bad_column.json: expected what is known of a column, found"),
        (MEASURES_SUFFIX, b"label\n1\n", "sub-bad_measurements.csv: expected a table with the columns name"),
        (ANGLES_SUFFIX, b"[1]", "sub-bad_angles.json: expected the angles of a spine, found [1]"),
        (SNAPSHOT_SUFFIX, b"no picture", "sub-bad_seg-vert_snp.png: expected a picture, found another file"),
        (MASK_SUFFIX, None, "sub-bad_seg-vert_msk.nii.gz is not there: the prediction was not finished"),
    ],
)
def test_a_bad_file_becomes_a_row_that_says_so(tmp_path, suffix, content, said):
    folder = put_case(tmp_path, "sub-bad", rows_of(("1", "2")))
    put_case(tmp_path, "sub-good", rows_of(("1", "2", "3")))
    bad = folder / f"sub-bad{suffix}"
    bad.unlink() if content is None else bad.write_bytes(content)
    page = page_of(tmp_path)
    first, second = page.rows
    assert first["Doubt"][0] == "3.0" and second["Doubt"][0] == "0"
    assert first["kinds"] == "unreadable" and said in first["Warnings"][1]
    assert str(tmp_path) not in first["Warnings"][1]
    # What can still be read is shown; what cannot is not told as 0.
    assert first["Count"] == (("", "–") if suffix == TABLE_SUFFIX else ("2", "2"))
    assert second["Count"] == ("3", "3") and second["kinds"] == ""
    assert page.attributes("option", "value") == ["", "unreadable"]


def test_a_case_without_a_picture_says_so(tmp_path):
    put_case(tmp_path, "sub-a", rows_of(("1",)), picture=False)
    page = write_scan_report(tmp_path).read_text(encoding="utf-8")
    assert '<span class="no-picture">no picture</span>' in page and "<a class=" not in page


def test_temporary_files_and_lone_pictures_are_no_cases(tmp_path):
    folder = put_case(tmp_path, "sub-a", rows_of(("1",)))
    (folder / ".sub-b_vertebrae.csv").touch()
    (folder / "sub-c_seg-vert_snp.png").touch()
    assert [case.key for case in read_cases(tmp_path)] == ["sub-a"]


def test_the_page_asks_nothing_of_another_host_and_its_policy_forbids_it(tmp_path):
    put_case(tmp_path, "sub-a", rows_of(("1",)))
    page = page_of(tmp_path)
    places = page.attributes("img", "src") + page.attributes("a", "href") + page.attributes("link", "href")
    assert places[0].startswith("data:image/webp;base64,")
    assert places[1:] == ["derivatives/sub-a/sub-a_seg-vert_snp.png", "data:,"]
    assert not re.search(r"https?:|@import|url\(", (tmp_path / "report.html").read_text(encoding="utf-8"))
    (policy,) = (
        attributes["content"]
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in page.raw.items()
    }
    assert policy.split("; ")[:4] == [
        "default-src 'none'",
        "img-src 'self' file: data:",
        f"style-src 'sha256-{hashes['style']}'",
        f"script-src 'sha256-{hashes['script']}'",
    ]


def test_the_page_depends_on_the_cases_only(tmp_path):
    for name, keys in (("x", ("sub-a", "sub-b")), ("y", ("sub-b", "sub-a"))):
        for key in keys:
            put_case(tmp_path / name, key, rows_of(("1", "2")))
    first, second = (write_scan_report(tmp_path / name).read_bytes() for name in ("x", "y"))
    assert first == second == write_scan_report(tmp_path / "x").read_bytes()
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["derivatives", "report.html"]


def test_what_was_read_that_a_count_can_hold_on_to_is_named(tmp_path):
    levels = ("T11", "T12", "L1", "L2")
    put_case(tmp_path, "sub-a", rows_of(("T11", "T12", "L2"), "anatomical"), anchor="ribs")
    ribs = np.array([0.99, 0.9, 0.2, 0.0])
    votes = votes_for(levels, rib_probability=ribs, sacrum=Sacrum(2, 0.61))
    put_column(tmp_path, "sub-a", votes, ("T11", "T12", None, "L2"))
    page = page_of(tmp_path)
    said = page.rows[0]["Scan"][1]
    assert "anchor: ribs read: last rib (T12) 72 %, sacrum below (no outline) 61 %" in said
    # As --fix counts them: the vertebrae that have a label in the mask.
    assert page.attributes("tr", "data-names") == ["T11 T12 L2"]


def test_a_row_holds_what_a_correction_needs(tmp_path):
    folder = put_case(tmp_path, "sub-a", rows_of(("1", "2")))
    mask = folder / "sub-a_seg-vert_msk.nii.gz"
    mask.write_bytes(b"a mask")
    page = page_of(tmp_path)
    assert page.attributes("tr", "data-mask") == [sha256_of(mask)]
    assert page.attributes("tr", "data-names") == ["1 2"]
    assert page.attributes("table", "data-levels")[0].split()[18:21] == ["T12", "T13", "L1"]
    mask.unlink()
    assert page_of(tmp_path).attributes("tr", "data-names") == [""]


def test_measures_stand_in_the_table_and_in_each_vertebra(tmp_path):
    for key, angle in (("sub-a", 40.0), ("sub-b", 20.5)):
        put_case(tmp_path, key, rows_of(("T12", "L1"), "anatomical"))
        measured = {"core_hu": 150.4, "anterior_to_posterior": 0.91, "middle_to_posterior": 0.95}
        low = {**measured, "core_hu": 120, "anterior_to_posterior": 0.734, "hint": "a hint"}
        rows = [{"name": "T12", **low, "why": ""}, {"name": "L1", **measured, "hint": "", "why": "none"}]
        put_measures(tmp_path, key, rows, {"cobb_deg": angle, "cobb_from": "T12", "cobb_to": "L1"})
    put_case(tmp_path, "sub-c", rows_of(("T12", "L1"), "anatomical"))
    page = page_of(tmp_path)
    first, second, third = page.rows
    assert first["Core HU"] == ("135.2", "135 120 to 150")
    assert first["Lowest ratio"] == ("0.734", "0.73 T12")
    assert first["Cobb, °"] == ("40.0", "40.0 T12 to L1") and second["Cobb, °"][0] == "20.5"
    assert first["Kyphosis, °"] == ("", "–") and third["Cobb, °"] == ("", "–")
    assert "Ant., mm Mid., mm Post., mm A/P M/P Core HU Remarks" in first["Each"][1]
    assert (
        first["Each"][1].endswith("– – – 0.91 0.95 150 none") and "0.73 0.95 120 a hint" in first["Each"][1]
    )
    # Each distribution is drawn once; the rows show it again, with their own place in it.
    shown = [attributes for tag, attributes in page.tags if tag == "use"]
    assert [use["href"] for use in shown].count("#spread-cobb") == 2
    assert page.attributes("path", "id").count("spread-cobb") == 1
    assert "spread-kyphosis" not in page.attributes("path", "id")
    assert page.attributes("svg", "aria-label")[4] == "Cobb, ° of 2 scans: 20.5 to 40.0, median 30.2"


def test_a_folder_without_measures_has_no_columns_for_them(tmp_path):
    put_case(tmp_path, "sub-a", rows_of(("1",)))
    page = page_of(tmp_path)
    assert "Core HU" not in page.rows[0]
    heads = [attributes["class"] for tag, attributes in page.tags if tag == "th" and "class" in attributes]
    assert heads[-2:] == ["measure volume", "measure hu"]
