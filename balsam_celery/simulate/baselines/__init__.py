"""Other planners, from their published rules, in the same simulator as our own."""
