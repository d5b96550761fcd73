"""Data sets as plain functions that open a split, and the Lightning module around them."""

from fcnlab.data.camvid import open_camvid
from fcnlab.data.folder import open_folder
from fcnlab.data.module import DataModule
from fcnlab.data.pictures import DataError, Pictures
from fcnlab.data.sbd import open_sbd
from fcnlab.data.shapes import open_shapes
from fcnlab.data.voc import open_voc

__all__ = ["DataError", "DataModule", "Pictures", "open_camvid", "open_folder", "open_sbd", "open_shapes", "open_voc"]
