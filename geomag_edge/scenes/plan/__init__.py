"""Where things stand in a rendered scene."""
