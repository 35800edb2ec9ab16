"""Numbers of scans and their distribution over a folder."""

from __future__ import annotations

from utils.prediction.report_cases import ReportCase
from utils.prediction.report_html import html_of
from utils.prediction.report_measures import columns_of, distributions, histogram, place_in, quantity_cells


def case(key, *volumes):
    rows = [
        {"name": str(n), "numbering": "count", "volume_mm3": v, "mean_hu": ""} for n, v in enumerate(volumes)
    ]
    return ReportCase(key, tuple(rows))


def test_values_are_counted_in_bars_of_one_width():
    assert histogram([0, 1, 2, 10], bars=5) == [2, 1, 0, 0, 1]
    assert histogram([3, 3], bars=4) == [0, 0, 2, 0]


def test_a_place_is_a_share_of_the_range():
    assert [place_in(value, [10, 20, 50]) for value in (10, 20, 50)] == [0, 0.25, 1]
    assert place_in(3, [3, 3]) == 0.5


def test_a_distribution_is_drawn_with_its_ends_and_its_median():
    columns = columns_of([case("a", "1000"), case("b", "3000", "5000"), case("c", "8000"), case("d")])
    (figure,) = distributions(columns)
    text = html_of(figure)
    assert "Volume, cm³ of 3 scans: 1.0 to 8.0, median 4.0" in text
    # The first of 24 bars 5 wide in a frame of 120 x 24; all three are of one height.
    assert 'd="M0 24V0h5V24zM50 24V0h5V24zM115 24V0h5V24z"' in text
    marks = [html_of(quantity_cells(columns, place)[0]) for place in range(4)]
    assert 'd="M0 0V24"' in marks[0] and 'd="M51.43 0V24"' in marks[1] and 'd="M120 0V24"' in marks[2]
    assert "<svg" not in marks[3] and "–" in marks[3]


def test_nothing_known_draws_nothing():
    assert distributions(columns_of([case("a")])) is None
    assert distributions(columns_of([])) is None
