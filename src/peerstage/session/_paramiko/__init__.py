"""Everything that paramiko does not publish, in one place, each use with the test that notices when it changes.

`packets` is a packet layer with bounds, `channels` gives channels a `ChunkPipe` for a buffer, `logs` names the peer in
what paramiko logs, `transport` puts these into a paramiko transport that has its host key judged and logs in.
See tests/session/test_paramiko_internals.py.
"""
