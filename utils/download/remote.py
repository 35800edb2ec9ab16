"""Files and pages over HTTP: resumed, retried, and checked while they stream.

A file arrives under a hidden name ending in ".part". Beside it ".part.json" says what it is a part of:
address, size, and the hash that is listed for it or the server's validator. Bytes are only ever added to
a part of the very same file; whatever does not add up in the end is thrown away and got anew.
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from utils.download.manifest import CHUNK, size_on_disk
from utils.download.parts import begin, discard, opened_plain, resumable_bytes
from utils.files import hash_file

Result = TypeVar("Result")

#: Answers that say "not now": throttled, or a fault on the server's side that may pass.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
#: Answers of servers that give a file but nothing about it (addresses signed for one method say 403).
_NO_PROBE = (400, 403, 405, 501)
#: An attempt that brought so many bytes was no failure: a bad line may break a large file often.
_GAIN = 2**20
#: Waits from here on are announced, in seconds.
_LONG_WAIT_S = 10.0
# What one asks for is bytes of a file, not a compressed stream of them.
_HEADERS = {"User-Agent": "vertebra-segmentation", "Accept-Encoding": "identity"}
_PASSING_ERRORS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)


@dataclass(frozen=True)
class Patience:
    """How often and how long a server is waited for."""

    attempts: int = 7
    """Attempts in a row without progress: with the delays below they sit out an outage of a minute."""
    first_attempts: int = 3
    """As long as no server has answered: a wrong address or no network should not take a minute to say."""
    mismatches: int = 3
    """Times that other bytes than the listed ones may come: more is no accident of the line."""
    first_delay_s: float = 1.0
    """Delay before the second attempt; it doubles from there."""
    longest_delay_s: float = 60.0
    """Longest delay that is not asked for by the server."""
    longest_retry_after_s: float = 3900.0
    """Longest `Retry-After` that is obeyed: OSF counts the requests of an hour."""
    connect_s: float = 10.0
    """Time-out of a connection."""
    read_s: float = 60.0
    """Time-out between two packets: a stalled connection is given up and made anew."""


PATIENCE = Patience()


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server.

    Attributes
    ----------
    name : str
        What messages call it.
    url : str
        Address.
    size : int or None
        Bytes, None if not known.
    md5, sha256 : str
        Listed hashes in hexadecimal digits, "" where there is none.
    validator : str
        What the server calls this version of the file (`ETag`, else `Last-Modified`), "" if nothing.
    """

    name: str
    url: str
    size: int | None = None
    md5: str = ""
    sha256: str = ""
    validator: str = ""

    @property
    def hashes(self) -> dict[str, str]:
        """The strongest listed hash by the name of its kind; empty where none is listed."""
        known = {"sha256": self.sha256.lower(), "md5": self.md5.lower()}
        return dict([(kind, digits) for kind, digits in known.items() if digits][:1])

    def new_hashes(self) -> dict[str, Any]:
        """Give empty hash objects by their kind: SHA-256, and the kind that is listed."""
        return {kind: hashlib.new(kind) for kind in {"sha256": "", **self.hashes}}

    @property
    def identity(self) -> str:
        """What tells this version of the file from any other, "" if nothing does."""
        return self.sha256.lower() or self.md5.lower() or self.validator


class Unreachable(ValueError):
    """A file or page that could not be got; `status` is the server's last word, 0 if it said nothing."""

    def __init__(self, text: str, *, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Mismatch(ValueError):
    """A file that the server sends otherwise than it is listed."""


class Stopped(Exception):
    """The program is ending."""


class _Again(Exception):
    """An attempt that failed and may be repeated."""

    def __init__(self, found: str, *, wait_s: float = 0.0, mismatch: bool = False) -> None:
        super().__init__(found)
        self.wait_s = wait_s
        self.mismatch = mismatch
        self.gained = 0


class Client:
    """Requests of one run, from any number of threads.

    Parameters
    ----------
    patience : Patience
        Attempts, delays and time-outs.
    print_line : callable
        Is given lines about long waits.

    Attributes
    ----------
    stop : threading.Event
        Ends waits and downloads with `Stopped` when it is set.
    answered : bool
        Whether any server has answered.
    """

    def __init__(self, patience: Patience = PATIENCE, *, print_line: Callable[[str], None] = print) -> None:
        self.patience = patience
        self.stop = threading.Event()
        self.answered = False
        self._print_line = print_line
        self._of_thread = threading.local()

    def page(self, url: str, *, token: str = "") -> dict[str, Any]:
        """Get a page of JSON.

        Parameters
        ----------
        url : str
            Its address.
        token : str
            Shown with the request, and with redirects to the same host alone (requests sees to it).

        Raises
        ------
        Unreachable
            If it cannot be got or is no JSON object.
        """

        headers = {"Authorization": f"Bearer {token}"} if token else None

        def attempt() -> dict[str, Any]:
            with self._answer("GET", url, headers=headers) as response:
                try:
                    found = response.json()
                except requests.JSONDecodeError:
                    found = None
            if not isinstance(found, dict):
                raise _Again("no JSON object")
            return found

        return self._retry(attempt, name="listing", url=url)

    def probe(self, remote: RemoteFile) -> RemoteFile:
        """Ask a server for the size and the version of a file.

        Returns
        -------
        RemoteFile
            With `size` and `validator` as announced; without where the server does not answer such questions.

        Raises
        ------
        Unreachable
            If there is no such file, or no server.
        """

        def attempt() -> RemoteFile:
            try:
                with self._answer("HEAD", remote.url) as response:
                    size = response.headers.get("Content-Length", "")
                    known = int(size) if size.isdigit() else None
                    return RemoteFile(remote.name, remote.url, known, validator=_validator(response))
            except Unreachable as refused:
                if refused.status not in _NO_PROBE:
                    raise
                return remote

        return self._retry(attempt, name=remote.name, url=remote.url)

    def fetch(self, remote: RemoteFile, part: Path, *, report_bytes: Callable[[int], None]) -> str:
        """Get a file, or what is missing of it, and check it.

        Parameters
        ----------
        remote : RemoteFile
            The file.
        part : Path
            Where it grows; its folder is made. What lies there of the same file is used.
        report_bytes : callable
            Is given the number of bytes added, or taken back (below 0).

        Returns
        -------
        str
            SHA-256 of the whole file, in hexadecimal digits.

        Raises
        ------
        Unreachable
            If the server could not be brought to send it whole; the part stays.
        Mismatch
            If it sends something else than is listed.
        Stopped
            If `stop` was set; the part stays.
        """
        part.parent.mkdir(parents=True, exist_ok=True)
        attempt = partial(self._fetch_once, remote, part, report_bytes)
        return self._retry(attempt, name=remote.name, url=remote.url)

    def _fetch_once(self, remote: RemoteFile, part: Path, report_bytes: Callable[[int], None]) -> str:
        have = resumable_bytes(remote, part)
        if not have:
            begin(remote, part)
        hashes = remote.new_hashes()
        hash_file(part, hashes)
        try:
            if remote.size is None or have < remote.size:
                hashes = self._receive(remote, part, hashes, report_bytes)
            _check(remote, part, hashes)
        except _Again as again:
            again.gained = size_on_disk(part) - have
            if again.mismatch:
                report_bytes(-size_on_disk(part))
                discard(part)
            raise
        return hashes["sha256"].hexdigest()

    def _receive(
        self, remote: RemoteFile, part: Path, hashes: dict[str, Any], report_bytes: Callable[[int], None]
    ) -> dict[str, Any]:
        """Add what the server sends to a part; without `Range` it sends the whole file, from the start."""
        have = size_on_disk(part)
        with self._answer("GET", remote.url, headers=_range_headers(remote, have)) as response:
            if not _continues(response, remote, have):
                report_bytes(-have)
                have, hashes = 0, remote.new_hashes()
            with opened_plain(part) as file:
                file.truncate(have)
                file.seek(have)
                for chunk in response.iter_content(CHUNK):
                    if self.stop.is_set():
                        raise Stopped
                    _add(file, chunk, hashes)
                    report_bytes(len(chunk))
                    if remote.size is not None and file.tell() > remote.size:
                        raise _Again(f"more than {remote.size} bytes", mismatch=True)
        return hashes

    @contextmanager
    def _answer(
        self, method: str, url: str, *, headers: dict[str, str] | None = None
    ) -> Iterator[requests.Response]:
        timeout = (self.patience.connect_s, self.patience.read_s)
        try:
            with self._session().request(
                method, url, headers=headers, stream=True, timeout=timeout, allow_redirects=True
            ) as response:
                self.answered = True
                _check_status(response, url)
                yield response
        except _PASSING_ERRORS as error:
            raise _Again(_reason(error, self.patience)) from None
        except requests.RequestException as error:
            raise Unreachable(f"{url}: expected an address that answers, found {error}.") from None

    def _session(self) -> requests.Session:
        """Sessions are kept by thread, since they are not made to be shared."""
        if not hasattr(self._of_thread, "session"):
            self._of_thread.session = requests.Session()
            self._of_thread.session.headers.update(_HEADERS)
        return self._of_thread.session

    def _retry(self, attempt: Callable[[], Result], *, name: str, url: str) -> Result:
        # urllib3's `Retry` ends where a body begins, and most of what fails here is a body that breaks off.
        # Its waits cannot be ended by `stop`, are not announced, and do not vary once they are the longest.
        failed = mismatches = 0
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                return attempt()
            except _Again as again:
                failed = 1 if again.gained >= _GAIN else failed + 1
                mismatches += again.mismatch
                message = f"{name}: expected {{}} from {url}, found {again} ({failed} attempts)."
                if mismatches >= self.patience.mismatches:
                    raise Mismatch(message.format("what is listed")) from None
                limit = self.patience.attempts if self.answered else self.patience.first_attempts
                if failed >= limit or again.wait_s > self.patience.longest_retry_after_s:
                    raise Unreachable(message.format("it whole" if again.gained else "an answer")) from None
                self._wait(max(again.wait_s, self._delay(failed)), f"{name}: {again}")

    def _delay(self, failed: int) -> float:
        """Double the delay with every failure; chance keeps several connections from knocking as one."""
        longest = min(self.patience.first_delay_s * 2 ** (failed - 1), self.patience.longest_delay_s)
        return longest * random.uniform(0.5, 1.0)

    def _wait(self, seconds: float, why: str) -> None:
        if seconds >= _LONG_WAIT_S:
            self._print_line(f"{why}; goes on in {seconds:.0f} s.")
        if self.stop.wait(seconds):
            raise Stopped


def _range_headers(remote: RemoteFile, have: int) -> dict[str, str]:
    """Ask for the rest of a file; weak validators ("W/") must not be used with `If-Range`."""
    if not have:
        return {}
    condition = {"If-Range": remote.validator} if remote.validator[:2] not in ("", "W/") else {}
    return {"Range": f"bytes={have}-", **condition}


def _continues(response: requests.Response, remote: RemoteFile, have: int) -> bool:
    """Whether an answer goes on after the bytes at hand; False where it begins anew."""
    if response.status_code == 206:
        found = response.headers.get("Content-Range", "nothing")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", found.strip())
        whole = {"*"} if remote.size is None else {"*", str(remote.size)}
        if match is None or int(match[1]) != have or (remote.size is not None and match[2] not in whole):
            raise _Again(f"the range {found!r} instead of bytes from {have}", mismatch=True)
        if remote.validator not in ("", _validator(response)):
            raise _Again("a part of another version of the file", mismatch=True)
    announced = response.headers.get("Content-Length", "")
    expected = None if remote.size is None else remote.size - (have if response.status_code == 206 else 0)
    encoded = response.headers.get("Content-Encoding", "identity") != "identity"
    if announced.isdigit() and expected is not None and int(announced) > expected and not encoded:
        raise _Again(f"{announced} bytes instead of {expected}", mismatch=True)
    return response.status_code == 206


def _add(file: IO[bytes], chunk: bytes, hashes: dict[str, Any]) -> None:
    file.write(chunk)
    for one in hashes.values():
        one.update(chunk)


def _check(remote: RemoteFile, part: Path, hashes: dict[str, Any]) -> None:
    size = size_on_disk(part)
    if remote.size is not None and size < remote.size:
        raise _Again(f"{size} of {remote.size} bytes")
    for kind, expected in remote.hashes.items():
        found = hashes[kind].hexdigest()
        if found != expected:
            raise _Again(f"the {kind} {found} instead of {expected}", mismatch=True)


def _check_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status in _PASSING:
        raise _Again(f"HTTP {status}", wait_s=_retry_after(response))
    if status == 416:  # A range that the file has not got: the part cannot be one of it.
        raise _Again("HTTP 416", mismatch=True)
    if status not in (200, 206):
        raise Unreachable(f"{url}: expected a file or a page, found HTTP {status}.", status=status)


def _retry_after(response: requests.Response) -> float:
    """Read `Retry-After`, which is a number of seconds or a date; 0 without a readable one."""
    try:
        return Retry().parse_retry_after(response.headers.get("Retry-After", ""))
    except (InvalidHeader, ValueError):
        return 0.0


def _validator(response: requests.Response) -> str:
    return response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")


def _reason(error: Exception, patience: Patience) -> str:
    """Say in a few words what a chain of exceptions of three libraries means."""
    text = str(error)
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {patience.connect_s:g} s"
    if isinstance(error, requests.ReadTimeout) or "Read timed out" in text:
        return f"nothing for {patience.read_s:g} s"
    reason = re.search(r"\[Errno -?\d+\] ([^'\")>]+)", text)
    return reason[1] if reason else "a broken connection"
