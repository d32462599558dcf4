"""What runs: a causal LM over a key/value cache that can fork and rewind."""
