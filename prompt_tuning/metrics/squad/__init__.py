"""SQuAD's exact match and F1, as a module that `evaluate` loads from this folder."""
