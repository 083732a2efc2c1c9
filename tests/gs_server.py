"""A server of Google's storage protocol on loopback: `python tests/gs_server.py --port N`."""

import argparse
from http.server import ThreadingHTTPServer

from gcp_storage_emulator import server


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    # Google's library reads from several connections at once, and the emulator's own server answers one.
    server.server.HTTPServer = ThreadingHTTPServer
    server.create_server("127.0.0.1", parser.parse_args().port, in_memory=True).run()


if __name__ == "__main__":
    main()
