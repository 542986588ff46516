"""The program `diffac`, one file for each command."""
