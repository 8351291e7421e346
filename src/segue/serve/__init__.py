"""A model behind HTTP, and the page where people look at what it says."""
