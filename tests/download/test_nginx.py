"""Archives from the web server that Debian ships; skipped where it is not installed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.download.waiting import LONGEST_S, wait_until
from utils.download.data_set import get_data
from utils.settings import DataSettings

PROJECT = Path(__file__).resolve().parents[2]
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

# The archives and the folders that they unpack to, as those of the restructured release.
FOLDERS = {
    "dataset-verse19training": "dataset-verse19training",
    "dataset-verse19validation": "dataset-verse19validation",
    "dataset-verse19test": "dataset-verse19test",
    "dataset-verse20training": "dataset-01training",
    "dataset-verse20validation": "dataset-02validation",
    "dataset-verse20test": "dataset-03test",
}
SIZE = 200_000
CONFIGURATION = """
daemon off; master_process off; pid {top}/nginx.pid; error_log {top}/error.log;
events {{}}
http {{
    access_log off;
    log_format plain '$request_method $uri $status $http_range $body_bytes_sent';
    client_body_temp_path {top}/body; proxy_temp_path {top}/proxy; fastcgi_temp_path {top}/fastcgi;
    uwsgi_temp_path {top}/uwsgi; scgi_temp_path {top}/scgi;
    server {{
        listen 127.0.0.1:{port};
        access_log {top}/access.log plain;
        location / {{ root {top}/files; }}
        location /slow/ {{ alias {top}/files/; limit_rate 200k; }}
    }}
}}
"""


def members_of(number, folder):
    generator = np.random.default_rng(number)
    subject = f"sub-{'gl' if number == 3 else 'verse'}{number:03d}"
    return {
        f"{folder}/rawdata/{subject}/{subject}_ct.nii.gz": generator.bytes(SIZE),
        f"{folder}/derivatives/{subject}/{subject}_seg-vert_msk.nii.gz": generator.bytes(SIZE // 4),
    }


CONTENTS = {name: members_of(number, folder) for number, (name, folder) in enumerate(FOLDERS.items())}
EXPECTED = {path: content for members in CONTENTS.values() for path, content in members.items()}


class Nginx:
    def __init__(self, top):
        (top / "files").mkdir(parents=True)
        for name, members in CONTENTS.items():
            with zipfile.ZipFile(top / "files" / f"{name}.zip", "w") as packed:
                for path, content in members.items():
                    packed.writestr(path, content)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.top, self.url = top, f"http://127.0.0.1:{self.port}"
        configuration = top / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(top=top, port=self.port))
        command = [NGINX, "-c", configuration, "-e", top / "error.log", "-p", top]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def wait(self):
        for _ in range(200):
            with socket.socket() as line:
                if line.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError((self.top / "error.log").read_text())

    def log(self):
        """Method, path, status, range and bytes of every request so far."""
        return [tuple(line.split()) for line in (self.top / "access.log").read_text().splitlines()]


@pytest.fixture
def nginx(tmp_path):
    server = Nginx(tmp_path / "nginx")
    server.wait()
    yield server
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(10)


def get(url, data_dir, **changes):
    return get_data(DataSettings(source="zip", data_dir=data_dir, zip_url=url, **changes))


def tree(top):
    paths = [path for path in top.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in paths}


def test_the_six_archives_are_got_and_unpacked_once(nginx, tmp_path, capsys):
    assert get(nginx.url, tmp_path / "data") == 0
    assert tree(tmp_path / "data") == EXPECTED
    assert capsys.readouterr().out.splitlines() == [
        f"{split}: 2 series, 2 with CT and mask" for split in ("training", "validation", "test")
    ]
    expected = [(method, f"/{name}.zip", "200") for name in FOLDERS for method in ("GET", "HEAD")]
    assert sorted(entry[:3] for entry in nginx.log()) == sorted(expected)
    assert get(f"{nginx.url}/", tmp_path / "data") == 0
    assert len(nginx.log()) == len(expected)


def test_only_what_is_asked_for_is_unpacked_and_the_rest_later(nginx, tmp_path):
    chosen = {"subset": "20", "split": "training", "exclude_noncommercial": True}
    assert get(nginx.url, tmp_path / "data", **chosen) == 1  # The one case there is a sub-gl.
    assert tree(tmp_path / "data") == {}
    assert get(nginx.url, tmp_path / "data", subset="20", split="training") == 0
    assert tree(tmp_path / "data") == CONTENTS["dataset-verse20training"]
    assert [entry[:2] for entry in nginx.log()] == [
        (method, "/dataset-verse20training.zip") for _ in range(2) for method in ("HEAD", "GET")
    ]
    assert get(nginx.url, tmp_path / "data", subjects=("sub-verse005",), subset="20") == 0
    assert tree(tmp_path / "data") == {
        **CONTENTS["dataset-verse20training"],
        **CONTENTS["dataset-verse20test"],
    }


def test_a_killed_download_is_resumed_by_range(nginx, tmp_path):
    chosen = {"subset": "20", "split": "test"}
    options = ["--source", "zip", "--zip-url", f"{nginx.url}/slow", "--subset", "20", "--split", "test"]
    command = [sys.executable, "get_verse_data.py", *options, "--data-dir", str(tmp_path / "data")]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.DEVNULL)
    archives = tmp_path / "data" / ".archives"
    wait_until(lambda: any(path.stat().st_size > SIZE // 4 for path in archives.glob("*.zip.part")))
    process.kill()
    process.wait(LONGEST_S)
    (part,) = archives.glob("*.zip.part")
    have = part.stat().st_size
    assert get(f"{nginx.url}/slow", tmp_path / "data", **chosen) == 0
    assert tree(tmp_path / "data") == CONTENTS["dataset-verse20test"]
    size = (nginx.top / "files" / "dataset-verse20test.zip").stat().st_size
    assert nginx.log()[-1] == (
        "GET",
        "/slow/dataset-verse20test.zip",
        "206",
        f"bytes={have}-",
        str(size - have),
    )
