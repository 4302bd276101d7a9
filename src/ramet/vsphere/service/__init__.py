"""The service itself: where clients begin."""
