"""Downloads that are killed or interrupted at any moment, and the same command after that."""

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from tests.download.osf_server import OsfServer
from tests.download.waiting import end_of, wait_until
from utils.download.data_set import get_data
from utils.settings import DataSettings

PROJECT = Path(__file__).resolve().parents[2]
KILLS = 20
#: Bytes a second and connection: most kills fall into the transfer.
SLOW = 1_500_000
# Processes that have loaded the program already: a killed one costs a fork, not an interpreter's start.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["utils.download.data_set"])


def files_of(seed, *, top, subjects, size):
    generator = np.random.default_rng(seed)
    names = ("rawdata/{0}/{0}_ct.nii.gz", "derivatives/{0}/{0}_seg-vert_msk.nii.gz")
    return {
        f"{top}/{name.format(f'sub-verse{seed + number}')}": generator.bytes(size)
        for number in range(subjects)
        for name in names
    }


SIZE_19 = 120_000
OSF_19 = files_of(100, top="dataset-verse19training", subjects=4, size=SIZE_19)
ZIP_19 = files_of(200, top="dataset-verse19test", subjects=6, size=40_000)
ZIP_20 = files_of(500, top="dataset-03test", subjects=6, size=40_000)


def archive(files):
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return packed.getvalue()


@pytest.fixture
def server():
    nodes = {
        "jtfa5": {f"/{path}": content for path, content in OSF_19.items()},
        "zips": {"/dataset-verse19test.zip": archive(ZIP_19), "/dataset-verse20test.zip": archive(ZIP_20)},
    }
    server = OsfServer(nodes, bytes_per_second=SLOW)
    yield server
    server.close()


def osf_settings(server, data_dir):
    return DataSettings(source="osf", data_dir=data_dir, api_url=server.api_url, subset="19", connections=2)


def zip_settings(server, data_dir):
    return DataSettings(
        source="zip", data_dir=data_dir, zip_url=f"{server.url}/storage/zips", split="test", connections=2
    )


def tree(top):
    """Everything but the manifest, hidden files too."""
    paths = [path for path in top.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in paths}


def finished(data_dir):
    """Names of the files that have their final name."""
    paths = [path for path in data_dir.rglob("sub-*") if path.is_file()]
    return {path.name for path in paths}


def has_a_file_or_ended(process, data_dir):
    return bool(finished(data_dir)) or not process.is_alive()


def run_and_kill(server, settings, after_s, *, once=lambda process: True):
    """Kill a run on a slow line and name what was sent; then the line is fast and the log empty.

    The time to the kill begins once something holds of the process: on a busy machine that may be long after
    its start.
    """
    server.bytes_per_second = SLOW
    process = FORKS.Process(target=get_data, args=(settings,))
    process.start()
    wait_until(lambda: once(process), step_s=0.002)
    process.join(after_s)
    process.kill()
    end_of(process)
    sent = {entry[2] for entry in server.requests("storage")}
    server.bytes_per_second = None
    server.log.clear()
    return sent


def moment_of_kill(number, moments, whole_s, data_dir):
    """Give a moment of a whole run, or every other time one soon after the first finished file.

    So kills fall half-way through the work however busy the machine is.
    """
    if number % 2:
        return {"after_s": moments.uniform(0.0, whole_s)}
    once = partial(has_a_file_or_ended, data_dir=data_dir)
    return {"after_s": moments.uniform(0.0, whole_s / 4), "once": once}


def seconds_of_a_whole_run(settings):
    first = FORKS.Process(target=int)  # The one that waits until the program is loaded.
    first.start()
    end_of(first)
    begin = time.monotonic()
    process = FORKS.Process(target=get_data, args=(settings,))
    process.start()
    end_of(process)
    assert process.exitcode == 0
    return time.monotonic() - begin


def test_files_survive_sigkill_at_any_moment(server, tmp_path):
    whole = seconds_of_a_whole_run(osf_settings(server, tmp_path / "whole"))
    assert tree(tmp_path / "whole") == OSF_19
    moments = random.Random(0)
    for number in range(KILLS):
        settings = osf_settings(server, tmp_path / str(number))
        run_and_kill(server, settings, **moment_of_kill(number, moments, whole, settings.data_dir))
        before = finished(settings.data_dir)
        # A part may be whole already: killed just before it got its name.
        parts = [path for path in settings.data_dir.rglob(".*.part") if path.stat().st_size == SIZE_19]
        whole_parts = {path.name[1 : -len(".part")] for path in parts}
        assert get_data(settings) == 0
        assert tree(settings.data_dir) == OSF_19
        names = [entry[2] for entry in server.requests("storage")]
        assert sorted(names) == sorted({Path(path).name for path in OSF_19} - before - whole_parts)
        listed = json.loads((settings.data_dir / "manifest.json").read_text())["files"]
        assert [entry["path"] for entry in listed] == sorted(OSF_19)


def test_one_download_survives_twenty_sigkills(server, tmp_path, monkeypatch):
    settings = osf_settings(server, tmp_path / "data")
    monkeypatch.setattr(sys.modules[__name__], "SLOW", 300_000)
    moments = random.Random(1)
    before = set()

    def downloads(process):
        return not process.is_alive() or server.requests("storage")

    for _ in range(KILLS):
        sent = run_and_kill(server, settings, moments.uniform(0.0, 0.3), once=downloads)
        assert not before & sent  # What was finished is not fetched again.
        before = finished(settings.data_dir)
    assert get_data(settings) == 0
    assert not before & {entry[2] for entry in server.requests("storage")}
    assert tree(settings.data_dir) == OSF_19


def parts_of_archives(settings):
    """What has come of the archives, in bytes."""
    return {
        path.name.split("-", 1)[1].removesuffix(".part"): path.stat().st_size
        for path in settings.data_dir.glob(".archives/*.part")
    }


def goes_on_with_archives(server, settings, expected):
    """Run the same command after a kill, and give how many files were unpacked before."""
    parts = parts_of_archives(settings)
    before = {path: place.stat().st_ino for path in expected if (place := settings.data_dir / path).exists()}
    assert get_data(settings) == 0
    assert tree(settings.data_dir) == expected
    # What was unpacked stays the same file; what came of an archive is not sent again.
    assert all((settings.data_dir / path).stat().st_ino == inode for path, inode in before.items())
    sent = {entry[2]: entry[3] for entry in server.log if entry[0] == "GET"}
    for name, size in parts.items():
        complete = size == len(server.nodes["zips"][f"/{name}"])
        assert complete == (name not in sent)
        assert complete or sent[name] == (f"bytes={size}-" if size else None)
    return len(before)


def test_archives_survive_sigkill_at_any_moment(server, tmp_path):
    whole = seconds_of_a_whole_run(zip_settings(server, tmp_path / "whole"))
    expected = {**ZIP_19, **ZIP_20}
    assert tree(tmp_path / "whole") == expected
    moments = random.Random(2)
    for number in range(KILLS):
        settings = zip_settings(server, tmp_path / str(number))
        run_and_kill(server, settings, moments.uniform(0.0, whole))
        goes_on_with_archives(server, settings, expected)


def test_archives_survive_sigkill_while_they_are_unpacked(server, tmp_path):
    # Random moments seldom fall into the unpacking, so these kills wait for its first file.
    expected = {**ZIP_19, **ZIP_20}
    server.bytes_per_second = None
    for number in range(KILLS // 4):
        settings = zip_settings(server, tmp_path / str(number))
        process = FORKS.Process(target=get_data, args=(settings,))
        process.start()
        wait_until(partial(has_a_file_or_ended, process, settings.data_dir), step_s=0.001)
        process.kill()
        end_of(process)
        server.log.clear()
        assert goes_on_with_archives(server, settings, expected) > 0
        server.log.clear()


def script(settings):
    options = ["--source", "osf", "--data-dir", str(settings.data_dir), "--api-url", settings.api_url]
    return [sys.executable, "get_verse_data.py", *options, "--subset", "19", "--connections", "2"]


def heed_ctrl_c():
    """Undo what a shell does to a job in the background, such as these tests may be: ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("fault", ["", "stall"])
def test_ctrl_c_ends_soon_with_one_line_and_status_130(server, tmp_path, fault):
    settings = osf_settings(server, tmp_path / "data")
    name = Path(sorted(OSF_19)[0]).name
    server.faults[name].append(fault)
    server.bytes_per_second = 300_000
    process = subprocess.Popen(
        script(settings), cwd=PROJECT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    )
    wait_until(lambda: server.requests("storage"))
    time.sleep(0.3)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=20)
    assert time.monotonic() - begin < 5.0
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert printed.splitlines()[-1] == "Interrupted: the same command goes on from here."
    server.bytes_per_second = None
    server.faults[name].clear()
    done = subprocess.run(script(settings), cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tree(settings.data_dir) == OSF_19
