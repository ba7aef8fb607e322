"""TensorRT, full or for RTX: profiles from token budgets, the build, its record, its inspection.

Nothing here imports an engine module before one is needed.
"""
