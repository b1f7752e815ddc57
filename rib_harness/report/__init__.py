"""Figures for papers and one HTML page, from what a store keeps. Heavy parts load on use."""
