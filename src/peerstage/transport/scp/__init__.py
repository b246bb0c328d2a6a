"""SCP, for peers without SFTP: one command a request, records and file data on its streams."""
