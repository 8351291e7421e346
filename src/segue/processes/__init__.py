"""Several processes and several machines: what they agree on, share and divide."""
