"""A profile, or a comparison of two, as one HTML page that opens offline (:mod:`ecoserve.pages`)."""

from ecoserve.data.profiling.reporting.comparison_page import render_comparison
from ecoserve.data.profiling.reporting.page import render_profile

__all__ = ["render_comparison", "render_profile"]
