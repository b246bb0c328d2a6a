"""Run the operations on a peer in a child process: as another local user, or under a deadline enforced from outside."""
