"""One interface, one file an engine, opening by name."""
