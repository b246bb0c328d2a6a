"""The command line: one function a verb, and around them options, output, exit codes and signals."""
