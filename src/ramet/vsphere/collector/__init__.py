"""The property collector: what objects are asked for, what they say, and what changed since it was said."""
