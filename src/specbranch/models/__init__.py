"""Causal language models over a key/value cache that forks and rewinds."""
