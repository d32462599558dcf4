"""Faster forwards on CPUs: prepacked, half and int8 weights, and compiled forwards."""
