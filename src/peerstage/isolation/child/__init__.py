"""The isolated child process: drops root's privileges, then runs the transports."""
