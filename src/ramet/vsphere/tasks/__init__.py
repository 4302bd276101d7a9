"""Long work, as clients follow it."""
