"""An S3 server on loopback (moto's), that fails and dawdles as it is told: `python tests/s3_server.py --port N`.

To write an object whose name has `denied` in it is forbidden.

Of all requests, the share `failing` ends in an error (500 before the work is done, 503, or a connection that is cut
after it), and the share `slow` is answered late; `stuck` ones are never answered. Which, follows from `seed` and the
request alone, so that it is the same in each run, whatever the order in which requests arrive. Each request takes
`latency` seconds, as on the way to a real store. Counted are, beside what failed, all `requests`, those of each method,
and the `most` that were in flight at a time.
"""

import argparse
import hashlib
import json
import socket
import threading
import time
from collections import Counter

from moto.s3.models import FakeKey
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

SLOW_SECONDS, STUCK_SECONDS = 1.0, 600.0
CONTROL = "/faults"  # no name of a bucket is that short, except in requests of ours


class Faults:
    """Between the network and the server."""

    def __init__(self, application, **rates):
        self._application, self._lock = application, threading.Lock()
        self._in_flight = 0
        self.set(rates)

    def set(self, rates):
        with self._lock:
            self._rates = {"failing": 0.0, "slow": 0.0, "stuck": 0.0, "seed": 0, "latency": 0.0} | rates
            self._seen, self.counts = Counter(), Counter()
            self._denied = rates.get("denied")

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == CONTROL:
            return self._control(environ, start_response)
        with self._lock:
            self._in_flight += 1
            self.counts["most"] = max(self.counts["most"], self._in_flight)
        try:
            time.sleep(self._rates["latency"])
            return self._answer(environ, start_response)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _answer(self, environ, start_response):
        chance, kind = self._drawn(environ)
        failing, slow, stuck = (self._rates[name] for name in ("failing", "slow", "stuck"))
        if self._denied and environ["REQUEST_METHOD"] in ("PUT", "POST") and self._denied in environ["PATH_INFO"]:
            return self._error("403 Forbidden", "AccessDenied", start_response)
        if chance < failing:
            return self._fail(kind, environ, start_response)
        if chance < failing + slow:
            self._count("slow")
            time.sleep(SLOW_SECONDS)
        elif chance < failing + slow + stuck:
            self._count("stuck")
            time.sleep(STUCK_SECONDS)
        return self._application(environ, start_response)

    def _drawn(self, environ):
        """Two numbers from 0 to 1 for this request, by what it asks for and how often that has been asked.

        The bucket doesn't count: its name has a number that depends on which tests ran before.
        """
        names = sorted(part.partition("=")[0] for part in environ["QUERY_STRING"].split("&"))
        bucket, _, key = environ["PATH_INFO"].strip("/").partition("/")
        request = f"{environ['REQUEST_METHOD']} {bucket.rstrip('0123456789')}{key} {names} {environ.get('HTTP_RANGE')}"
        with self._lock:
            self._seen[request] += 1
            self.counts["requests"] += 1
            self.counts[environ["REQUEST_METHOD"]] += 1
            text = f"{self._rates['seed']} {request} {self._seen[request]}"
        digest = hashlib.sha256(text.encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64, digest[8] / 256

    def _fail(self, kind, environ, start_response):
        if kind < 2 / 3:
            status, code = ("500 Internal Server Error", "InternalError") if kind < 1 / 3 else ("503 ", "SlowDown")
            return self._error(status, code, start_response)
        self._count("cut")
        for _ in self._application(environ, lambda *_: None):  # done, but nobody hears of it
            pass
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionError("cut on purpose")

    def _error(self, status, code, start_response):
        self._count(code)
        start_response(status, [("Content-Type", "application/xml"), ("Connection", "close")])
        return [f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()]

    def _count(self, what):
        with self._lock:
            self.counts[what] += 1

    def _control(self, environ, start_response):
        counts = dict(self.counts)
        self.set(json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or "{}"))
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(counts).encode()]


def _milliseconds(key):
    """When an object was changed, as some stores say it in a listing; of one object, each says whole seconds."""
    return key.last_modified.isoformat(timespec="milliseconds")[:23] + "Z"


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # so that connections are kept, as those of a real store

    def log(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    for rate in ("failing", "slow", "stuck", "latency"):
        parser.add_argument(f"--{rate}", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    rates = vars(parser.parse_args())
    FakeKey.last_modified_ISO8601 = property(_milliseconds)
    host, port = rates.pop("host"), rates.pop("port")
    application = Faults(DomainDispatcherApplication(create_backend_app), **rates)
    make_server(host, port, application, threaded=True, request_handler=_Quiet).serve_forever()


if __name__ == "__main__":
    main()
