"""Translation edit rate, as a module that `evaluate` loads from this folder."""
