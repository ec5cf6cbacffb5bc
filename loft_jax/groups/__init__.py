"""The command that shows the filter groups of a network."""
