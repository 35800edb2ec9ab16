"""CT-like spines with known labels, for tests and the demonstration, made in three separate steps."""

from utils.synthetic.phantom.acquisition import (
    Acquisition,
    acquire,
    cut_codes,
    draw_acquisition,
    grid_of,
    whole_codes,
)
from utils.synthetic.phantom.anatomy import Anatomy, Vertebra, draw_anatomy
from utils.synthetic.phantom.make import Phantom, draw_storage, make_phantom, make_tissue
from utils.synthetic.phantom.skeleton import RIB, SACRUM, SKULL, bones
from utils.synthetic.phantom.tissue import Tissue, render_tissue
from utils.synthetic.phantom.values import draw_tissue
from utils.synthetic.phantom.write import (
    centroid_records,
    plan_data_set,
    plan_variants,
    write_phantom_data_set,
    write_phantoms,
)

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
    "plan_variants",
    "render_tissue",
    "whole_codes",
    "write_phantom_data_set",
    "write_phantoms",
]
