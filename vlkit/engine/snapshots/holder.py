"""A process that owns memory for the snapshots of a run, and outlives the run's processes.

    python holder.py ADDRESS SECONDS

Each item is an anonymous file in memory (memfd). A client gets the file itself over a Unix socket and writes to it
directly; when the client is killed, this process still holds it. It ends when it is told so, or when no client has been
there for SECONDS. It imports nothing but the standard library, so that it stays small: about 8 MiB.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import sys
import time

LONGEST = 256
"""Bytes of a message."""


def same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end runs as this user: anyone on the machine can reach the address."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return user == os.getuid()


def hold(address: str, seconds: float) -> None:
    """Answer clients until the end. Messages: ``open NAME`` (answered with the file), ``names``, ``end``."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        server.bind(f"\0{address}")  # a name without a file: nothing is left when this process ends
    except OSError:
        return  # another process holds this run's memory already
    server.listen()
    files: dict[str, int] = {}
    clients: set[socket.socket] = set()
    waiting = selectors.DefaultSelector()
    waiting.register(server, selectors.EVENT_READ)
    alone_since = time.monotonic()
    while True:
        left = None if clients else alone_since + seconds - time.monotonic()
        if left is not None and left <= 0:
            return
        for key, _ in waiting.select(left):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if connection is server:
                client, _ = server.accept()
                if same_user(client):
                    clients.add(client)
                    waiting.register(client, selectors.EVENT_READ)
                else:
                    client.close()
                continue
            try:
                word, _, name = connection.recv(LONGEST).decode().partition(" ")
                if word == "open":
                    if name not in files:
                        files[name] = os.memfd_create(f"vlkit-{name}")
                    socket.send_fds(connection, [b"file"], [files[name]])
                elif word == "names":
                    connection.send(" ".join(["names", *files]).encode())
                elif word == "end":
                    server.close()  # before the answer: whoever connects after it must not reach this process
                    connection.send(b"ended")
                    return
            except OSError:
                word = ""
            if not word:  # the client has gone
                waiting.unregister(connection)
                connection.close()
                clients.discard(connection)
                alone_since = time.monotonic()


if __name__ == "__main__":
    hold(sys.argv[1], float(sys.argv[2]))
