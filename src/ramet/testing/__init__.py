"""Fakes of the peers Ramet speaks to, for tests of its own and of programs built on it."""
