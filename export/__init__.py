"""Checkpoint -> bundle: one file a graph, the exporter, parity. Needs the `export` extra."""
