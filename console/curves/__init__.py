"""Curves as data, the same on every surface: smoothing, thinning, axes. numpy only, no toolkit."""
