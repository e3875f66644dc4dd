"""Helpers that know nothing of prompts: files, text, tables, a run folder's names."""
