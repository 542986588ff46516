"""Fast forms of plain code. Each says what it equals and what it gains; `nox -s bench` shows the gain."""
