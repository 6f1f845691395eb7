"""Invented towns: their geometry (`layout`, `blocks`) and their two looks (`street_map`, `photo`).

Every result is a function of (seed, split, index, size) alone, to the byte, on every machine: geometry uses
sums, products and square roots of Python floats and `random.Random` with a text seed; pixels are whole
numbers; noise is the raw output of PCG64. Sines, NumPy's distributions and image filters, whose last bit may
vary, are not used.
"""
