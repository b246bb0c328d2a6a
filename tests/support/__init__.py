"""What the tests share: servers, faults, and ways to look at what is left behind."""
