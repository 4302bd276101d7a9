"""Fuzzing of everything that parses bytes from guests or from disk; see ``targets`` and ``python -m tests.fuzz``."""
