"""A ProxyCommand: carries its standard input and output to HOST and PORT, and writes down its arguments and number.

python relay.py RECORD HOST PORT [BYTES WORDS]: with the last two it says WORDS and ends after so many bytes.
"""

import os
import select
import socket
import sys


def main(record: str, host: str, port: str, most: str = "0", words: str = "") -> int:
    with open(record, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {host} {port}\n")
    left = int(most) or 1 << 62
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
                left -= len(data)
                if left < 0:
                    sys.stderr.write(words)
                    return 7
                if not data:
                    return 0
                while data:
                    data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
