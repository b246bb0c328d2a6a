"""Why an operation failed: one closed set of identifiers, for programs that decide what to do next."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """A reason why an operation, or one entry of it, failed.

    ``str()``, `format` and JSON give the identifier in kebab-case. Identifiers are stable; later versions may add some.

    Attributes:
        meaning: What it means, as one sentence.
    """

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Reason:
        """Make a member of its identifier and its meaning."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.__doc__ = member.meaning = meaning
        return member

    def __str__(self) -> str:
        return str(self.value)

    # Arguments and configuration. Nothing was sent.

    INVALID_ARGUMENT = "invalid-argument", "An argument or an option is wrong."
    INVALID_CONFIGURATION = "invalid-configuration", "A configuration or an option holds a value that has no meaning."
    UNKNOWN_KEYWORD = "unknown-keyword", "The configuration holds a keyword that ssh does not know."
    UNSUPPORTED_KEYWORD = "unsupported-keyword", "The configuration holds a keyword that is not honoured."
    CONFIGURATION_UNREADABLE = "configuration-unreadable", "A configuration file is missing or cannot be read."
    INSECURE_CONFIGURATION = "insecure-configuration", "Other users can write a configuration file."
    UNKNOWN_LOCAL_USER = "unknown-local-user", "This machine has no such local user, or it may not be used."

    # Connecting.

    NAME_NOT_RESOLVED = "name-not-resolved", "The host name is not known."
    RESOLVER_TIMEOUT = "resolver-timeout", "The name service did not answer in time."
    CONNECTION_REFUSED = "connection-refused", "Nothing listens on the port."
    CONNECT_TIMEOUT = "connect-timeout", "The host did not answer in time."
    HOST_UNREACHABLE = "host-unreachable", "No route leads to the host."
    BIND_FAILED = "bind-failed", "The local address to connect from cannot be used."
    CONNECT_FAILED = "connect-failed", "The connection could not be made, in a way that no other reason names."
    FORWARDING_REFUSED = "forwarding-refused", "The jump host does not forward connections for this login."
    HOP_CANNOT_CONNECT = "hop-cannot-connect", "The jump host cannot connect to the next host."
    PROXY_COMMAND_FAILED = "proxy-command-failed", "The ProxyCommand could not be started, or failed."
    RCP_COMMAND_FAILED = "rcp-command-failed", "The rcp-like or rsh-like command did not reach the peer."
    NOT_SSH = "not-ssh", "What answers is no SSH server."
    BANNER_TIMEOUT = "banner-timeout", "The connection was accepted, and no SSH server identified itself in time."
    CLOSED_BEFORE_BANNER = "closed-before-banner", "The server closed the connection before it identified itself."
    CLOSED_BEFORE_LOGIN = "closed-before-login", "The server ended the connection before the login."
    NO_COMMON_ALGORITHM = "no-common-algorithm", "The server offers no algorithm of one kind that is accepted here."
    KEY_EXCHANGE_FAILED = "key-exchange-failed", "The key exchange failed."
    KEY_EXCHANGE_TIMEOUT = "key-exchange-timeout", "The key exchange did not end in time."
    STRICT_KEX_MISSING = "strict-kex-missing", "The connection would be open to prefix truncation (CVE-2023-48795)."

    # The host key. No byte of authentication was sent.

    HOST_KEY_UNKNOWN = "host-key-unknown", "Nothing is known of the host, or not of the key that it shows."
    HOST_KEY_CHANGED = "host-key-changed", "The host shows another key than the known one."
    HOST_KEY_REVOKED = "host-key-revoked", "The host shows a key that is marked as revoked."
    HOST_KEY_MISMATCHED = "host-key-mismatched", "Keys of the host are known, and none of the type that it shows."
    HOST_KEY_NOT_PINNED = "host-key-not-pinned", "The host shows another key than the pinned one."
    HOST_KEY_NOT_LISTED = "host-key-not-listed", "The host shows a key that the given list of fingerprints lacks."
    HOST_KEY_TOO_SMALL = "host-key-too-small", "The host shows an RSA key with fewer bits than required."
    HOST_CERTIFICATE_INVALID = (
        "host-certificate-invalid",
        "The host's certificate is signed by a known authority and invalid.",
    )
    HOST_CERTIFICATE_UNKNOWN = "host-certificate-unknown", "The host's certificate is signed by an unknown authority."
    HOST_KEY_NOT_SAVED = "host-key-not-saved", "The host key is new and could not be added to known_hosts."

    # Logging in. Those of keys and agents are mostly reasons of single attempts.

    LOGIN_REFUSED = "login-refused", "The server refused the login, or this key or password."
    MORE_AUTHENTICATION_WANTED = "more-authentication-wanted", "It was accepted, and the server wants another method."
    METHOD_NOT_OFFERED = "method-not-offered", "The server does not offer this method of authentication."
    PASSWORD_EXPIRED = "password-expired", "The server takes the password only to have it changed."
    TOO_MANY_LOGIN_ATTEMPTS = "too-many-login-attempts", "The server ended the connection after the attempts so far."
    LOGIN_TIMEOUT = "login-timeout", "The login was not complete in time."
    NO_CREDENTIALS = "no-credentials", "There is no key, agent or password to log in with."
    AGENT_UNAVAILABLE = "agent-unavailable", "No agent answers at the socket."
    AGENT_SILENT = "agent-silent", "The agent does not answer in time."
    AGENT_EMPTY = "agent-empty", "The agent holds no keys."
    AGENT_REFUSED = "agent-refused", "The agent refuses, or its answer cannot be read."
    KEY_FILE_MISSING = "key-file-missing", "The key file does not exist."
    KEY_FILE_UNREADABLE = "key-file-unreadable", "The key file cannot be read."
    KEY_FILE_PERMISSIONS = "key-file-permissions", "Other users can read the key file, so that ssh ignores it."
    KEY_INVALID = "key-invalid", "It is no private key, or a damaged one."
    KEY_UNSUPPORTED = "key-unsupported", "Keys of this type are not supported, or not accepted by the configuration."
    KEY_TYPE_REFUSED = "key-type-refused", "The server accepts no signature by a key of this type."
    KEY_TOO_SMALL = "key-too-small", "The RSA key has fewer bits than required."
    KEY_ON_TOKEN = "key-on-token", "The key is on a FIDO token, which only an agent can use."
    PUBLIC_KEY_ONLY = "public-key-only", "Only the public key or certificate is there, not its private key."
    CERTIFICATE_INVALID = "certificate-invalid", "The file is no certificate of a user."
    PASSPHRASE_MISSING = "passphrase-missing", "The key has a passphrase, and none was given."
    PASSPHRASE_WRONG = "passphrase-wrong", "The passphrase is wrong, or the key is damaged."
    ELEVATION_FAILED = "elevation-failed", "The command given as elevate= starts no SFTP server."

    # The connection.

    CONNECTION_LOST = "connection-lost", "The connection ended before the work was done."
    STALLED = "stalled", "The peer sent nothing useful for too long."
    TOO_SLOW = "too-slow", "The peer sends fewer bytes per second than required."
    DEADLINE_PASSED = "deadline-passed", "The operation was not done by its deadline."
    REPLY_TIMEOUT = "reply-timeout", "The peer left a request unanswered for too long."
    CANCELLED = "cancelled", "The operation was cancelled."
    PROTOCOL_VIOLATION = "protocol-violation", "The peer sent what the protocol does not allow."
    TEXT_BEFORE_PROTOCOL = "text-before-protocol", "Text comes where a protocol begins, as of a login script."
    LIMIT_EXCEEDED = "limit-exceeded", "The peer sends more than a bound in bytes or entries allows."

    # The peer's answers.

    NOT_FOUND = "not-found", "The peer has no such file or directory."
    NOT_A_DIRECTORY = "not-a-directory", "The path on the peer is not a directory."
    PERMISSION_DENIED = "permission-denied", "The peer's user may not read it."
    WRITE_DENIED = "write-denied", "The peer's user may not write there."
    REMOTE_NO_SPACE = "remote-no-space", "The peer's disk is full."
    REMOTE_FAILURE = "remote-failure", "The peer refuses, in a way that no other reason names."
    NO_SFTP = "no-sftp", "The peer has no SFTP server for this login."
    NO_SCP = "no-scp", "The peer has no scp program."
    SESSION_REFUSED = "session-refused", "The peer lets this login open no channel."
    COMMAND_REFUSED = "command-refused", "The peer lets this login run no command, or not this one."
    COMMAND_FAILED = "command-failed", "A command on the peer failed."
    COMMAND_TOO_LONG = "command-too-long", "The names of all files do not fit on one command line of the peer."

    # Single entries.

    NOT_A_FILE = "not-a-file", "The entry is not a regular file."
    INVALID_NAME = "invalid-name", "The transport cannot transfer the name."
    VANISHED = "vanished", "The entry is listed and leads to no file: it was removed, or is a dangling link."
    ENTRY_UNREADABLE = "entry-unreadable", "The entry cannot be read."
    INCOMPLETE_FILE = "incomplete-file", "Fewer bytes arrived than the listing promised."
    CHANGED_WHILE_STAGED = "changed-while-staged", "The file changed while it was read."
    NAME_NOT_REPRESENTABLE = "name-not-representable", "The target's file system cannot hold the name."
    NAME_COLLISION = "name-collision", "The target's file system takes the name for that of another file."
    NAME_TAKEN = "name-taken", "A directory has the name in the target."
    NOT_PUBLISHED = "not-published", "The file is complete, and the run ended before it got its name."

    # The stage.

    NOTHING_TO_STAGE = "nothing-to-stage", "The collect directory holds no file."
    INCOMPLETE_STAGE = "incomplete-stage", "Some entries could not be staged; the others are."
    FILE_LEFT_BEHIND = "file-left-behind", "An empty file that was written for a test may still be on the peer."
    NOT_READY = "not-ready", "The peer was asked, and its indicator is not there."

    # This machine.

    NO_SPACE = "no-space", "The local disk is full, or too small for what is to come."
    NO_INODES = "no-inodes", "The target's file system has too few inodes for what is to come."
    QUOTA_EXCEEDED = "quota-exceeded", "The user's quota on the local disk is used up."
    READ_ONLY_TARGET = "read-only-target", "The target's file system is mounted read-only."
    TARGET_MISSING = "target-missing", "The target directory does not exist, or was removed."
    TARGET_NOT_A_DIRECTORY = "target-not-a-directory", "The target is not a directory."
    TARGET_NOT_WRITABLE = "target-not-writable", "This user may not write to the target."
    TARGET_INTERFERED = "target-interfered", "Another process or user changes the private directory in the target."
    WORKING_DIRECTORY_UNUSABLE = "working-directory-unusable", "The local directory for temporary files cannot be used."
    OWNERSHIP_REFUSED = "ownership-refused", "The system does not let this user give files to that owner."
    LOCAL_IO_ERROR = "local-io-error", "A disk or a device of this machine fails."
    LOCAL_FAILURE = "local-failure", "This machine refuses, in a way that no other reason names; see errno."
    OUT_OF_MEMORY = "out-of-memory", "This process or machine has too little memory."
    OUT_OF_THREADS = "out-of-threads", "This process may start no more threads or processes."
    OUT_OF_DESCRIPTORS = "out-of-descriptors", "This process or machine may open no more files."
    NOT_ROOT = "not-root", "Only root can do this."
    ROOT_NOT_GIVEN_UP = "root-not-given-up", "The child process could not give up root."
    CHILD_ENDED = "child-ended", "The child process ended before its work was done."
    CHILD_SILENT = "child-silent", "The child process said nothing for too long, and was ended."
    CHILD_VIOLATION = "child-violation", "The child process sent what it may not."
    NOT_AVAILABLE = "not-available", "A backend, an extra or a platform that is needed is not there."
    PROGRAM_MISSING = "program-missing", "A local program that is needed is missing or cannot be run."
    STATUS_LOST = "status-lost", "The exit status of a local program is lost."
    FORKED = "forked", "The connection belongs to the process that this one was forked from."
    IN_USE = "in-use", "The object is in use already."
    TEST_SERVER_FAILED = "test-server-failed", "The embedded SSH server for tests did not start."
