"""The store: everything that a site keeps in SQL.

Architecture Invariant: importing this package loads nothing; pilots never import what is in it.
"""
