"""The lowest version of every requirement, as `make test-oldest` asks for them."""

import re

from tests.oldest import PROJECT, REQUIREMENTS, TESTS, lowest_versions, not_lowest


def test_every_requirement_has_a_lowest_version():
    lines = [line for name in REQUIREMENTS for line in (PROJECT / name).read_text().splitlines()]
    names = [re.match(r"[\w.-]+", line)[0] for line in lines if line and line[0] not in "#-"]
    assert sorted(lowest_versions()) == sorted(names) and len(names) > 20
    assert lowest_versions()["surface-distance"] == "0.1"


def test_a_version_that_is_not_the_lowest_is_named():
    lowest = lowest_versions()
    installed = {**lowest, "numpy": "2.4.1", "keras": f"{lowest['keras']}.0"}
    assert not_lowest(installed.get) == [
        f"numpy: expected {lowest['numpy']}, the lowest that is allowed, found 2.4.1."
    ]


def test_the_tests_that_run_under_old_versions_are_there():
    assert all((PROJECT / name).exists() for name in TESTS)
