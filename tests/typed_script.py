"""A user's script, for mypy alone: what it passes must be allowed, and what it ignores must be an error."""

from __future__ import annotations

import os
from pathlib import Path

from peerstage import (
    Indicators,
    Limits,
    LocalPeer,
    Reason,
    RemoteFile,
    RemotePeer,
    Retry,
    SSHOptions,
    StageOptions,
    StageReport,
    sweep,
    util,
)
from peerstage.errors import ConnectError, LoginError
from peerstage.testing import (
    Faults,
    MemoryFile,
    MemoryHost,
    hash_files,
    make_sample,
    memory_peer,
    memory_peers,
    ssh_server,
)


class BytesPath(os.PathLike[bytes]):
    def __fspath__(self) -> bytes:
        return b"/path"


PATHS: list[str | bytes | os.PathLike[str] | os.PathLike[bytes]] = ["/path", b"/path", Path("/path"), BytesPath()]

for path in PATHS:
    ssh = SSHOptions(identity=path, certificate=path, config=path, known_hosts=path, agent=path)
    ssh = SSHOptions(identity=(path, path), config=(path, path), known_hosts=(path, b"content"))
    with RemotePeer("db1", path, path, "backup", ssh=ssh, retry=Retry(), limits=Limits()) as peer:
        if peer.checkCollectIndicator(path):
            count: int = peer.stagePeer(path, util.getUidGid("backup", "backup"), 0o640)
            peer.writeStageIndicator(path)
        indicators: Indicators = peer.readIndicators(path, stageIndicator=path)
        collected: RemoteFile | None = indicators.collect
        if collected is not None and not indicators.stage_is_newer:
            age: int | None = collected.mtime
        peer.on_commit = os.getpid
        report: StageReport | None = peer.last_report
    local = LocalPeer("here", path, stage=StageOptions(durable=False), limits=Limits())
    count = local.stagePeer(path, (0, 0))
    indicators = local.readIndicators(path)
    local.on_commit = None
    local.writeStageIndicator(path, (0, 0), 0o600)
    removed: list[str] = sweep(path)
    encoded: str | None = util.encodePath(path)
    sample: dict[bytes, str] = make_sample(path)
    sample = hash_files(path)
    with ssh_server(path, sftp=False, faults=Faults(deny=(path,), cut_after=0, faulty_connections=1)) as server:
        RemotePeer(server.host, "/", None, server.username, ssh=server.options)

in_memory: RemotePeer = memory_peer({"cback.collect": b"", b"data": MemoryFile(b"content")}, lose_after=0)
in_memory = memory_peer({"cback.collect": b""}, error=LoginError("", reason=Reason.LOGIN_REFUSED))
with memory_peers({"db1": MemoryHost({"/c": {"data": b""}}, error=ConnectError("", reason=Reason.CONNECTION_REFUSED))}):
    in_memory.checkCollectIndicator()

RemotePeer("db1", transport="auto")
RemotePeer("db1", transport="sftp")
RemotePeer("db1", transport="scp")
RemotePeer("db1", transport="rcp")
RemotePeer("db1", transport="ftp")  # type: ignore[arg-type]
RemotePeer("db1", 5)  # type: ignore[arg-type]
LocalPeer("here", None)  # type: ignore[arg-type]
SSHOptions(identity=5)  # type: ignore[arg-type]
StageOptions(include="*.gz", exclude=("lost+found", "*.tmp"), max_size=10 << 30)
StageOptions(durable="no")  # type: ignore[arg-type]
StageOptions(max_size="10G")  # type: ignore[arg-type]
RemotePeer("db1", stage={"durable": False})  # type: ignore[arg-type]
