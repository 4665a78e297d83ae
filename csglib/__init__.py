"""Interpretable CNNs with class-specific filters: gate, methods, training, metrics.

The way through the library is the way through the book:

    recipe -> training -> run -> readout -> analysis -> csgbook: claims and pages
"""

from csglib.errors import Problem
from csglib.methods.csg import ClassGate
from csglib.methods.step import CSG, ICNN, PICNN
from csglib.networks.cut import gated
from csglib.runs.pretrained import from_pretrained, save_pretrained

__version__ = "0.1.0"
__all__ = ["CSG", "ICNN", "PICNN", "ClassGate", "Problem", "from_pretrained", "gated", "save_pretrained"]
