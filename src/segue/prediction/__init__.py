"""A model over pictures: as files of every kind, over whole scenes, and over many machines."""
