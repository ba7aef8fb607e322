"""What a file from a stranger may be, looked at before GDAL opens it."""
