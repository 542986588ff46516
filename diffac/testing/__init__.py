"""Tools for testing parts, backends and new algorithms.

`compare`: two implementations of one part on equal numbers. `reference`: the mathematics once more in NumPy float64.
`parts`: tables of parts. `problems`: rows with numbers, solved by a backend and by the reference. `conformance`: the
pytest suite for a third backend. `strategies`: for hypothesis. `multimodality`: what ways to act a policy keeps.
"""

from diffac.testing.comparison import Comparison as Comparison
from diffac.testing.comparison import Disagreement as Disagreement
from diffac.testing.comparison import compare as compare
