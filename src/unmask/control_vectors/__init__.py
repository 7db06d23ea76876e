"""Directions for other programs, and directions of other programs: safetensors, and GGUF control vectors (repeng, llama.cpp).

A control vector adds to the output of block N: at `hook_resid_post` of block N, which is `hook_resid_pre` of block N + 1.
llama.cpp refuses N = 0. What is exported as a control vector is the unit direction times the typical residual norm, so that
strength 1 there is coefficient 1 here.
"""

from unmask.control_vectors.exporting import export_directions
from unmask.control_vectors.importing import read_direction_file

__all__ = ["export_directions", "read_direction_file"]
