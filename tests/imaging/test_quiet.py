"""Remarks of libraries are kept off the terminal in the thread that asks for it, and nowhere else."""

import logging
import threading
import warnings

import numpy as np
import pytest
from nibabel.imageglobals import logger

from utils.imaging import dicom_headers
from utils.imaging.quiet import silent

SECONDS = 30


def run_overlapping(first, second):
    """Enter `first`, then `second` in another thread, leave `first`, then leave `second`."""
    entered, left = threading.Event(), threading.Event()

    def other():
        with second:
            entered.set()
            left.wait(SECONDS)

    thread = threading.Thread(target=other)
    with first:
        thread.start()
        entered.wait(1)  # an implementation in which they take turns enters later
    left.set()
    thread.join(SECONDS)
    assert not thread.is_alive()


def is_heard() -> bool:
    """Whether a warning of this moment reaches whoever listens, by the filters that are in force."""
    heard = []
    before = warnings.showwarning
    warnings.showwarning = lambda *about, **more: heard.append(about)
    try:
        warnings.warn("a remark of a test", UserWarning, stacklevel=1)
    finally:
        warnings.showwarning = before
    return bool(heard)


@pytest.mark.parametrize("stranger", ["first", "second", "both silent"])
def test_threads_that_overlap_leave_warnings_as_they_were(stranger):
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("always")
        mine, other = silent(), silent() if stranger == "both silent" else warnings.catch_warnings()
        run_overlapping(*((other, mine) if stranger == "first" else (mine, other)))
        assert is_heard() and not logger.disabled


def test_a_dicom_header_read_meanwhile_leaves_warnings_as_they_were(tmp_path, monkeypatch):
    # The second thread is inside pydicom while the first one leaves its silence.
    import pydicom

    inside, go_on = threading.Event(), threading.Event()

    def dcmread(*arguments, **options):
        inside.set()
        go_on.wait(SECONDS)
        warnings.warn("breaks the standard", UserWarning, stacklevel=1)
        raise OSError("broken")

    monkeypatch.setattr(pydicom, "dcmread", dcmread)
    (tmp_path / "a.dcm").write_bytes(b"x")
    refused = []

    def read():
        try:
            dicom_headers.read_headers(tmp_path / "a.dcm")
        except ValueError as error:
            refused.append(str(error))

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        thread = threading.Thread(target=read)
        with silent():
            thread.start()
            inside.wait(1)
        go_on.set()
        thread.join(SECONDS)
        assert "found a broken one (broken)" in refused[0]
        assert not heard
        assert is_heard()


def test_silence_is_for_warnings_numbers_and_nibabel_in_its_own_thread_alone():
    def remark(text):
        warnings.warn(text, UserWarning, stacklevel=1)
        logger.warning(text)

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            with silent():
                remark("here")
                assert np.isnan(np.float32(np.inf) - np.float32(np.inf))
                other = threading.Thread(
                    target=lambda: (
                        warnings.warn("there", UserWarning, stacklevel=1),
                        logger.warning("there"),
                    )
                )
                other.start()
                other.join(SECONDS)
            logger.warning("after")
        assert [str(one.message) for one in heard] == ["there"]
        assert said == ["there", "after"]
    finally:
        logger.removeHandler(handler)
