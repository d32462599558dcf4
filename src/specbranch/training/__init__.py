"""Training of drafts and of H-RAD."""
