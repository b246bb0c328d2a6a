"""The options that verbs share, and the values that they become."""

from __future__ import annotations

from typing import Annotated

import typer

from peerstage.cli.access import Access
from peerstage.records import Limits
from peerstage.session.options import SSHOptions
from peerstage.transport.retry import Retry

Peer = Annotated[str, typer.Argument(metavar="USER@HOST:DIR", help="The peer and its collect directory.")]
Peers = Annotated[list[str], typer.Argument(metavar="USER@HOST:DIR...", help="Peers and their collect directories.")]

Port = Annotated[int | None, typer.Option("--port", "-p", help="TCP port.")]
Identity = Annotated[
    list[str] | None,
    typer.Option("--identity", "-i", metavar="FILE", help="Private key; repeatable."),
]
KnownHosts = Annotated[
    list[str] | None,
    typer.Option("--known-hosts", metavar="FILE", help="known_hosts file; repeatable."),
]
Config = Annotated[
    list[str] | None,
    typer.Option("--config", "-F", metavar="FILE", help="ssh_config file; repeatable."),
]
NoConfig = Annotated[bool, typer.Option("--no-config", help="Read no ssh_config.")]
HostKey = Annotated[
    str | None,
    typer.Option("--host-key", metavar="SHA256:...", help="The key that the peer must show; or accept-new, or strict."),
]
Jump = Annotated[
    str | None,
    typer.Option("--jump", "-J", metavar="[USER@]HOST[:PORT],...", help="Hosts to jump through, as for ssh."),
]
Elevate = Annotated[
    str | None,
    typer.Option("--elevate", metavar="COMMAND", help="Command of the peer that speaks SFTP, as: sudo -n sftp-server."),
]
LocalUser = Annotated[
    str | None,
    typer.Option("--local-user", metavar="NAME", help="As root: use this user's keys and configuration, as that user."),
]
ConnectTimeout = Annotated[
    float | None,
    typer.Option("--connect-timeout", metavar="SECONDS", help="For the connection."),
]
Retries = Annotated[
    int,
    typer.Option("--retries", metavar="N", min=0, help="How often a connection that was lost is made again."),
]
ConnectRetries = Annotated[
    int,
    typer.Option(
        "--connect-retries",
        metavar="N",
        min=0,
        help="How often to try again to connect, to a peer that may be booting.",
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option("--deadline", metavar="SECONDS", help="For one operation; default by its size."),
]
Way = Annotated[
    str,
    typer.Option("--transport", metavar="NAME", help="auto, sftp, scp, guarded (SCP behind a forced command) or rcp."),
]
Indicator = Annotated[
    str | None,
    typer.Option("--indicator", metavar="NAME", help="Indicator file; default cback.collect, or for mark cback.stage."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, an object a line, and nothing else.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log to standard error.")]


#: As many as a `Retry` that is not told otherwise; its numbers are of attempts.
RETRIES, CONNECT_RETRIES = Retry().tries - 1, Retry().connect - 1


def access_of(
    *,
    port: int | None,
    identity: list[str] | None,
    known_hosts: list[str] | None,
    config: list[str] | None,
    no_config: bool,
    host_key: str | None,
    jump: str | None,
    connect_timeout: float | None,
    deadline: float | None,
    transport: str,
    retries: int = RETRIES,
    connect_retries: int = CONNECT_RETRIES,
    elevate: str | None = None,
    local_user: str | None = None,
) -> Access:
    """Return what the options of the command line mean.

    Raises:
        ValueError: One of them can not be meant.
    """
    if no_config and config:
        raise ValueError("--config and --no-config exclude each other.")
    return Access(
        ssh=SSHOptions(
            port=port,
            identity=tuple(identity) if identity else None,
            known_hosts=tuple(known_hosts) if known_hosts else None,
            config=() if no_config else tuple(config) if config else None,
            host_key=host_key,
            jump=jump,
            elevate=elevate,
            connect_timeout=connect_timeout,
        ),
        limits=Limits(deadline=deadline),
        retry=Retry(tries=retries + 1, connect=connect_retries + 1),
        transport=transport,
        local_user=local_user,
    )
