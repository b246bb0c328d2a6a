"""User authentication (RFC 4252): agent, key files, credentials, login."""
