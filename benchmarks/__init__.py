"""Benchmarks: each a script with its physics in its docstring, results committed in `results/`."""
