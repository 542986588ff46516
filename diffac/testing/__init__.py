"""Tools for testing parts, backends and new algorithms.

`reference`: the mathematics once more in NumPy float64. `parts`: tables of parts. `problems`: rows with numbers, solved
by a backend and by the reference. `conformance`: the pytest suite for a third backend. `strategies`: for hypothesis.
"""
