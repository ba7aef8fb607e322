"""Any raster as pixels, with what of it holds data and where it lies."""
