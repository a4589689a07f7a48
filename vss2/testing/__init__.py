"""Helpers that the project's own tests and those of third-party projects share."""
