"""The nodes of the attempt graph, one per file. A failing candidate is data: no node raises for it."""
