"""One file a number format, and the ways to round weights into it."""
