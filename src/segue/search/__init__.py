"""The search of `segue.methods.compact_search`: who proposes candidates, how one is tried, what is kept of it."""
