"""Faults on purpose: a site under load whose parts are killed, paused and cut off at random."""
