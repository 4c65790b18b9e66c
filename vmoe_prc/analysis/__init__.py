"""Looks at what routers do; no training code imports it."""
