"""The commands for people: check rows, train on this machine, verify a result."""
