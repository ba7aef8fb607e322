"""Asking a set, metrics with intervals, comparison."""
