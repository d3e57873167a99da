"""A real HTTP server on 127.0.0.1 for downloads: by ranges, and with the faults that servers and proxies have."""

import http.server
from contextlib import suppress

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class FileHandler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT. A test sets attributes of a class of its own; `requests` are the ranges that were asked for.

    `breaks`: how often the connection breaks half way. `faults`: raw bytes that answer the first requests.
    `content_range` and `length` replace those headers, None leaves them out.
    """

    breaks, md5, ranges, content_type = 0, None, True, "application/octet-stream"
    content_range, length = "bytes {start}-{end}/{total}", "{count}"
    faults: tuple[bytes, ...] = ()
    requests: list[str | None] = []  # noqa: RUF012

    def do_GET(self):
        kind, wanted = type(self), self.headers.get("Range")
        kind.requests.append(wanted)
        if kind.faults:
            answer, *kind.faults = kind.faults
            self.wfile.write(answer)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and kind.ranges else 0
        if start > len(CONTENT):
            self.send_error(416)
            return
        self._send_headers(start)
        body = CONTENT[start:]
        if kind.breaks:
            kind.breaks -= 1
            body = body[: len(body) // 2]
        with suppress(BrokenPipeError):  # a client that has seen enough
            self.wfile.write(body)

    def _send_headers(self, start: int) -> None:
        numbers = {"start": start, "end": len(CONTENT) - 1, "total": len(CONTENT), "count": len(CONTENT) - start}
        headers = {"Content-Type": self.content_type, "Content-Length": self.length}
        headers["Content-Range"] = self.content_range if start else None
        self.send_response(206 if start else 200)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value.format(**numbers))
        self.send_header("x-goog-hash", "crc32c=AAAAAA==")
        if self.md5:
            self.send_header("x-goog-hash", f"md5={self.md5}")
        self.end_headers()

    def log_message(self, *args):
        pass
