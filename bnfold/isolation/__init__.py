"""Whole models, each in a process of its own: to be judged, and to be timed."""
