"""An authenticated SSH connection to one peer: configuration, host keys, authentication, and channels."""
