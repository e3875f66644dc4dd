"""Helpers without prompts or models: files, texts, tables, the names in a run's folder."""
