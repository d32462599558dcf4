"""A draft for any target: its own answers, a small model of its family, and training on them."""
