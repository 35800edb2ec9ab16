"""A server that behaves like OSF, and breaks in the ways that servers and lines break."""

import hashlib
import http.server
import json
import threading
import time
from collections import defaultdict, deque
from pathlib import PurePosixPath
from urllib.parse import parse_qs, urlsplit

PAGE_SIZE = 2
CHUNK = 2**14


class OsfServer(http.server.ThreadingHTTPServer):
    """Nodes with files: listed in pages under /v2, sent from /storage after a redirect from /download.

    `faults[name]` is a queue of what happens to the next requests for the file (or, under "listing", for
    pages): "drop" and "stall" after half of the body, "truncate", "wrong", "no range", "careless" (of
    `If-Range`), "longer" and "no length" (both with more bytes than there should be), "to ADDRESS" (a page
    that is redirected), or a status such as "429 2" with its `Retry-After`. `log` holds (method, kind, name,
    range, status) of every request.
    """

    daemon_threads = True

    def __init__(self, nodes, *, hashes=("md5", "sha256"), bytes_per_second=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.nodes = nodes
        self.hashes = hashes
        self.bytes_per_second = bytes_per_second
        self.faults = defaultdict(deque)
        self.log = []
        self.next_url = None  # the server that further pages are on, if it is another one
        self.tokens = []  # (kind, `Authorization`) of every request
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.awake = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def api_url(self):
        return f"{self.url}/v2"

    def contents(self):
        return {path: content for files in self.nodes.values() for path, content in files.items()}

    def requests(self, kind, name=None):
        return [entry for entry in self.log if entry[1] == kind and name in (None, entry[2])]

    def close(self):
        self.awake.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # Clients that are killed hang up.


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else each answer waits 40 ms for the client's acknowledgement.

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        address = urlsplit(self.path)
        kind, *rest = address.path.strip("/").split("/")
        self.server.tokens.append((kind, self.headers.get("Authorization")))
        if kind == "v2":
            name = "listing"
        else:
            node, *parts = rest
            name = parts[-1]
        queue = self.server.faults[name]
        fault = queue.popleft() if queue and kind != "download" else ""
        if fault[:1].isdigit():
            self.refuse(kind, name, fault)
        elif kind == "v2":
            self.list(rest, int(parse_qs(address.query).get("page", ["1"])[0]), fault)
        elif kind == "download":
            self.redirect("/storage/" + "/".join(rest), name)
        else:
            self.count(+1)
            try:
                self.send(self.server.nodes[node]["/" + "/".join(parts)], name, fault)
            finally:
                self.count(-1)

    do_HEAD = do_GET

    def count(self, change):
        with self.server.lock:
            self.server.busy += change
            self.server.most_busy = max(self.server.most_busy, self.server.busy)

    def note(self, kind, name, status):
        self.server.log.append((self.command, kind, name, self.headers.get("Range"), status))

    def refuse(self, kind, name, fault):
        status, _, retry_after = fault.partition(" ")
        self.note(kind, name, int(status))
        self.answer(int(status), b"busy", {"Retry-After": retry_after} if retry_after else {})

    def redirect(self, place, name):
        self.note("download", name, 302)
        self.answer(302, b"", {"Location": f"{self.server.url}{place}?signature={time.time_ns()}"})

    def list(self, rest, page, fault):
        """/v2/nodes/<node>/files/osfstorage/<folder>/..."""
        if fault.startswith("to "):
            self.answer(302, b"", {"Location": fault.removeprefix("to ")})
            return
        self.note("listing", "/".join(rest), 200)
        node, folder = rest[1], "".join(f"/{part}" for part in rest[4:])
        found = [self.item(node, entry) for entry in self.entries(node, folder)]
        shown = found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        here = f"{self.server.url}/{'/'.join(['v2', *rest])}/"
        following = here.replace(self.server.url, self.server.next_url or self.server.url)
        following = f"{following}?page={page + 1}" if page * PAGE_SIZE < len(found) else None
        body = {"data": shown, "links": {"next": following, "meta": {"total": len(found)}}}
        self.answer(200, b"<html>" if fault == "html" else json.dumps(body).encode(), {})

    def entries(self, node, folder):
        below = [path for path in self.server.nodes[node] if path.startswith(f"{folder}/")]
        depth = folder.count("/") + 2
        return sorted({"/".join(path.split("/")[:depth]) for path in below})

    def item(self, node, path):
        content = self.server.nodes[node].get(path)
        name = PurePosixPath(path).name
        if content is None:
            href = f"{self.server.url}/v2/nodes/{node}/files/osfstorage{path}/"
            relationships = {"files": {"links": {"related": {"href": href, "meta": {}}}}}
            attributes = {"name": name, "kind": "folder", "size": None, "materialized_path": f"{path}/"}
            return {"attributes": attributes, "relationships": relationships, "links": {}}
        hashes = {kind: hashlib.new(kind, content).hexdigest() for kind in self.server.hashes}
        attributes = {"name": name, "kind": "file", "size": len(content), "materialized_path": path}
        attributes["extra"] = {"hashes": hashes}
        return {"attributes": attributes, "links": {"download": f"{self.server.url}/download/{node}{path}"}}

    def send(self, content, name, fault):
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = self.start(etag, careless=fault == "careless") if fault != "no range" else 0
        status = 206 if start else 200
        self.note("storage", name, status)
        body = content[start:] + (b"more" * CHUNK if fault in ("longer", "no length") else b"")
        sent = len(body) // 2 if fault in ("drop", "truncate", "stall") else len(body)
        self.send_response(status)
        self.send_header("ETag", etag)
        if fault != "no length":
            self.send_header("Content-Length", str(sent if fault == "truncate" else len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.stream(bytes(255 - byte for byte in body) if fault == "wrong" else body[:sent])
        if fault == "stall":
            self.server.awake.wait(20)
        self.close_connection |= fault in ("drop", "stall", "no length")

    def start(self, etag, *, careless):
        asked = self.headers.get("Range", "")
        if not asked or (self.headers.get("If-Range", etag) != etag and not careless):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def stream(self, body):
        for begin in range(0, len(body), CHUNK):
            piece = body[begin : begin + CHUNK]
            self.wfile.write(piece)
            if self.server.bytes_per_second:
                time.sleep(len(piece) / self.server.bytes_per_second)

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
