"""Say why packets do not arrive: facts, causes, steps; loaded when it is asked for."""
