"""VirtualMachine: its properties, and what can be done with it."""
