"""Every part, declared once: what it is called, what it takes, which noise and state it needs, and where it comes from.

A backend's class inherits its declaration and adds the computation.
"""

from diffac.parts import critics, learner, networks, normalisers, objectives, optimisers, samplers, temperatures
from diffac.parts.declaration import Part

PARTS: dict[str, type[Part]] = {
    name: part
    for module in (networks, normalisers, samplers, objectives, critics, temperatures, optimisers, learner)
    for name in module.__all__
    if issubclass(part := getattr(module, name), Part)
}
"""Name in every backend -> its declaration."""
