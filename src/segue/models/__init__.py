"""Networks: segmenters, small searched ones, encoders alone, panoptic ones; all by their specs."""
