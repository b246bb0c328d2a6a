"""Public keys and certificates: parsers, fingerprints, verification of signatures."""
