"""Decoding methods: each a state machine for one text, one paper a file."""
