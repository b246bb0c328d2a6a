"""Host keys: known_hosts files, and verification of the key that a server presents."""
