"""``ramet bench``: what clones cost, beside what one would do by hand on the same QEMU and the same guest."""
