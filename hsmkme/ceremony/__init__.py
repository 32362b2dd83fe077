"""Ceremonies: what security officers do with the token. One plan is one ceremony, one transcript proves it."""
