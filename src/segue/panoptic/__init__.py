"""Panoptic segmentation: maps and their quality, losses on masks, how a model is run over data, and what a run of
``segue extend`` learns from and is measured by. Networks are in `segue.models`, samples in `segue.data.panoptic`."""
