"""Property-based tests repeat exactly and have no deadline: no test here times anything."""

from hypothesis import settings

settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")
