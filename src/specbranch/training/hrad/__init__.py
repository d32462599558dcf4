"""H-RAD: the hybrid rollback-aware draft structure (paper §5): how much of a draft to keep."""
