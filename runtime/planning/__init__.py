"""What a query costs, and the budget that a time allows."""
