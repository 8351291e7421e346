"""A run: its folder, its surroundings, how a training verb goes through it, and what it leaves to read."""
