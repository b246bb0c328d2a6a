"""SFTP, in layers: `wire`, `packet_reader`, `client`, then `listing` and `fetch`, and the transport on top."""
