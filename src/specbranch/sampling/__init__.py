"""From logits to a token: processors, samplers and counter-based noise."""
