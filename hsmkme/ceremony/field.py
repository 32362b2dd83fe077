"""The field of 256 elements, polynomials over it, and what a few of their values say of the value at zero.

Elements are bytes; addition is XOR; multiplication is modulo x⁸+x⁴+x³+x+1, as in AES (FIPS 197 §4.2). No branch and no
place in a table depends on an element: what time the interpreter takes for its numbers is all that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import xor

_MODULUS = 0x11B


def multiply(one: int, other: int) -> int:
    """The product of two elements."""
    product = 0
    for _ in range(8):
        product ^= one & -(other & 1)
        one = (one << 1) ^ (_MODULUS & -(one >> 7))
        other >>= 1
    return product


def inverse(element: int) -> int:
    """What times ``element`` is 1, by the 254th power; 0 for 0."""
    power, result = element, 1
    for _ in range(7):
        power = multiply(power, power)
        result = multiply(result, power)
    return result


def value_at(place: int, coefficients: Sequence[int]) -> int:
    """The value at ``place`` of the polynomial with these coefficients, the constant first."""
    return reduce(lambda value, coefficient: multiply(value, place) ^ coefficient, reversed(coefficients), 0)


def weights_at_zero(places: Sequence[int]) -> list[int]:
    """By what the value at each of ``places``, which differ and are not 0, counts in the value at zero (Lagrange)."""
    return [
        reduce(multiply, (multiply(other, inverse(other ^ place)) for other in places if other != place), 1)
        for place in places
    ]


def weighed(values: Sequence[int], weights: Sequence[int]) -> int:
    """The sum of ``values``, each times its weight."""
    return reduce(xor, map(multiply, values, weights), 0)
