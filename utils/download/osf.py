"""The files of an OSF node, as its public interface (API v2) lists them.

A node's storage is a tree of folders. Each folder is a list in pages (`links.next`); a folder in it says
where its own list is (`relationships.files.links.related.href`), a file says its path, size, hashes and
address. VerSe's tree takes hundreds of pages, and OSF lets a stranger have a limited number an hour, so
folders of what is not asked for are not entered, and pages are kept until the run has ended well.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from tqdm import tqdm

from utils.download.remote import Client, RemoteFile
from utils.files import write_text_whole

#: Nodes of the data structured by subject, by the last digits of the year (parents: nqjyw and t98fz).
NODES = {"19": "jtfa5", "20": "4skx2"}
#: Where a personal access token is looked for: whoever shows one may ask a hundred times as often.
TOKEN_VARIABLE = "OSF_TOKEN"
#: Entries a page: the most that OSF gives, ten times what it gives unasked.
_PAGE_ENTRIES = 100
#: Seconds before a bar shows: work that fails at once says what is wrong and nothing else.
BAR_DELAY_S = 0.2
#: Pages are used again for a day, in seconds: long enough to go on after a broken run.
_PAGE_AGE_S = 24 * 3600.0


class Pages:
    """Pages of the listing, kept on disk.

    Parameters
    ----------
    client : Client
        Gets those that are not there.
    folder : Path
        Where they are kept.
    token : str
        Personal access token, shown with the requests that `may_see_token` allows; "" for none.
    api_url : str
        Address of the interface that the token is for.
    """

    def __init__(self, client: Client, folder: Path, *, token: str = "", api_url: str = "") -> None:
        self._client = client
        self._folder = folder
        self._token = token
        self._api_url = api_url

    def get(self, url: str) -> dict[str, Any]:
        """Give a page, from disk if it was got within the last day."""
        path = self._folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"
        try:
            if time.time() - path.stat().st_mtime < _PAGE_AGE_S:
                return json.loads(path.read_bytes())
        except (OSError, ValueError):
            pass  # Not there, or not readable: got again.
        token = self._token if may_see_token(url, self._api_url) else ""
        page = self._client.page(url, token=token)
        write_text_whole(path, json.dumps(page))
        return page

    def forget(self) -> None:
        """Remove all pages."""
        shutil.rmtree(self._folder, ignore_errors=True)


def may_see_token(url: str, api_url: str) -> bool:
    """Whether a token for an interface may be shown to an address, which a page of its listing may name.

    That is the interface's own host and port, over TLS. On this machine's own addresses TLS is not asked
    for: what is sent to them, such as to a proxy or a test, is seen by no network.
    """
    asked, own = urlsplit(url), urlsplit(api_url)
    same = (asked.scheme, asked.netloc.lower()) == (own.scheme, own.netloc.lower())
    return same and (asked.scheme == "https" or _is_loopback(asked.hostname or ""))


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def list_files(
    pages: Pages, api_url: str, node: str, *, enters: Callable[[Sequence[str]], bool]
) -> list[RemoteFile]:
    """List the files of a node's own storage.

    Parameters
    ----------
    pages : Pages
        Pages of the interface.
    api_url : str
        Address of the interface.
    node : str
        Node, such as "jtfa5".
    enters : callable
        Is given the path of a folder, outermost first, and says whether to list what is in it.

    Returns
    -------
    list of RemoteFile
        Named by their path in the node.

    Raises
    ------
    Unreachable
        If a page could not be got.
    ValueError
        If a page is not what the interface should give.
    """
    files: list[RemoteFile] = []
    waiting = [_with_large_pages(f"{api_url.rstrip('/')}/nodes/{node}/files/osfstorage/")]
    seen = set(waiting)
    with tqdm(desc=f"list {node}", unit="page", leave=False, delay=BAR_DELAY_S) as bar:
        while waiting:
            url = waiting.pop()
            found = list(_entries(pages.get(url), url, enters))
            files += [entry for entry in found if isinstance(entry, RemoteFile)]
            more = [entry for entry in found if isinstance(entry, str) and entry not in seen]
            seen.update(more)
            waiting += more
            bar.update()
    return sorted(files, key=lambda file: file.name)


def _entries(
    page: dict[str, Any], url: str, enters: Callable[[Sequence[str]], bool]
) -> Iterator[RemoteFile | str]:
    """Give the files of a page, and the addresses of further pages and of folders."""
    try:
        for item in page["data"]:
            attributes = item["attributes"]
            path = attributes.get("materialized_path") or attributes["name"]
            if attributes["kind"] == "file":
                yield _file(item, path, url)
            elif attributes["kind"] == "folder" and enters(path.strip("/").split("/")):
                related = item["relationships"]["files"]["links"]["related"]["href"]
                yield _with_large_pages(urljoin(url, related))
        following = page["links"]["next"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{url}: expected a page of OSF's list of files, found {error!r} wrong.") from None
    if following:
        yield urljoin(url, following)


def _with_large_pages(url: str) -> str:
    return f"{url}{'&' if urlsplit(url).query else '?'}{urlencode({'page[size]': _PAGE_ENTRIES})}"


def _file(item: dict[str, Any], path: str, url: str) -> RemoteFile:
    hashes = (item["attributes"].get("extra") or {}).get("hashes") or {}
    return RemoteFile(
        name=path,
        url=urljoin(url, item["links"]["download"]),
        size=item["attributes"].get("size"),
        md5=hashes.get("md5") or "",
        sha256=hashes.get("sha256") or "",
    )
