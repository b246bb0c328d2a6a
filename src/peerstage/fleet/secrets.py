"""`Secret`: where a password or passphrase is read, when it is needed."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass

from peerstage.bounded_files import read_file_and_status
from peerstage.documented import Documented
from peerstage.errors import ConfigurationError
from peerstage.reasons import Reason

_MAX_BYTES = 64 * 1024
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret(metaclass=Documented):
    """A reference to a secret: its value is read where it is used, and is never stored or pickled.

    Attributes:
        file: Absolute path of a file, whose first line is the secret. Only its owner, who is root or the caller, may
            have access to it.
        env: The name of an environment variable.

    Raises:
        ValueError: If not exactly one of them is given, or it is invalid.
    """

    file: str | None = None
    env: str | None = None

    def __post_init__(self) -> None:
        # No message shows a value: somebody may have given the secret itself.
        if (self.file is None) == (self.env is None):
            raise ValueError("Secret: must have either file or env.")
        if self.file is not None and (not os.path.isabs(self.file) or "\0" in self.file):
            raise ValueError("Secret: file must be an absolute path.")
        if self.env is not None and not _VARIABLE.fullmatch(self.env):
            raise ValueError("Secret: env must be the name of an environment variable.")

    def read(self) -> str:
        """Return the secret.

        Raises:
            ConfigurationError: If it is missing, cannot be read, or other users have access to the file.
        """
        if self.file is None:
            value = os.environ.get(self.env or "")
            if not value:
                message = f"The environment variable {self.env} is not set. Set it where this runs."
                raise ConfigurationError(message, reason=Reason.CONFIGURATION_UNREADABLE)
            return value
        try:
            data, status = read_file_and_status(self.file, _MAX_BYTES)
        except OSError as exc:
            raise ConfigurationError(
                f"The secret cannot be read: {exc.strerror}.", path=self.file, reason=Reason.CONFIGURATION_UNREADABLE
            ) from exc
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            message = "Other users have access to this secret. Run chmod 600 and chown on it."
            raise ConfigurationError(message, path=self.file, reason=Reason.INSECURE_CONFIGURATION)
        line = data.split(b"\n", 1)[0].rstrip(b"\r")
        try:
            return line.decode()
        except UnicodeDecodeError:
            raise ConfigurationError("The secret is not UTF-8.", path=self.file) from None
