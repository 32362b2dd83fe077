"""Ceremonies as officers hold them: by the command line, on real tokens."""
