"""From rendered scenes to batches."""
