"""CT-like spines with known labels, for tests and the demonstration, made in three separate steps."""

from utils.verse.phantom.acquisition import (
    Acquisition,
    acquire,
    cut_codes,
    draw_acquisition,
    grid_of,
    whole_codes,
)
from utils.verse.phantom.anatomy import Anatomy, Vertebra, draw_anatomy
from utils.verse.phantom.make import Phantom, draw_storage, make_phantom, make_tissue
from utils.verse.phantom.skeleton import RIB, SACRUM, SKULL, bones
from utils.verse.phantom.tissue import Tissue, render_tissue
from utils.verse.phantom.values import draw_tissue
from utils.verse.phantom.write import centroid_records, plan_data_set, write_phantom_data_set

__all__ = [
    "RIB",
    "SACRUM",
    "SKULL",
    "Acquisition",
    "Anatomy",
    "Phantom",
    "Tissue",
    "Vertebra",
    "acquire",
    "bones",
    "centroid_records",
    "cut_codes",
    "draw_acquisition",
    "draw_anatomy",
    "draw_storage",
    "draw_tissue",
    "grid_of",
    "make_phantom",
    "make_tissue",
    "plan_data_set",
    "render_tissue",
    "whole_codes",
    "write_phantom_data_set",
]
