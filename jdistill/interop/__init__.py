"""Policies from and to other programs."""
