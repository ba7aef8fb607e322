"""From statistics to graphs of narrow numbers."""
