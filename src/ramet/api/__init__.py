"""The native API: `Client` is what programs use."""

from ramet.api.client import Client

__all__ = ["Client"]
