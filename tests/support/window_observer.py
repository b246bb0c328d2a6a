"""A server that records how much it may send ahead."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, ClassVar

import paramiko

from peerstage import RemotePeer, StageReport
from peerstage.testing.contract import files_in
from support.file_server import ServesFiles, serves_files
from support.ssh_server import listening, options_for

_KEY = paramiko.ECDSAKey.generate()


class ObservesWindow(ServesFiles):
    """Serves files over SFTP and SCP, and records what it may send before each packet.

    Attributes:
        windows: The bytes that the window of the channel allowed.
        stderr: What SCP sends on stderr first.
    """

    windows: list[int]
    stderr = b""

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        self._observe(channel)
        return super().check_channel_subsystem_request(channel, name)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self._observe(channel)
        directory = Path(os.fsdecode(command.removeprefix(b"scp -f ").removesuffix(b"/*")))
        threading.Thread(target=self._serve_scp, args=(channel, directory), daemon=True).start()
        return True

    def _observe(self, channel: Any) -> None:
        send = channel.send
        self.windows.append(channel.out_window_size)

        def observe_and_send(data: bytes) -> Any:
            self.windows.append(channel.out_window_size)
            return send(data)

        channel.send = observe_and_send

    def _serve_scp(self, channel: paramiko.Channel, directory: Path) -> None:
        channel.sendall_stderr(self.stderr)
        channel.recv(1)
        for path in sorted(directory.iterdir()):
            channel.sendall(f"C0644 {path.stat().st_size} {path.name}\n".encode())
            channel.recv(1)
            channel.sendall(path.read_bytes() + b"\0")
            channel.recv(1)
        channel.send_exit_status(0)
        channel.close()


def stage_under_observation(
    collect: Path, target: Path, policy: type[ObservesWindow] = ObservesWindow, **options: Any
) -> tuple[list[int], StageReport]:
    """Stage from a server; return what it observed, and the report. *options* are those of the peer, and attributes."""

    class Observer(policy):  # type: ignore[misc,valid-type]
        """The server of this call."""

        windows: ClassVar[list[int]] = []

    with listening(serves_files(_KEY, Observer)) as port:
        ssh = options_for(port, _KEY, password="sesame")
        bandwidth = options.pop("bandwidth", None)
        peer = RemotePeer("127.0.0.1", str(collect), "/tmp", "backup", ssh=ssh, **options)
        peer.bandwidth = bandwidth
        peer.stagePeer(str(target))
    assert files_in(target) == files_in(collect)
    assert peer.last_report is not None
    return Observer.windows, peer.last_report
