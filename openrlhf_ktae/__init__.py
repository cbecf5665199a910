"""KTAE for OpenRLHF: train with token-level credit."""

import warnings

# torch warns of a package that OpenRLHF 0.11.2 requires, in each process of a GPU installation. Remove with it.
warnings.filterwarnings("ignore", "The pynvml package is deprecated", FutureWarning)

__version__ = "0.1.0"
