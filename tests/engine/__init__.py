"""Real Docker Engines, each on a small host of its own made of namespaces."""
