"""Checkpoints and parts of others' models: their files, fields and weights."""
