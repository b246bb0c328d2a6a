"""SCP, for peers without SFTP: each request is a command on the peer, which exchanges messages and file data."""
