"""Masks and boxes, and the files and pictures that show them."""
