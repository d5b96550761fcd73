"""Data sets as functions that open a split, and the LightningDataModule that loads them."""

from fcnlab.data.datamodule import DataModule
from fcnlab.data.dataset import DataError, SegmentationDataset
from fcnlab.data.formats.camvid import open_camvid
from fcnlab.data.formats.folder import open_folder
from fcnlab.data.formats.sbd import open_sbd
from fcnlab.data.formats.shapes import open_shapes
from fcnlab.data.formats.voc import open_voc

__all__ = [
    "DataError",
    "DataModule",
    "SegmentationDataset",
    "open_camvid",
    "open_folder",
    "open_sbd",
    "open_shapes",
    "open_voc",
]
