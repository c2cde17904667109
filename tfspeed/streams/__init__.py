"""Text that arrives line by line, through a model: results that are revised as more comes in."""
