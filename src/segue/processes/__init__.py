"""The processes that do the work: how one is tuned, and what several agree on, share and divide."""
