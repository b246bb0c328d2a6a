"""Peers, with the names that CedarBackup2 gives them."""
