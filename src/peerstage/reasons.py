"""Why an operation failed, or an entry is not staged: a closed set of identifiers, for programs to decide by."""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """A reason why an operation, or one entry of it, failed, or why an entry was left out.

    ``str()``, `format` and JSON give the identifier in kebab-case. Identifiers are stable; later versions may add more.

    Attributes:
        meaning: One sentence that explains it.
    """

    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Reason:
        """Create a member from its identifier and its meaning."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.__doc__ = member.meaning = meaning
        return member

    def __str__(self) -> str:
        return str(self.value)

    # Arguments and configuration. Nothing was sent.

    INVALID_ARGUMENT = "invalid-argument", "An argument or an option is wrong."
    INVALID_CONFIGURATION = "invalid-configuration", "A configuration file or an option holds an invalid value."
    UNKNOWN_KEYWORD = "unknown-keyword", "The configuration holds a keyword that ssh does not know."
    UNSUPPORTED_KEYWORD = "unsupported-keyword", "The configuration holds a keyword that peerstage does not support."
    CONFIGURATION_UNREADABLE = "configuration-unreadable", "A configuration file is missing or cannot be read."
    INSECURE_CONFIGURATION = "insecure-configuration", "Other users can write a configuration file."
    UNKNOWN_LOCAL_USER = "unknown-local-user", "This machine has no such local user, or it is root."

    # Connecting.

    NAME_NOT_RESOLVED = "name-not-resolved", "The host name cannot be resolved."
    RESOLVER_TIMEOUT = "resolver-timeout", "The name service did not reply in time."
    CONNECTION_REFUSED = "connection-refused", "Nothing listens on the port."
    CONNECT_TIMEOUT = "connect-timeout", "The host did not respond in time."
    HOST_UNREACHABLE = "host-unreachable", "There is no route to the host."
    BIND_FAILED = "bind-failed", "The local address to connect from cannot be used."
    CONNECT_FAILED = "connect-failed", "The connection failed for a reason that has no identifier of its own."
    FORWARDING_REFUSED = "forwarding-refused", "The jump host does not forward connections for this login."
    HOP_CANNOT_CONNECT = "hop-cannot-connect", "The jump host cannot connect to the next host."
    PROXY_COMMAND_FAILED = "proxy-command-failed", "The ProxyCommand could not be started, or failed."
    RCP_COMMAND_FAILED = "rcp-command-failed", "The rcp-like or rsh-like command did not reach the peer."
    NOT_SSH = "not-ssh", "The server at this port is not an SSH server."
    BANNER_TIMEOUT = "banner-timeout", "The connection was accepted, but no SSH server identified itself in time."
    CLOSED_BEFORE_BANNER = "closed-before-banner", "The server closed the connection before it identified itself."
    CLOSED_BEFORE_LOGIN = "closed-before-login", "The server closed the connection before authentication."
    NO_COMMON_ALGORITHM = (
        "no-common-algorithm",
        "Client and server have no key exchange, host key, cipher or MAC algorithm in common.",
    )
    KEY_EXCHANGE_FAILED = "key-exchange-failed", "The key exchange failed."
    KEY_EXCHANGE_TIMEOUT = "key-exchange-timeout", "The key exchange did not complete in time."
    STRICT_KEX_MISSING = (
        "strict-kex-missing",
        "The connection would be vulnerable to prefix truncation (CVE-2023-48795).",
    )

    # The host key. No authentication data was sent.

    HOST_KEY_UNKNOWN = "host-key-unknown", "There is no matching key for the host in known_hosts."
    HOST_KEY_CHANGED = "host-key-changed", "The host presented another key than the known one."
    HOST_KEY_REVOKED = "host-key-revoked", "The host presented a key that is marked as revoked."
    HOST_KEY_MISMATCHED = "host-key-mismatched", "Keys are known for the host, but none of the type that it presented."
    HOST_KEY_NOT_PINNED = "host-key-not-pinned", "The host presented another key than the pinned one."
    HOST_KEY_NOT_LISTED = (
        "host-key-not-listed",
        "The host presented a key that is not in the given list of fingerprints.",
    )
    HOST_KEY_TOO_SMALL = "host-key-too-small", "The host presented an RSA key with fewer bits than required."
    HOST_CERTIFICATE_INVALID = (
        "host-certificate-invalid",
        "The host's certificate is signed by a known authority, but is not valid.",
    )
    HOST_CERTIFICATE_UNKNOWN = "host-certificate-unknown", "The host's certificate is signed by an unknown authority."
    HOST_KEY_NOT_SAVED = "host-key-not-saved", "The host key is new and could not be added to known_hosts."

    # Authentication. The reasons about keys and agents mostly concern single attempts.

    LOGIN_REFUSED = "login-refused", "The server refused the login, or this key or password."
    MORE_AUTHENTICATION_WANTED = (
        "more-authentication-wanted",
        "The credential was accepted, but the server requires another method too (partial success, RFC 4252).",
    )
    METHOD_NOT_OFFERED = "method-not-offered", "The server does not offer this authentication method."
    PASSWORD_EXPIRED = "password-expired", "The server requires the password to be changed."
    TOO_MANY_LOGIN_ATTEMPTS = "too-many-login-attempts", "The server closed the connection after too many attempts."
    LOGIN_TIMEOUT = "login-timeout", "Authentication did not complete in time."
    NO_CREDENTIALS = "no-credentials", "There is no key, agent or password to log in with."
    AGENT_UNAVAILABLE = "agent-unavailable", "The agent cannot be reached, or closed the connection."
    AGENT_SILENT = "agent-silent", "The agent did not reply in time."
    AGENT_EMPTY = "agent-empty", "The agent holds no keys."
    AGENT_REFUSED = "agent-refused", "The agent refused, or its reply is invalid."
    KEY_FILE_MISSING = "key-file-missing", "The key file does not exist."
    KEY_FILE_UNREADABLE = "key-file-unreadable", "The key file cannot be read."
    KEY_FILE_PERMISSIONS = "key-file-permissions", "Other users can read the key file, so ssh ignores it."
    KEY_INVALID = "key-invalid", "The private key is invalid or damaged."
    KEY_UNSUPPORTED = "key-unsupported", "Keys of this type are not supported, or not allowed by the configuration."
    KEY_TYPE_REFUSED = "key-type-refused", "The server accepts no signatures by keys of this type."
    KEY_TOO_SMALL = "key-too-small", "The RSA key has fewer bits than required."
    KEY_ON_TOKEN = "key-on-token", "The key is on a FIDO token, which only an agent can use."
    PUBLIC_KEY_ONLY = "public-key-only", "Only the public key or certificate is available, not the private key."
    CERTIFICATE_INVALID = "certificate-invalid", "The file is not a user certificate."
    PASSPHRASE_MISSING = "passphrase-missing", "The key has a passphrase, and none was given."
    PASSPHRASE_WRONG = "passphrase-wrong", "The passphrase is wrong, or the key is damaged."
    ELEVATION_FAILED = "elevation-failed", "The command given as elevate= starts no SFTP server."

    # The connection.

    CONNECTION_LOST = "connection-lost", "The connection ended before the operation was complete."
    STALLED = "stalled", "There was no progress for too long."
    TOO_SLOW = "too-slow", "The peer sends fewer bytes per second than required."
    DEADLINE_PASSED = "deadline-passed", "The operation did not complete by its deadline."
    REPLY_TIMEOUT = "reply-timeout", "The peer did not reply to a request in time."
    CANCELLED = "cancelled", "The operation was cancelled."
    PROTOCOL_VIOLATION = "protocol-violation", "The peer violated the protocol."
    TEXT_BEFORE_PROTOCOL = (
        "text-before-protocol",
        "The server sent text before the protocol, such as output of a login script.",
    )
    LIMIT_EXCEEDED = "limit-exceeded", "The peer sent more bytes or entries than a limit allows."

    # Refusals of the peer.

    NOT_FOUND = "not-found", "The peer has no such file or directory."
    NOT_A_DIRECTORY = "not-a-directory", "The path on the peer is not a directory."
    PERMISSION_DENIED = "permission-denied", "The remote user has no permission to read the file or directory."
    WRITE_DENIED = (
        "write-denied",
        "The remote user has no permission to write the file or to its directory.",
    )
    REMOTE_NO_SPACE = "remote-no-space", "The peer's disk is full."
    REMOTE_FAILURE = "remote-failure", "The peer refused for a reason that has no identifier of its own."
    NO_SFTP = "no-sftp", "The peer has no SFTP server for this login."
    NO_SCP = "no-scp", "The peer has no scp program."
    SESSION_REFUSED = "session-refused", "The server refused to open a session channel."
    COMMAND_REFUSED = "command-refused", "The peer does not let this login run commands, or not this one."
    COMMAND_FAILED = "command-failed", "A command on the peer failed."
    COMMAND_TOO_LONG = (
        "command-too-long",
        "The list of file names is too long for one command line on the peer (ARG_MAX).",
    )

    # Single entries.

    NOT_A_FILE = "not-a-file", "The entry is not a regular file."
    INVALID_NAME = "invalid-name", "The transport cannot transfer the name."
    VANISHED = "vanished", "The entry was listed, but does not exist: it was removed, or is a dangling symlink."
    ENTRY_UNREADABLE = "entry-unreadable", "The entry cannot be read."
    FILE_TOO_LARGE = "file-too-large", "The file is larger than a limit allows."
    INCOMPLETE_FILE = "incomplete-file", "Fewer bytes arrived than the file's announced size."
    CHANGED_WHILE_STAGED = "changed-while-staged", "The file changed while it was read."
    DIGEST_MISMATCH = "digest-mismatch", "The file's SHA-256 is not the one in the peer's checksum file."
    NO_DIGEST = "no-digest", "The peer's checksum file has no digest of the file."
    NAME_NOT_REPRESENTABLE = "name-not-representable", "The target's file system cannot hold the name."
    NAME_COLLISION = "name-collision", "The target's file system does not distinguish the name from another file's."
    NAME_TAKEN = "name-taken", "The target has a directory of that name."
    NAME_RESERVED = "name-reserved", "That name is reserved for the manifest of the target."
    NOT_PUBLISHED = "not-published", "The file is complete, but the run ended before it was renamed."

    # Entries that were left out on request. No operation fails for these.

    EXCLUDED = "excluded", "The name matches a pattern of names to exclude."
    NOT_INCLUDED = "not-included", "The name matches none of the patterns of names to include."
    ABOVE_MAX_SIZE = "above-max-size", "The file is larger than the files to include."

    # The stage.

    NOTHING_TO_STAGE = "nothing-to-stage", "The collect directory holds no file."
    INCOMPLETE_STAGE = "incomplete-stage", "Some entries could not be staged; the others are."
    CHECKSUM_FILE_MISSING = "checksum-file-missing", "The peer has no checksum file of that name that can be staged."
    CHECKSUM_FILE_INVALID = (
        "checksum-file-invalid",
        "The peer's checksum file is too large, or not in the format of sha256sum.",
    )
    FILE_LEFT_BEHIND = "file-left-behind", "An empty file that was written for a test may still be on the peer."
    NOT_READY = "not-ready", "The peer has no collect indicator."
    STALE = "stale", "The collect indicator is older than the stage indicator, or than its maximum age."

    # The manifest.

    NO_MANIFEST = "no-manifest", "The directory has no manifest."
    INVALID_MANIFEST = "invalid-manifest", "The manifest is damaged, or is not one that peerstage wrote."
    VERIFICATION_FAILED = "verification-failed", "Files are not as the manifest says."

    # This machine.

    NO_SPACE = "no-space", "The local disk is full, or too small for the files."
    NO_INODES = "no-inodes", "The target's file system has too few inodes for the files."
    QUOTA_EXCEEDED = "quota-exceeded", "The user's quota on the local disk is exceeded."
    READ_ONLY_TARGET = "read-only-target", "The target's file system is mounted read-only."
    TARGET_MISSING = "target-missing", "The target directory does not exist, or was removed."
    TARGET_NOT_A_DIRECTORY = "target-not-a-directory", "The target is not a directory."
    TARGET_NOT_WRITABLE = "target-not-writable", "This user may not write to the target."
    TARGET_INTERFERED = "target-interfered", "Another process or user changed the private directory in the target."
    POOL_LOCKED = "pool-locked", "Another run, or another command, holds the lock of the staging pool."
    WORKER_LOST = "worker-lost", "The worker of a peer ended, could not run it, or gave no sign of life for too long."
    POOL_NOT_VISIBLE = "pool-not-visible", "A worker does not find the run in its staging pool."
    PEER_LOCKED = "peer-locked", "A worker of an earlier run is still staging the peer."
    RUN_KILLED = "run-killed", "The run was killed before the peer was done."
    DAY_IN_FUTURE = "day-in-future", "The staging pool has a daily directory of a day in the future."
    WORKING_DIRECTORY_UNUSABLE = "working-directory-unusable", "The local directory for temporary files cannot be used."
    PARTIAL_DIR_UNUSABLE = "partial-dir-unusable", "The directory for the large files of failed runs cannot be used."
    OWNERSHIP_REFUSED = "ownership-refused", "The system does not let this user change files to that owner."
    LOCAL_IO_ERROR = "local-io-error", "A disk or device of this machine failed."
    LOCAL_FAILURE = (
        "local-failure",
        "A local operation failed for a reason that has no identifier of its own; see errno.",
    )
    OUT_OF_MEMORY = "out-of-memory", "This process or machine has too little memory."
    OUT_OF_THREADS = "out-of-threads", "This process cannot start any more threads or processes."
    OUT_OF_DESCRIPTORS = "out-of-descriptors", "This process or machine cannot open any more files."
    NOT_ROOT = "not-root", "Only root can do this."
    PRIVILEGES_NOT_DROPPED = "privileges-not-dropped", "The child process could not drop root's privileges."
    CHILD_ENDED = "child-ended", "The child process exited before its job was done."
    CHILD_SILENT = "child-silent", "The child process sent nothing for too long and was killed."
    CHILD_VIOLATION = "child-violation", "The child process violated the protocol."
    NOT_AVAILABLE = "not-available", "A required extra, option or platform is not available."
    PARAMIKO_INCOMPATIBLE = (
        "paramiko-incompatible",
        "The installed paramiko is not a tested version.",
    )
    PROGRAM_MISSING = "program-missing", "A required local program is missing or cannot be run."
    HOOK_FAILED = "hook-failed", "A command that the plan runs before or after the run, or after a peer, failed."
    STATUS_LOST = "status-lost", "The exit status of a local program is lost."
    FORKED = "forked", "The connection belongs to the process that this one was forked from."
    IN_USE = "in-use", "The object is already in use."
    TEST_SERVER_FAILED = "test-server-failed", "The embedded SSH server for tests did not start."
