"""SFTP: `wire` (bytes and values), `framing` and `client` (a conversation), `listing`, `fetch` (the engine)."""
