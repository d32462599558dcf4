"""From a prompt to its rounds, and what is recorded of them."""
