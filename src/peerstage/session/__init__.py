"""An authenticated SSH connection to one peer: everything that is said before the first byte of a transport."""
