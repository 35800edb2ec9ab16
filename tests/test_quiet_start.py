"""TensorFlow's start-up lines stay off the terminal, and are kept."""

import gc
import os
import subprocess
import sys

import pytest

from utils import quiet_start
from utils.execution import PROJECT_DIR


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    how = {"cwd": PROJECT_DIR, "env": {**known, **environment}, "capture_output": True, "text": True}
    return subprocess.run([sys.executable, "-c", code], **how, check=False)


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setattr(quiet_start, "LOG", tmp_path / "log")
    return tmp_path / "log"


@pytest.mark.parametrize("package", ["tensorflow", "keras"])
def test_the_import_writes_nothing_to_the_terminal(package, tmp_path):
    compiled = "tf.function(lambda x: 2 * x, jit_compile=True)(tf.ones(3)).numpy()"
    code = f"import utils, {package}; import tensorflow as tf; print({compiled})"
    ran = run(code, TMPDIR=str(tmp_path))
    assert (ran.stdout, ran.stderr, ran.returncode) == ("[2. 2. 2.]\n", "", 0)
    (kept,) = tmp_path.glob("vertebrae-tensorflow-*.log")
    assert kept.stat().st_mode & 0o777 == 0o600


def test_native_lines_go_into_the_log_and_later_ones_do_not(log, capfd):
    with quiet_start.native_lines_in_log():
        os.write(2, b"from native code\n")
        print("from Python", file=sys.stderr)
    os.write(2, b"later\n")
    assert "later" in capfd.readouterr().err
    assert b"from native code\n" in log.read_bytes()


def test_no_link_is_followed(log, tmp_path, capfd):
    (tmp_path / "mine").write_text("mine")
    log.symlink_to(tmp_path / "mine")
    with quiet_start.native_lines_in_log():
        os.write(2, b"said\n")
    assert capfd.readouterr().err == "said\n" and (tmp_path / "mine").read_text() == "mine"


def test_a_tensorflow_that_cannot_be_loaded_names_the_log(tmp_path):
    broken = tmp_path / "tensorflow"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('no libcudart')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import utils, tensorflow"
    ran = run(code)
    assert (
        ran.returncode == 1 and f"no libcudart (what TensorFlow said before: {quiet_start.LOG})" in ran.stderr
    )


def test_what_an_import_makes_is_never_looked_through_again():
    counts = "gc.isenabled(), gc.get_freeze_count() > 100_000, gc.get_stats()[2]['collections'] - before < 3"
    code = f"import gc, utils; before = gc.get_stats()[2]['collections']; import keras; print([{counts}])"
    assert run(code).stdout == "[True, True, True]\n"


def test_a_collector_that_rests_already_is_left_alone():
    frozen = gc.get_freeze_count()
    gc.disable()
    try:
        with quiet_start.without_collections():
            pass
        assert not gc.isenabled() and gc.get_freeze_count() == frozen
    finally:
        gc.enable()


def test_the_collector_goes_on_where_an_import_fails():
    try:
        with pytest.raises(ImportError, match="broken"), quiet_start.without_collections():
            assert not gc.isenabled()
            raise ImportError("broken")
        assert gc.isenabled()
    finally:
        gc.unfreeze()
