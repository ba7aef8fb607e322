"""GeoMag in PyTorch: the thing that is exported. Needs the `export` extra.

`encoder`, `psc`, `projector`, `decoder` and `mask_head` hold one graph each; `geomag` puts them
together; `inference` is the readable reference that every engine is compared with.
"""
