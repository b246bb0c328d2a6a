"""A shell that stays open in a container and runs one command after another, without a docker process for each."""

from __future__ import annotations

import subprocess

#: Reads the lengths of a command and of its input, then both; answers with its status, the lengths of its output and of
#: its error output, then both. ``head`` and ``read`` take no byte more than they are to; what a command leaves of its
#: input is thrown away, so that the next lengths are found.
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


class ShellGone(Exception):
    """The shell does not run: its container was killed, restarted or removed. Its last words are the message."""


class Shell:
    """A shell of root's in a container.

    Args:
        container: The id.
    """

    def __init__(self, container: str) -> None:
        pipe = subprocess.PIPE
        command = ["docker", "exec", "-i", container, "sh", "-c", _LOOP]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)

    def run(self, command: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Run a command with *stdin* as its input, and return its exit status, output and error output.

        Raises:
            ShellGone: If the shell has ended; the command may have run.
        """
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        line = command.encode("utf-8", "surrogateescape")
        try:
            for part in (b"%d %d\n" % (len(line), len(stdin)), line, stdin):
                to.write(part)
            to.flush()
            status, *lengths = (int(number) for number in back.readline().split())
            output, error = (self._read(length) for length in lengths)
        except (OSError, EOFError, ValueError):
            raise ShellGone(self.close()) from None
        except BaseException:  # interrupted in the middle of an answer, it can not be used again
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
        """End it, and return what docker said."""
        self._process.kill()
        _, said = self._process.communicate()
        return said.decode(errors="replace").strip()
