"""Ports of this machine on which nothing listens."""

import socket


def free_ports(count):
    bound = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in bound]
    for server in bound:
        server.close()
    return ports
