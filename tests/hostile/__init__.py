"""Inputs made to do harm, of every format, and what every command makes of them."""
