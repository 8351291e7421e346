"""Networks: the segmenter and the heads on top of it."""
