"""What the machine grants: memory, processors, signals, a terminal, processes that end with this one."""

from diffac.system.settings import configure as configure
