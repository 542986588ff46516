"""Where metrics go: files, TensorBoard, the terminal, experiment trackers. The x axis is environment steps."""

from __future__ import annotations

from diffac.logging.console import ConsoleWriter as ConsoleWriter
from diffac.logging.files import CsvWriter as CsvWriter
from diffac.logging.files import JsonlWriter as JsonlWriter
from diffac.logging.tensorboard import TensorBoardWriter as TensorBoardWriter
from diffac.logging.trackers import TrackerWriter as TrackerWriter
from diffac.logging.writers import Writer as Writer
from diffac.logging.writers import Writers as Writers
