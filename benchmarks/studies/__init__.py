"""What answers cost, and whether they are right."""
