"""The parent: starts an isolated child process, sends it jobs, and checks every frame that it receives."""
