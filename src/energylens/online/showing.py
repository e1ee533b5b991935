"""The latest advice over HTTP: as JSON for KEDA's metrics-api, as gauges for Prometheus."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from energylens.online.controller import Advice

#: Gauges: name, unit-bearing meaning, key of the reason or of the action.
GAUGES = (
    ("energylens_fleet_replicas", "replicas advised", "replicas"),
    ("energylens_fleet_batch_limit", "sequences at once that a replica is advised", "fill"),
    ("energylens_fleet_power_cap_watts", "power cap advised for each GPU", "power_cap_w"),
    ("energylens_fleet_power_watts", "of the advised fleet, by the model", "power_then_w"),
    ("energylens_fleet_saved_joules_per_request", "by the model", "saved_per_request_j"),
)


class Board(ThreadingHTTPServer):
    """Serves ``/v1/fleet`` and ``/metrics``; without advice to rely on both say so by 503."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.advice: Advice | None = None
        super().__init__((host, port), _Page)
        self.url = f"http://{host}:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def text(self) -> str:
        """All gauges in Prometheus's format."""
        advice = self.advice
        if advice is None or advice.action is None:
            return ""
        document: dict[str, Any] = advice.to_json()
        values = {**document, **(document["action"] or {})}
        lines = []
        for name, meaning, key in GAUGES:
            if isinstance(values.get(key), int | float):
                lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
                lines.append(f"{name} {values[key]:.10g}")
        return "\n".join(lines) + "\n"


class _Page(BaseHTTPRequestHandler):
    server: Board

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr."""

    def do_GET(self) -> None:
        """Answer."""
        advice = self.server.advice
        known = advice is not None and advice.action is not None
        if self.path == "/v1/fleet":
            document = {"action": None, "doubt": "no look yet"}
            body = json.dumps(document if advice is None else advice.to_json())
            self._give(200 if known else 503, "application/json", body)
        elif self.path == "/metrics":
            self._give(200 if known else 503, "text/plain; version=0.0.4", self.server.text())
        else:
            self._give(404, "application/json", '{"error": "there are /v1/fleet and /metrics"}')

    def _give(self, status: int, kind: str, body: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
