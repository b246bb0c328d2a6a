"""Copying by a command like rcp or scp, for sites that insist on one of their own (PARITY 20)."""
