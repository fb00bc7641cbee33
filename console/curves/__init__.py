"""Curves as data, the same in terminal and notebook: smoothing, thinning, axes. Uses numpy only, no UI toolkit."""
