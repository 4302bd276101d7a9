"""What is measured: one function for each case, registered in ``ramet.bench.catalogue``."""
