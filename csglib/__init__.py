"""Interpretable CNNs with class-specific filters: gate, methods, training, metrics.

The way through the library is the way through the book:

    recipe -> train -> run -> readout -> metrics, figures -> claims
"""

__version__ = "0.1.0"


class Problem(Exception):
    """A mistake of the input, said in one sentence that names the remedy; the command line prints it and exits with 2."""
