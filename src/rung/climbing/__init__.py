"""The climb: plan, race, confirm, recommend."""

from rung.climbing.run import Climb, ClimbOptions, climb

__all__ = ["Climb", "ClimbOptions", "climb"]
