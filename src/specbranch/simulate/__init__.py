"""What-if timing: the real algorithm, or recorded acceptance, on hardware that is not here."""
