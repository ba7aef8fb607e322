"""Files from outside and files for others: checked when read, whole when written."""
