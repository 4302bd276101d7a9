"""``python -m ramet.soak``: a long random life of a host, from a seed, and whether anything leaks or is lost in it."""
