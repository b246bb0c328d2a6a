"""The operations on a peer in a child process: one that has given up root, or that is under a deadline from outside."""
