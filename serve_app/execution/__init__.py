"""How one task of a workflow is evaluated on a replica: calls, subgraphs, results, limits. No node classes."""
