"""Items, where they come from, and how they are cut into calibration, search and gate splits.

A dataset gives items by position and knows each by the hash of its content; nothing is decoded before it is asked for.
"""

from __future__ import annotations

from quantkit.data.arrays import Arrays, collect, write_shard
from quantkit.data.batch import Batch, Dataset, Item, bind, check_labels
from quantkit.data.distilled import Distilled
from quantkit.data.images import Images
from quantkit.data.preprocessing import Preprocessing
from quantkit.data.rows import Rows, is_rows
from quantkit.data.sources import open_dataset
from quantkit.data.splits import Concatenated, KeptBatches, Splits, Subset, concatenate, cut, sample, separate, split, whole

__all__ = [
    "Arrays",
    "Batch",
    "Concatenated",
    "Dataset",
    "Distilled",
    "Images",
    "Item",
    "KeptBatches",
    "Preprocessing",
    "Rows",
    "Splits",
    "Subset",
    "bind",
    "check_labels",
    "collect",
    "concatenate",
    "cut",
    "is_rows",
    "open_dataset",
    "sample",
    "separate",
    "split",
    "whole",
    "write_shard",
]
