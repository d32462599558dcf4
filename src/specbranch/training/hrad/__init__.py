"""Offline training of H-RAD, the hybrid rollback-aware draft structure (SpecBranch §5)."""
