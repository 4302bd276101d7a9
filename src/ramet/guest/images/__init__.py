"""Builders of the default guests. See `micro`, `debian` and `built`."""
