"""Ceremonies: what security officers do with the token, step by step, each step recorded."""
