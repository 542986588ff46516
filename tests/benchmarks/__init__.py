"""How fast is diffac, against what others do and against what the machine can: `nox -s bench`."""
