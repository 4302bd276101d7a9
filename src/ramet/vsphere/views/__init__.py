"""Views of the inventory that clients make, and the search in it."""
