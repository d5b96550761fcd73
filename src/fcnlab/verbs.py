"""The commands of fcnlab."""

# In the order of the help, with a sentence on each.
VERBS = {
    "train": "train a network; writes checkpoints, scores, curves and images to outputs/",
    "eval": "evaluate a checkpoint: mIoU and three more scores, per class and per image",
    "predict": "segment images: palette PNGs and overlays",
    "doctor": "check a data set and this machine for problems",
    "compare": "compare runs: tables, confidence intervals, significance tests, an HTML page",
    "watch": "follow running sweeps and runs on a local page, or in the terminal with --terminal",
    "bench": "measure speed and memory, and compare them with other libraries",
}
