"""Models of what things cost, to be asked before anything is measured."""
