"""A profile, or a comparison of two, as one HTML page that opens offline (:mod:`ecoserve.pages`)."""

from ecoserve.data.profiling.reporting.page import render_profile

__all__ = ["render_profile"]
