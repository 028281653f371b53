"""Is what was written the same function for every input? Two graphs, read again, node by node."""
