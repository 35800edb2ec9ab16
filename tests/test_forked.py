"""Forked processes are as those from a shell, but for what they need not import."""

import json
import signal

import pytest

from tests import forked

#: Says what a process sees of its surroundings, and ends with status 3.
CODE = """
import json, os, sys
known = sorted({name.partition(".")[0] for name in sys.modules})
seen = {"arguments": sys.argv[1:], "folder": os.getcwd(), "word": os.environ["WORD"], "path": sys.path}
print(json.dumps({**seen, "name": __name__, "known": known}))
print("to be read", file=sys.stderr)
sys.exit(3)
"""


@pytest.mark.parametrize("how", ["script", "-m", "-c"])
def test_a_process_has_its_own_arguments_folder_environment_output_and_status(tmp_path, how):
    (tmp_path / "told.py").write_text(CODE)
    first = {"script": ("told.py",), "-m": ("-m", "told"), "-c": ("-c", CODE)}[how]
    done = forked.run(*first, "one", "two", folder=tmp_path, WORD="said")
    assert (done.returncode, done.stderr) == (3, "to be read\n")
    seen = json.loads(done.stdout)
    assert (seen["arguments"], seen["word"], seen["name"]) == (["one", "two"], "said", "__main__")
    assert seen["folder"] == str(tmp_path.resolve())
    assert seen["path"][0] == ("" if how == "-c" else seen["folder"])
    assert str(forked.PROJECT) not in seen["path"]
    assert "tensorflow" in seen["known"] and not {"utils", "ML_3D_Unet"} & set(seen["known"])


def test_an_error_and_a_signal_are_told_by_the_status():
    raised = forked.run("-c", "raise ValueError('odd')")
    assert raised.returncode == 1 and "ValueError: odd" in raised.stderr
    killed = forked.run("-c", "import os, signal; print(1, flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "1\n")
    assert forked.run("-c", "import time; time.sleep(99)", timeout_s=0.1).returncode == -signal.SIGKILL
