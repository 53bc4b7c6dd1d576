"""A server that receives Sentry envelopes and OTLP traces."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """A server that records each request: its path and its body, in order of arrival."""

    address: str = ""
    received: list[tuple[str, bytes]] = field(default_factory=list)

    def events(self) -> list[dict[str, Any]]:
        """Returns Sentry's error events (https://develop.sentry.dev/sdk/data-model/envelopes/)."""
        found = []
        for path, body in self.received:
            if path == "/api/1/envelope/":
                lines = [json.loads(line) for line in body.splitlines() if line]
                pairs = zip(lines[1::2], lines[2::2], strict=False)
                found += [item for header, item in pairs if header["type"] == "event"]
        return found

    def spans(self) -> list[Span]:
        found = []
        for path, body in self.received:
            if path == "/v1/traces":
                request = ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        found += scope.spans
        return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """Runs a collector for the duration of the block."""
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is given by http.server
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            kept.received.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept.address = f"127.0.0.1:{server.server_port}"
    yield kept
    server.shutdown()
    server.server_close()
