"""``latest``: the symlink in a staging pool to the daily directory of its last run."""

from __future__ import annotations

import contextlib
import errno
import os

from peerstage.fleet.pool.run_id import is_day
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.printable import escape
from peerstage.target.file_descriptors import closing, open_directory

NAME = "latest"
#: The name of the new link in the runs directory, where no other user can replace it.
_NEW = "latest.new"


def update_latest(runs: RunsDirectory, day: str) -> str | None:
    """Let ``STAGING/latest`` point to the daily directory *day*. It is replaced atomically, and never followed.

    Args:
        runs: The pool's runs directory. The caller holds the pool's lock.
        day: The daily directory, ``YYYY/MM/DD``.

    Returns:
        None; or why ``latest`` is left as it is, as a sentence: the name belongs to something that is not ours.

    Raises:
        TargetError: If the link cannot be written.
    """
    path = os.path.join(runs.staging, NAME)
    with runs.errors(f"The link {NAME} cannot be written"), closing(open_directory(runs.staging, follow=True)) as pool:
        try:
            found = os.readlink(NAME, dir_fd=pool)
        except FileNotFoundError:
            found = None
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            return f"{escape(path)} is left as it is, since it is not a symlink."
        if found == day:
            return None
        if found is not None and not is_day(found):
            return f"{escape(path)} is left as it is, since it does not point to a daily directory."
        runs.remove(_NEW)
        os.symlink(day, _NEW, dir_fd=runs.fd)
        try:
            os.rename(_NEW, NAME, src_dir_fd=runs.fd, dst_dir_fd=pool)
        except OSError:
            with contextlib.suppress(OSError):
                runs.remove(_NEW)
            raise
    return None
