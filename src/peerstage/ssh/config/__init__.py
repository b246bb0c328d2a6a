"""From ssh_config(5) to a `Destination`: read the files, parse the arguments, resolve the name of a peer."""
