"""The only package that uses what paramiko does not publish.

`internals` declares every such name, and `self_check` refuses a paramiko in which one is missing or bypassed.
`client_transport` verifies host keys and authenticates, above `rekeying`, `packetizer` (bounds and speed), `channels`
(bounded buffers), `forks` (no packets from forked child processes) and `paramiko_log`.
"""
