"""Plots of a pruning as matplotlib figures, and their files.

Functions take plain numbers and return a `matplotlib.figure.Figure`; they leave pyplot and the user's settings alone.
matplotlib comes with the extra `plots` and is imported when a plot is drawn; `plots_available` tells whether it is.
"""

from lwc_compiler.report.plots.curves import Curve, TrainedRound, sensitivity, trade_off, training_curve
from lwc_compiler.report.plots.files import plots_available, save_plots
from lwc_compiler.report.plots.of_model import figure_of_scan, figures_of
from lwc_compiler.report.plots.times import layer_time
from lwc_compiler.report.plots.weights import kernel_picture, layer_density, mask_picture, weight_histogram

__all__ = [
    "Curve",
    "TrainedRound",
    "figure_of_scan",
    "figures_of",
    "kernel_picture",
    "layer_density",
    "layer_time",
    "mask_picture",
    "plots_available",
    "save_plots",
    "sensitivity",
    "trade_off",
    "training_curve",
    "weight_histogram",
]
