"""The climb: plan, race, confirm, recommend."""

from rung.climbing.options import ClimbOptions
from rung.climbing.run import Climb, climb

__all__ = ["Climb", "ClimbOptions", "climb"]
