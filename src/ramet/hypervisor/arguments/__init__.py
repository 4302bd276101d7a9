"""The command line of QEMU, a file per family of devices. Pure: nothing here opens anything."""
