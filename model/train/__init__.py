"""Training of GeoMag on rendered scenes: `python -m geomag_edge.model.train --help`."""
