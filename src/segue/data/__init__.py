"""Data sets: layouts on disk, what is wrong with them, training views, drawn scenes, and where to get public ones."""
