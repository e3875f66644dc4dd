"""ROUGE, as a module that `evaluate` loads from this folder."""
