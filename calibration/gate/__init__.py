"""What narrow numbers may cost in answers, and which layers pay."""
