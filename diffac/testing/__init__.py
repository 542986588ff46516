"""Tools for testing parts, backends and new algorithms: `reference` (NumPy float64), `strategies` (for hypothesis)."""
