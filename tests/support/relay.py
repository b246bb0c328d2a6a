"""A ProxyCommand: relays standard input and output to HOST and PORT, and records its process id and arguments.

python relay.py RECORD HOST PORT [BYTES WORDS]: after relaying BYTES bytes it prints WORDS to stderr and exits with 7.
"""

import os
import select
import socket
import sys


def main(record: str, host: str, port: str, max_bytes: str = "0", words: str = "") -> int:
    with open(record, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {host} {port}\n")
    bytes_left = int(max_bytes) or 1 << 62
    with socket.create_connection((host, int(port))) as sock:
        while True:
            readable, _, _ = select.select([0, sock], [], [])
            if 0 in readable:
                data = os.read(0, 65536)
                if not data:
                    return 0
                sock.sendall(data)
            if sock in readable:
                data = sock.recv(65536)
                bytes_left -= len(data)
                if bytes_left < 0:
                    sys.stderr.write(words)
                    return 7
                if not data:
                    return 0
                while data:
                    data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
