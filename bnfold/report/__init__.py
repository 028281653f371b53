"""Show results to people and programs: tables for a terminal, JSON, and files of either."""
