"""The Managed Object Browser: every object, its properties and its methods, for people and for scripts."""
