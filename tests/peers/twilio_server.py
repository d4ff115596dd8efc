"""A stand-in for Twilio's Messages resource that writes every request to a file, one JSON line each.

The file of the mode is read before every answer: accept (201), refuse (400, code 21211), overloaded
(503), black-hole (never answers), redirect (307). Arguments: port, output file, mode file.
"""

import base64
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

port, output, mode_file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        kind, _, credentials = self.headers.get("Authorization", "").partition(" ")
        record = {
            "path": self.path,
            "content_type": self.headers.get("Content-Type"),
            "user": base64.b64decode(credentials).decode() if kind == "Basic" else None,
            "form": {name: values[0] for name, values in parse_qs(body).items()},
        }
        with lock, open(output, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        with open(mode_file, encoding="ascii") as file:
            mode = file.read().strip()
        if mode == "black-hole":
            threading.Event().wait()
        status, answer = {
            "refuse": (400, {"code": 21211, "message": "not a number"}),
            "overloaded": (503, {}),
            "redirect": (307, {}),
        }.get(mode, (201, {"sid": "SM1", "status": "queued"}))
        content = json.dumps(answer).encode()
        self.send_response(status)
        if mode == "redirect":
            self.send_header("Location", f"http://127.0.0.1:{port}/elsewhere")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
print("ready", file=sys.stderr, flush=True)
server.serve_forever()
