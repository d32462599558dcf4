"""The recipe of the bundled pair."""
