"""The vSphere-compatible surface: the same machines, for tools that were written for the original."""
