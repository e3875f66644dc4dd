"""The command line: one file for each command, with its parser, its examples and its handler."""
