"""KTAE for OpenRLHF: train with token-level credit."""

__version__ = "0.1.0"
