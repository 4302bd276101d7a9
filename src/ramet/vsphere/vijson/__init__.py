"""VI JSON: the managed objects over plain JSON, since 8.0.1."""
