"""Whether an engine still answers as the checkpoint did."""
