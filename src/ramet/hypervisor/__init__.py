"""One QEMU: its command line, its process, its monitor, its device state, and how it is forked."""
