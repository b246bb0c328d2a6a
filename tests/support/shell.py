"""A shell that stays open in a container, so that a command does not cost a docker process."""

from __future__ import annotations

import subprocess

#: Protocol: the lengths of a command and of its input, then both; the reply is the exit status, the lengths of stdout
#: and stderr, then both. ``head`` and ``read`` consume exactly these bytes. Input that a command does not read is
#: discarded, so that the next lengths are found.
_LOOP = r"""
d=$(mktemp -d) || exit
trap 'rm -rf "$d"' EXIT
while read -r size input; do
    command=$(head -c "$size")
    head -c "$input" | { (eval "$command") >"$d/out" 2>"$d/error"; status=$?; cat >/dev/null; exit $status; }
    status=$?
    set -- $(stat -c %s "$d/out" "$d/error")
    echo "$status $1 $2" && cat "$d/out" "$d/error"
done
"""


class ShellEnded(Exception):
    """The shell has exited: its container was killed, restarted or removed. The message is docker's stderr."""


class Shell:
    """A shell in a container, as root.

    Args:
        container: The container's id.
    """

    def __init__(self, container: str) -> None:
        pipe = subprocess.PIPE
        command = ["docker", "exec", "-i", container, "sh", "-c", _LOOP]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)

    def run(self, command: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a command and return its exit status, stdout and stderr.

        Raises:
            ShellEnded: If the shell has exited; the command may have run.
        """
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        line = command.encode("utf-8", "surrogateescape")
        try:
            for part in (b"%d %d\n" % (len(line), len(stdin)), line, stdin):
                requests.write(part)
            requests.flush()
            status, *lengths = (int(number) for number in replies.readline().split())
            output, error = (self._read(length) for length in lengths)
        except (OSError, EOFError, ValueError):
            raise ShellEnded(self.close()) from None
        except BaseException:  # interrupted in the middle of a reply, the stream is out of step
            self.close()
            raise
        return status, output, error

    def _read(self, length: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def close(self) -> str:
        """Kill the shell and return docker's stderr."""
        self._process.kill()
        _, error = self._process.communicate()
        return error.decode(errors="replace").strip()
