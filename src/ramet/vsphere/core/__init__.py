"""What every managed object of the surface stands on: types, registry, properties, changes, calls."""
