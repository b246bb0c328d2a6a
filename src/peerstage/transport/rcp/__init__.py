"""Copying by an external command like rcp, scp or rsync, for sites that configure one."""
