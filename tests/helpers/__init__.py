"""Share code between test files."""
